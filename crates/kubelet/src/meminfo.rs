//! Lines of /proc/meminfo. Pure.

/// The line of that name, in bytes.
pub(crate) fn bytes(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Bytes that are not free.
pub(crate) fn usage(meminfo: &str) -> Option<u64> {
    Some(bytes(meminfo, "MemTotal")?.saturating_sub(bytes(meminfo, "MemFree")?))
}

/// As cAdvisor counts it for the root cgroup of v2: what is not free, without the page cache that is dropped first.
pub(crate) fn working_set(meminfo: &str) -> Option<u64> {
    Some(usage(meminfo)?.saturating_sub(bytes(meminfo, "Inactive(file)").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        assert_eq!(bytes("MemTotal:       16 kB\nMemFree: 1 kB\n", "MemTotal"), Some(16_384));
        assert_eq!(bytes("MemTotal: 16 kB\n", "Mem"), None);
    }

    #[test]
    fn page_cache_that_is_dropped_first_is_not_in_use() {
        let meminfo = "MemTotal:  1000 kB\nMemFree:  400 kB\nInactive:  9 kB\nInactive(file):  100 kB\n";
        assert_eq!(working_set(meminfo), Some(500 * 1024));
        assert_eq!(working_set(""), None);
    }
}
