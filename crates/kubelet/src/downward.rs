//! What a pod may tell its own containers: fields by path, resources in units of a divisor. Pure, but for [`Capacity::of_node`].

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use manifest::quantity::{self, Amount};

use crate::meminfo;
use crate::pod::model::Pod;
use crate::pod::own_resources;

/// What a reference can point at, beside the manifest.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodFacts {
    pub(crate) node_name: String,
    pub(crate) host_ips: Vec<String>,
    pub(crate) pod_ips: Vec<String>,
    pub(crate) capacity: Capacity,
}

/// What the node has: the limit of a container that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) cpus: u64,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes of the file system that holds the kubelet's directory.
    pub(crate) ephemeral_storage: u64,
    /// Tasks that the kernel lets be.
    pub(crate) pids: u64,
}

impl Capacity {
    /// Looks at the machine; what cannot be read is 0. A node that lives in a cgroup with a memory limit has no more than that.
    pub(crate) fn of_node(root: &Path, cgroup_root: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let limit = crate::cgroups::memory_of(cgroup_root).and_then(|memory| memory.limit);
        let disk = rustix::fs::statvfs(root).map_or(0, |stat| stat.f_blocks * stat.f_frsize);
        Self {
            cpus: count_cpus(&read("/sys/devices/system/cpu/online")),
            memory: meminfo::bytes(&read("/proc/meminfo"), "MemTotal")
                .unwrap_or(0)
                .min(limit.unwrap_or(u64::MAX)),
            ephemeral_storage: disk,
            pids: ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"]
                .iter()
                .filter_map(|path| read(path).trim().parse().ok())
                .min()
                .unwrap_or(0),
        }
    }

    fn of(&self, resource: &str) -> u64 {
        match resource {
            "cpu" => self.cpus,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            _ => 0,
        }
    }
}

/// Counts a list such as `0-3,8`.
fn count_cpus(list: &str) -> u64 {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    });
    ranges.sum()
}

/// A field of the pod as text, for a variable or a file.
///
/// # Errors
/// When the path is none that a pod can tell.
pub(crate) fn field(pod: &Pod, path: &str, facts: &PodFacts) -> Result<String, String> {
    let meta = &pod.source.metadata;
    let spec = pod.source.spec.as_ref();
    let keyed = |prefix: &str, map: &Option<BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default())
    };
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            let named = spec.and_then(|spec| spec.service_account_name.clone());
            named.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into())
        }
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => {
            return keyed("metadata.labels['", &meta.labels)
                .or_else(|| keyed("metadata.annotations['", &meta.annotations))
                .ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    })
}

/// `key="value"` by line, in the order of the keys, the last without a line's end.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// As Go quotes a string: programs parse these files so.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            control if control.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(control))),
            control if control.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out + "\""
}

/// A container's request or limit in units of the divisor, rounded up. A container without a limit has what its pod has, or the node.
///
/// # Errors
/// When there is no such container, or the resource is none that can be told.
pub(crate) fn resource(
    pod: &Pod,
    container: &str,
    selector: &v1::ResourceFieldSelector,
    capacity: Capacity,
) -> Result<String, String> {
    let mut all = pod.init_containers.iter().chain(&pod.containers);
    let found = all.find(|known| known.name == container);
    let found = found.ok_or_else(|| format!("container {container} not found"))?;
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known = manifest::resource::is_told(name);
    let resources = found.spec.resources.clone().unwrap_or_default();
    let (amounts, floor) = match kind {
        "limits" if known => (resources.limits, capacity.of(name)),
        "requests" if known => (resources.requests, 0),
        _ => return Err(unsupported()),
    };
    let of_pod = || {
        let spec = pod.source.spec.as_ref().filter(|_| kind == "limits")?;
        own_resources::limit(spec, name).and_then(amount)
    };
    let given = amounts.as_ref().and_then(|amounts| amount(amounts.get(name)?)).or_else(of_pod);
    let given = given.or_else(|| quantity::parse(&floor.to_string()).ok()).unwrap_or(Amount::ZERO);
    let divisor = selector.divisor.as_ref().and_then(amount);
    let divisor = divisor.or_else(|| quantity::parse("1").ok()).unwrap_or(Amount::ZERO);
    let in_units = |amount: Amount| if name == "cpu" { amount.milli() } else { amount.ceil() };
    let (given, divisor) = (in_units(given), in_units(divisor).max(1));
    Ok((given / divisor + i64::from(given % divisor != 0)).to_string())
}

