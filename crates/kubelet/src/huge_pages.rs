//! Huge pages: which sizes a machine has, and how much of each a pod or container may have. All of it pure but [`sizes`] and [`pools`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What comes before the size in the name of a resource.
const PREFIX: &str = "hugepages-";

/// Where sysfs tells of them.
pub(crate) const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The sizes of this machine's huge pages, in bytes.
pub(crate) fn sizes() -> Vec<u64> {
    pools(Path::new(POOLS)).into_iter().map(|(size, _)| size).collect()
}

/// The sizes that there are in that directory of sysfs, in order, each with the directory that tells of its pages.
pub(crate) fn pools(directory: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let pool = |entry: std::fs::DirEntry| Some((size_of(entry.file_name().to_str()?)?, entry.path()));
    let mut pools: Vec<_> = entries.filter_map(pool).collect();
    pools.sort_unstable();
    pools
}

/// The size that a directory of sysfs is named after: `hugepages-2048kB`.
fn size_of(directory: &str) -> Option<u64> {
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
    let (_, quantity) = amounts?.iter().find(|(name, _)| named_size(name) == Some(size))?;
    Some(manifest::quantity::parse(&quantity.0).ok()?.ceil())
}

fn named_size(resource: &str) -> Option<u64> {
    let amount = manifest::quantity::parse(resource.strip_prefix(PREFIX)?).ok()?;
    u64::try_from(amount.ceil()).ok()
}

/// The size of pages that an emptyDir of that medium has: the one it names, else the only one that the pod's containers ask for.
///
/// # Errors
/// When none is asked for, or several are, or this machine, which has pages of these `sizes`, has none of it.
pub(crate) fn of_medium(medium: &str, pod: &v1::PodSpec, sizes: &[u64]) -> Result<u64, String> {
    let asked = asked_sizes(pod);
    let size = match medium.strip_prefix("HugePages-") {
        Some(text) => {
            let size =
                manifest::quantity::parse(text).map_err(|error| format!("medium {medium:?}: {error}"))?;
            let size = u64::try_from(size.ceil()).unwrap_or(0);
            asked.contains(&size).then_some(size)
        }
        None if asked.len() > 1 => {
            return Err(format!("medium {medium}: the pod asks for huge pages of several sizes"));
        }
        None => asked.first().copied(),
    };
    let size = size.ok_or_else(|| format!("medium {medium}: no container asks for such huge pages"))?;
    match sizes.contains(&size) {
        true => Ok(size),
        false => Err(format!("medium {medium}: this machine has no huge pages of {}", file_name(size))),
    }
}

/// The sizes of huge pages that a pod asks for. Requests and limits are the same here.
fn asked_sizes(pod: &v1::PodSpec) -> BTreeSet<u64> {
    let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    let all = containers.filter_map(|one| one.resources.as_ref()).chain(&pod.resources);
    let named = all.flat_map(|one| [&one.requests, &one.limits]).flatten().flat_map(|amounts| amounts.keys());
    named.filter_map(|name| named_size(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_has_pages_that_the_pod_asks_for_and_the_machine_has() {
        for (medium, asked, expect) in [
            ("HugePages", &["hugepages-2Mi"][..], Ok(2 << 20)),
            ("HugePages-2Mi", &["hugepages-2Mi", "hugepages-1Gi"], Ok(2 << 20)),
            ("HugePages-1Gi", &["hugepages-2Mi", "hugepages-1Gi"], Err("no huge pages of 1GB")),
            ("HugePages", &["hugepages-2Mi", "hugepages-1Gi"], Err("several sizes")),
            ("HugePages", &["cpu"], Err("no container asks for such huge pages")),
            ("HugePages-1Gi", &["hugepages-2Mi"], Err("no container asks for such huge pages")),
            ("HugePages-x", &["hugepages-2Mi"], Err("medium \"HugePages-x\"")),
        ] {
            let limits: serde_json::Map<_, _> =
                asked.iter().map(|&name| (name.to_owned(), "4Gi".into())).collect();
            let pod =
                serde_json::json!({ "containers": [{ "name": "a", "resources": { "limits": limits } }] });
            let pod = serde_json::from_value(pod).expect("a pod");
            match (of_medium(medium, &pod, &[2 << 20]), expect) {
                (Ok(size), Ok(expect)) => assert_eq!(size, expect, "{medium}"),
                (Err(error), Err(expect)) => assert!(error.contains(expect), "{error}"),
                (other, _) => panic!("{medium} {asked:?}: {other:?}"),
            }
        }
    }

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
