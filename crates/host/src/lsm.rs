//! Which security modules the kernel enforces. Not here: profiles and labels.

use std::path::Path;

/// Whether the kernel enforces AppArmor's profiles.
#[must_use]
pub fn has_apparmor() -> bool {
    is_on(Path::new("/sys/module/apparmor/parameters/enabled"))
}

fn is_on(parameter: &Path) -> bool {
    std::fs::read_to_string(parameter).is_ok_and(|text| text.starts_with('Y'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_off_or_absent_enforces_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("enabled");
        assert!(!is_on(&file));
        for (text, expect) in [("Y\n", true), ("N\n", false)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(is_on(&file), expect, "{text}");
        }
    }
}