/// Zero is none.
fn amount(quantity: &Quantity) -> Option<Amount> {
    quantity::parse(&quantity.0).ok().filter(|amount| !amount.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::model::tests::pod_of;

    fn pod() -> Pod {
        let mut source = pod_of(serde_json::json!({
            "serviceAccountName": "robot",
            "containers": [
                { "name": "a", "image": "i", "resources": { "limits": { "cpu": "1500m", "memory": "100Mi" }, "requests": { "cpu": "250m" } } },
                { "name": "b", "image": "i" },
            ],
        }));
        let mut v1 = (*source.source).clone();
        v1.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        v1.metadata.annotations = Some(
            [("b.example/x".to_owned(), "2".to_owned()), ("a".to_owned(), "say \"hi\"\n\u{1}é".to_owned())]
                .into(),
        );
        source.source = std::sync::Arc::new(v1);
        source
    }

    #[test]
    fn every_field_that_upstream_allows_is_told() {
        let facts = PodFacts {
            node_name: "n".into(),
            host_ips: vec!["192.0.2.2".into(), "fd01::2".into()],
            pod_ips: vec!["10.85.0.2".into(), "fd00::2".into()],
            capacity: Capacity::default(),
        };
        for (path, expect) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "default"),
            ("metadata.uid", "u"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"web\""),
            ("metadata.annotations['b.example/x']", "2"),
            ("metadata.annotations", "a=\"say \\\"hi\\\"\\n\\x01é\"\nb.example/x=\"2\""),
            ("spec.nodeName", "n"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "192.0.2.2"),
            ("status.hostIPs", "192.0.2.2,fd01::2"),
            ("status.podIP", "10.85.0.2"),
            ("status.podIPs", "10.85.0.2,fd00::2"),
        ] {
            assert_eq!(field(&pod(), path, &facts).as_deref(), Ok(expect), "{path}");
        }
        assert_eq!(field(&pod(), "spec.host", &facts), Err("unsupported fieldPath: spec.host".into()));
    }

    #[test]
    fn resources_are_rounded_up_in_units_of_the_divisor() {
        let capacity = Capacity { cpus: 4, memory: 8 << 30, ephemeral_storage: 1 << 40, pids: 0 };
        let told = |container: &str, resource_name: &str, divisor: &str| {
            let selector = v1::ResourceFieldSelector {
                container_name: None,
                divisor: Some(Quantity(divisor.into())),
                resource: resource_name.into(),
            };
            resource(&pod(), container, &selector, capacity)
        };
        for (container, name, divisor, expect) in [
            ("a", "limits.cpu", "0", "2"),
            ("a", "limits.cpu", "1m", "1500"),
            ("a", "requests.cpu", "1", "1"),
            ("a", "limits.memory", "1Mi", "100"),
            ("a", "limits.memory", "1Gi", "1"),
            ("a", "limits.memory", "0", "104857600"),
            ("b", "limits.cpu", "1", "4"),
            ("b", "limits.memory", "1Gi", "8"),
            ("b", "limits.ephemeral-storage", "1Gi", "1024"),
            ("b", "requests.memory", "1", "0"),
            ("b", "limits.hugepages-2Mi", "1", "0"),
        ] {
            assert_eq!(told(container, name, divisor).as_deref(), Ok(expect), "{container} {name} {divisor}");
        }
        assert_eq!(told("c", "limits.cpu", "1"), Err("container c not found".into()));
        assert_eq!(told("a", "limits.gpu", "1"), Err("unsupported container resource : limits.gpu".into()));
    }

    #[test]
    fn the_machine_s_own_words_are_read() {
        assert_eq!((count_cpus("0-3,8\n"), count_cpus("0"), count_cpus("")), (5, 1, 0));
    }
}
