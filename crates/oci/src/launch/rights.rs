//! What this process may not give to containers: told once, as a pod runs without it ([`WithoutRights`](crate::plan::WithoutRights)).

use rustix::thread;

use crate::plan::{capability_mask, capability_names, known_to_kernel};

/// What containers of this process will run without where they ask for it, a sentence each.
pub fn missing_rights() -> Vec<String> {
    let Ok(own) = thread::capabilities(None) else { return Vec::new() };
    told(own.permitted.bits(), known_to_kernel())
}

fn told(own: u64, known: u64) -> Vec<String> {
    let mut told = Vec::new();
    let missing = known & !own;
    if missing != 0 {
        told.push(format!(
            "this process has not every capability: containers that ask for these run without them: {}",
            capability_names(missing)
        ));
    }
    if missing & capability_mask("SYS_RESOURCE").unwrap_or(0) != 0 {
        told.push(
            "this process lacks CAP_SYS_RESOURCE: containers that ask for a lower oom_score_adj than its own keep its own".to_owned(),
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_by_name_and_a_whole_root_says_nothing() {
        let known = (1 << 41) - 1;
        assert_eq!(told(known, known), Vec::<String>::new());
        assert_eq!(told(u64::MAX, known), Vec::<String>::new());
        let told = told(known & !(1 << 24) & !(1 << 5), known);
        assert!(told[0].ends_with(": CAP_KILL, CAP_SYS_RESOURCE"), "{told:?}");
        assert!(told[1].contains("oom_score_adj"), "{told:?}");
    }
}
