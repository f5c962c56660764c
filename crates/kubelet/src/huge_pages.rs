//! Huge pages: which sizes a machine has, and how much of each a pod or container may have. All of it pure but [`sizes`].

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What comes before the size in the name of a resource.
const PREFIX: &str = "hugepages-";

/// The sizes of this machine's huge pages, in bytes.
pub(crate) fn sizes() -> Vec<u64> {
    let entries = std::fs::read_dir(Path::new("/sys/kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut sizes: Vec<u64> =
        entries.filter_map(|entry| size_of(&entry.file_name().to_string_lossy())).collect();
    sizes.sort_unstable();
    sizes
}

/// The size that a directory of sysfs is named after: `hugepages-2048kB`.
pub(crate) fn size_of(directory: &str) -> Option<u64> {
    let kib: u64 = directory.strip_prefix(PREFIX)?.strip_suffix("kB")?.parse().ok()?;
    Some(kib << 10)
}

/// A size as the files of cgroups are named after it: `2MB`.
pub(crate) fn file_name(size: u64) -> String {
    let (mut size, mut units) = (size, ["B", "KB", "MB", "GB"].iter());
    let mut unit = units.next();
    while size >= 1024
        && size.is_multiple_of(1024)
        && let Some(larger) = units.next()
    {
        size >>= 10;
        unit = Some(larger);
    }
    format!("{size}{}", unit.unwrap_or(&"B"))
}

/// How many bytes in pages of that size are asked for: the name is a quantity, and may be written in several ways.
pub(crate) fn amount(amounts: Option<&BTreeMap<String, Quantity>>, size: u64) -> Option<i64> {
    let is_that = |name: &str| {
        let parsed = name.strip_prefix(PREFIX).and_then(|text| manifest::quantity::parse(text).ok());
        parsed.is_some_and(|amount| u64::try_from(amount.ceil()) == Ok(size))
    };
    let (_, quantity) = amounts?.iter().find(|(name, _)| is_that(name))?;
    Some(manifest::quantity::parse(&quantity.0).ok()?.ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_as_sysfs_cgroups_and_resources_do() {
        for (directory, size, file, resources) in [
            ("hugepages-64kB", 64 << 10, "64KB", ["hugepages-64Ki", "hugepages-65536"]),
            ("hugepages-2048kB", 2 << 20, "2MB", ["hugepages-2Mi", "hugepages-2048Ki"]),
            ("hugepages-1048576kB", 1 << 30, "1GB", ["hugepages-1Gi", "hugepages-1024Mi"]),
            ("hugepages-16777216kB", 16 << 30, "16GB", ["hugepages-16Gi", "hugepages-17179869184"]),
        ] {
            assert_eq!(size_of(directory), Some(size));
            assert_eq!(file_name(size), file);
            for resource in resources {
                let amounts = BTreeMap::from([(resource.to_owned(), Quantity("32Gi".to_owned()))]);
                assert_eq!(amount(Some(&amounts), size), Some(32 << 30), "{resource}");
                assert_eq!(amount(Some(&amounts), size + 1), None);
            }
        }
        assert_eq!(size_of("other"), None);
        assert_eq!(amount(None, 1), None);
    }
}
