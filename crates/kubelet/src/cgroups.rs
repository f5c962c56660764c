//! The kubepods cgroup tree: `kubepods[/burstable|/besteffort]/pod<uid>`, on any runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cri::v1::{HugepageLimit, LinuxContainerResources};
use host::cgroup::usage::MemoryUsage;
use host::cgroup::{CgroupError, CgroupManager, Limits, Version};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::KubeletError;
use crate::huge_pages;
use crate::pod::model::{Pod, QosClass, Role};
use crate::pod::own_resources;
use crate::sizing::{Held, ReservedCgroup};

/// The kernel's smallest weight. Upstream: pkg/kubelet/cm/helpers_linux.go.
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Microseconds.
const PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;
/// Of tasks.
const NO_LIMIT: i64 = -1;

/// The tree of this node.
#[derive(Clone, Debug)]
pub(crate) struct PodCgroups {
    manager: CgroupManager,
    root: String,
    /// What all pods together are held to, if anything.
    held: Option<Held>,
    /// Tasks that one pod may have.
    pod_pids: Option<i64>,
    /// The sizes of huge pages that cgroups can limit here, in bytes.
    page_sizes: Vec<u64>,
    /// What each Burstable pod asks for, in thousandths of a CPU, by uid: together the weight of their class.
    burstable: Arc<Mutex<BTreeMap<String, i64>>>,
}

impl PodCgroups {
    /// Looks at the machine's cgroups, and holds all pods together to `held`, each of them to `pod_pids` tasks.
    pub(crate) fn open(root: &str, held: Option<Held>, pod_pids: Option<i64>) -> Result<Self, CgroupError> {
        let root = root.trim_end_matches('/').to_owned();
        let manager = CgroupManager::detect()?;
        let page_sizes = if manager.limits_huge_pages() { huge_pages::sizes() } else { Vec::new() };
        let cgroups = Self { manager, root, held, pod_pids, page_sizes, burstable: Arc::default() };
        if let Some(Err(error)) = held.map(|limits| cgroups.hold_all_to(limits)) {
            tracing::warn!(%error, "all pods together are not held to what the node can give");
        }
        Ok(cgroups)
    }

    /// CRI's limits of one container of a pod whose cgroup there is, with what depends on this machine: on cgroup v2 it is killed as a
    /// whole (upstream: `singleProcessOOMKill` being off), and it swaps nothing where the kernel can tell.
    pub(crate) fn container(&self, pod: &Pod, container: &v1::Container) -> LinuxContainerResources {
        let mut resources = container_resources(pod, container);
        resources.hugepage_limits = huge_pages_of_container(pod, container, &self.page_sizes);
        if self.manager.has_oom_groups() {
            resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
        if self.manager.open(&self.path(pod)).is_ok_and(|cgroup| cgroup.limits_swap()) {
            forbid_swap(&mut resources, self.manager.version());
        }
        resources
    }

    /// The pod's cgroup: what CRI calls the cgroup parent.
    pub(crate) fn path(&self, pod: &Pod) -> String {
        let class = match pod.qos {
            QosClass::Guaranteed => "",
            QosClass::Burstable => "/burstable",
            QosClass::BestEffort => "/besteffort",
        };
        format!("{}/kubepods{class}/pod{}", self.root, pod.uid)
    }

    /// Makes the pod's cgroup with the sum of its containers' requests and limits, and gives its class the weight of its pods.
    pub(crate) fn create(&self, pod: &Pod) -> Result<(), CgroupError> {
        let limits = Limits {
            pids: self.pids_of_pods(),
            hugepages: huge_pages_of_pod(pod, &self.page_sizes),
            ..pod_limits(pod)
        };
        self.manager.create(&self.path(pod), &limits)?;
        self.count(pod);
        match pod.qos {
            QosClass::Guaranteed => Ok(()),
            QosClass::Burstable => self.weigh("burstable", shares_of(self.burstable_request())),
            QosClass::BestEffort => self.weigh("besteffort", MIN_SHARES),
        }
    }

    /// What a pod's cgroup says of tasks: where only all pods together are limited, it must still lie below them.
    fn pids_of_pods(&self) -> Option<i64> {
        let below_a_limit = self.held.is_some_and(|held| held.pids.is_some());
        self.pod_pids.or(below_a_limit.then_some(NO_LIMIT))
    }

    /// Counts a pod that is there already.
    pub(crate) fn count(&self, pod: &Pod) {
        if pod.qos == QosClass::Burstable {
            self.requests().insert(pod.uid.clone(), cpu_request_of(pod));
        }
    }

    fn burstable_request(&self) -> i64 {
        self.requests().values().sum()
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.burstable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weigh(&self, class: &str, shares: i64) -> Result<(), CgroupError> {
        let limits = Limits { cpu_shares: u64::try_from(shares).ok(), ..Limits::default() };
        self.manager.create(&format!("{}/kubepods/{class}", self.root), &limits).map(drop)
    }

    fn hold_all_to(&self, held: Held) -> Result<(), CgroupError> {
        let limits = Limits { accounting: true, ..limits_of(held) };
        self.manager.create(&format!("{}/kubepods", self.root), &limits).map(drop)
    }

    /// Removes the cgroup of the pod with that uid, whatever its class; one that is gone is no error.
    pub(crate) fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        for class in ["", "/burstable", "/besteffort"] {
            self.manager.open(&format!("{}/kubepods{class}/pod{uid}", self.root))?.remove()?;
        }
        let was_counted = self.requests().remove(uid).is_some();
        if was_counted && !self.requests().is_empty() {
            self.weigh("burstable", shares_of(self.burstable_request()))?;
        }
        Ok(())
    }

    /// Removes the classes that no pod is in any more; one that has pods stays.
    pub(crate) fn remove_empty_classes(&self) {
        let all = ["/burstable", "/besteffort", ""];
        // What all pods are held to stays.
        for class in &all[..if self.held.is_some() { 2 } else { 3 }] {
            if let Ok(cgroup) = self.manager.open(&format!("{}/kubepods{class}", self.root)) {
                for (_, directory) in cgroup.directories() {
                    // Not empty: a pod is in it.
                    let _ = std::fs::remove_dir(directory);
                }
            }
        }
    }
}

/// Holds a cgroup of the machine, which is never made, to what is reserved for it.
pub(crate) fn hold_reserved(reserved: &ReservedCgroup) -> Result<(), KubeletError> {
    let held = CgroupManager::detect()
        .and_then(|manager| manager.update_existing(&reserved.path, &limits_of(reserved.held)));
    let (key, path) = (reserved.key, &reserved.path);
    held.map_err(|source| KubeletError::Reserved { key, path: path.clone(), source })
}

fn limits_of(held: Held) -> Limits {
    let amount = |value: Option<u64>| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    Limits {
        cpu_shares: amount(held.millicpu).and_then(|milli| u64::try_from(shares_of(milli)).ok()),
        memory_limit: amount(held.memory).filter(|bytes| *bytes > 0),
        // The kernel takes 0 for none at all; nothing left is not the same as no limit.
        pids: amount(held.pids).map(|pids| pids.max(1)),
        ..Limits::default()
    }
}

/// How much memory a cgroup uses; nothing for the whole machine, or without accounting there.
pub(crate) fn memory_of(path: &str) -> Option<MemoryUsage> {
    if path.trim_matches('/').is_empty() {
        return None;
    }
    let cgroup = CgroupManager::detect().ok()?.open(path).ok()?;
    if cgroup.exists() { cgroup.usage().memory } else { None }
}

/// A limit of the pod: its own, else that of all containers where each has one.
fn pod_limits(pod: &Pod) -> Limits {
    let overhead = overhead(pod);
    let sum = |amount: &dyn Fn(&v1::Container) -> Option<i64>| most_at_once(pod, amount);
    let (cpu, memory) =
        (amount(overhead, "cpu", milli).unwrap_or(0), amount(overhead, "memory", bytes).unwrap_or(0));
    let requests = cpu_request_of(pod);
    let of_all =
        |name: &str, of: Unit| own_limit(pod, name, of).or_else(|| sum(&|one| amount(limits(one), name, of)));
    let quota = of_all("cpu", milli).map(|limit| quota_of(limit + cpu));
    Limits {
        cpu_shares: u64::try_from(shares_of(requests)).ok(),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD.unsigned_abs()),
        memory_limit: of_all("memory", bytes).map(|limit| limit + memory),
        accounting: true,
        ..Limits::default()
    }
}

/// Bytes in huge pages of each size, by the size's name: none of what the pod does not ask for.
fn huge_pages_of_pod(pod: &Pod, sizes: &[u64]) -> BTreeMap<String, u64> {
    let limit = |size: u64| {
        let of_containers =
            || most_at_once(pod, &|one| Some(huge_pages::amount(limits(one), size).unwrap_or(0)));
        let own = huge_pages::amount(pod_level_limits(pod), size).or_else(of_containers);
        let overhead = huge_pages::amount(overhead(pod), size);
        u64::try_from(own.unwrap_or(0) + overhead.unwrap_or(0)).unwrap_or(0)
    };
    sizes.iter().map(|&size| (huge_pages::file_name(size), limit(size))).collect()
}

/// The same of one container; what it does not say is what its pod says.
fn huge_pages_of_container(pod: &Pod, container: &v1::Container, sizes: &[u64]) -> Vec<HugepageLimit> {
    let limit = |size: u64| {
        let own = huge_pages::amount(limits(container), size);
        own.or_else(|| huge_pages::amount(pod_level_limits(pod), size)).unwrap_or(0)
    };
    let all = sizes.iter().map(|&size| HugepageLimit {
        page_size: huge_pages::file_name(size),
        limit: u64::try_from(limit(size)).unwrap_or(0),
    });
    all.collect()
}

fn pod_level_limits(pod: &Pod) -> Amounts<'_> {
    pod.source.spec.as_ref()?.resources.as_ref()?.limits.as_ref()
}

/// Thousandths of a CPU that the pod asks for, with its overhead.
fn cpu_request_of(pod: &Pod) -> i64 {
    let of_containers = || most_at_once(pod, &|container| Some(cpu_request(container).unwrap_or(0)));
    let request = own_request(pod, "cpu", milli).or_else(of_containers);
    request.unwrap_or(0) + amount(overhead(pod), "cpu", milli).unwrap_or(0)
}

fn overhead(pod: &Pod) -> Amounts<'_> {
    pod.source.spec.as_ref()?.overhead.as_ref()
}

/// What the pod needs at the moment it needs most: its main containers and sidecars together, or one init container with the
/// sidecars before it. Nothing when a container does not say. Upstream: resource helpers, PodRequests and PodLimits.
pub(crate) fn most_at_once(pod: &Pod, amount: &dyn Fn(&v1::Container) -> Option<i64>) -> Option<i64> {
    let (mut sidecars, mut most) = (0, 0);
    for init in &pod.init_containers {
        let own = amount(&init.spec)?;
        most = most.max(sidecars + own);
        if init.role == Role::Sidecar {
            sidecars += own;
        }
    }
    let main = pod.containers.iter().map(|container| amount(&container.spec)).sum::<Option<i64>>()?;
    Some(most.max(sidecars + main))
}

/// CRI's limits of one container; without one it may have all that its pod has.
fn container_resources(pod: &Pod, container: &v1::Container) -> LinuxContainerResources {
    let given = |name: &str, of: Unit| amount(limits(container), name, of).filter(|limit| *limit > 0);
    let limit = |name: &str, of: Unit| given(name, of).or_else(|| own_limit(pod, name, of));
    let memory = amount(requests(container), "memory", bytes).unwrap_or(0) + share_of_rest(pod);
    let quota = limit("cpu", milli).map(quota_of);
    let shares = amount(requests(container), "cpu", milli).or_else(|| limit("cpu", milli));
    LinuxContainerResources {
        cpu_shares: shares_of(shares.unwrap_or(0)),
        cpu_quota: quota.unwrap_or(0),
        cpu_period: PERIOD,
        memory_limit_in_bytes: limit("memory", bytes).unwrap_or(0),
        oom_score_adj: oom_score_adj(pod.qos, memory, memory_capacity()),
        ..Default::default()
    }
}

/// On v1 memory and swap are limited together, and only beside a limit of memory. Upstream: `NoSwap`.
fn forbid_swap(resources: &mut LinuxContainerResources, version: Version) {
    match version {
        Version::V1 => resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes,
        Version::V2 => drop(resources.unified.insert("memory.swap.max".to_owned(), "0".to_owned())),
    }
}

/// Who is killed first. Upstream: pkg/kubelet/qos/policy.go.
fn oom_score_adj(qos: QosClass, request: i64, capacity: i64) -> i64 {
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => (1000 - 1000 * request / capacity.max(1)).clamp(3, 999),
    }
}

/// What a pod asks for beyond its containers' requests of memory, for each of them. Upstream: KEP-2837, OOM score adjustment.
fn share_of_rest(pod: &Pod) -> i64 {
    let Some(own) = own_request(pod, "memory", bytes) else { return 0 };
    let asked = most_at_once(pod, &|one| Some(amount(requests(one), "memory", bytes).unwrap_or(0)));
    let sidecars = pod.init_containers.iter().filter(|one| one.role == Role::Sidecar).count();
    let containers = i64::try_from(pod.containers.len() + sidecars).unwrap_or(1).max(1);
    (own - asked.unwrap_or(0)).max(0) / containers
}

fn own_request(pod: &Pod, name: &str, of: Unit) -> Option<i64> {
    of(own_resources::request(pod.source.spec.as_ref()?, name)?)
}

fn own_limit(pod: &Pod, name: &str, of: Unit) -> Option<i64> {
    of(own_resources::limit(pod.source.spec.as_ref()?, name)?)
}

fn shares_of(milli: i64) -> i64 {
    if milli == 0 { MIN_SHARES } else { (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

fn quota_of(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * PERIOD / 1000).max(MIN_QUOTA) }
}

/// A limit without a request is the request too.
fn cpu_request(container: &v1::Container) -> Option<i64> {
    amount(requests(container), "cpu", milli).or_else(|| amount(limits(container), "cpu", milli))
}

type Amounts<'a> = Option<&'a BTreeMap<String, Quantity>>;

/// [`milli`] or [`bytes`].
type Unit = fn(&Quantity) -> Option<i64>;

fn limits(container: &v1::Container) -> Amounts<'_> {
    container.resources.as_ref()?.limits.as_ref()
}

fn requests(container: &v1::Container) -> Amounts<'_> {
    container.resources.as_ref()?.requests.as_ref()
}

fn amount(amounts: Amounts<'_>, name: &str, of: Unit) -> Option<i64> {
    of(amounts?.get(name)?)
}

fn milli(quantity: &Quantity) -> Option<i64> {
    Some(manifest::quantity::parse(&quantity.0).ok()?.milli())
}

fn bytes(quantity: &Quantity) -> Option<i64> {
    Some(manifest::quantity::parse(&quantity.0).ok()?.ceil())
}

/// Bytes of memory of this machine.
fn memory_capacity() -> i64 {
    static BYTES: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = crate::meminfo::bytes(&text, "MemTotal");
        total.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::model::tests::pod_of;

    #[test]
    fn shares_and_quota_are_upstreams() {
        for (milli, shares) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(shares_of(milli), shares, "{milli}");
        }
        for (milli, quota) in [(0, 0), (1, 1000), (500, 50_000), (2000, 200_000)] {
            assert_eq!(quota_of(milli), quota, "{milli}");
        }
    }

    #[test]
    fn a_pod_gets_what_it_needs_at_its_most_demanding_moment() {
        let container = |name: &str, cpu: &str, extra: &str| {
            let text = format!(
                r#"{{ "name": "{name}", "image": "i", "resources": {{ "limits": {{ "cpu": "{cpu}" }} }}{extra} }}"#
            );
            serde_json::from_str::<serde_json::Value>(&text).expect("a container")
        };
        let sidecar = r#", "restartPolicy": "Always""#;
        for (init, expect) in [
            (vec![], 300),
            (vec![container("s", "200m", sidecar)], 500),
            (vec![container("s", "200m", sidecar), container("i", "400m", "")], 600),
            (vec![container("i", "400m", ""), container("s", "200m", sidecar)], 500),
        ] {
            let main = [container("a", "100m", ""), container("b", "200m", "")];
            let pod = pod_of(serde_json::json!({ "initContainers": init, "containers": main }));
            assert_eq!(pod_limits(&pod).cpu_quota, Some(expect * 100), "{init:?}");
        }
        let unlimited = serde_json::json!({ "name": "i", "image": "i" });
        let pod = pod_of(
            serde_json::json!({ "initContainers": [unlimited], "containers": [container("a", "1", "")] }),
        );
        assert_eq!(pod_limits(&pod).cpu_quota, None);
    }

    #[test]
    fn a_pod_with_resources_of_its_own_is_held_to_them_and_its_containers_share_them() {
        let pod = pod_of(serde_json::json!({
            "resources": { "requests": { "cpu": "500m", "memory": "100" }, "limits": { "cpu": "2", "memory": "1000" } },
            "overhead": { "cpu": "100m", "memory": "10" },
            "containers": [
                { "name": "a", "image": "i", "resources": { "requests": { "memory": "40" }, "limits": { "memory": "200" } } },
                { "name": "b", "image": "i" },
            ],
        }));
        let limits = pod_limits(&pod);
        assert_eq!((limits.cpu_quota, limits.memory_limit), (Some(210_000), Some(1010)));
        assert_eq!(limits.cpu_shares, Some(614));
        let of = |index: usize| container_resources(&pod, &pod.containers[index].spec);
        assert_eq!((of(0).cpu_quota, of(0).memory_limit_in_bytes), (200_000, 200));
        assert_eq!((of(1).cpu_quota, of(1).memory_limit_in_bytes), (200_000, 1000));
        assert_eq!((of(0).cpu_shares, of(1).cpu_shares), (2048, 2048));
        assert_eq!(share_of_rest(&pod), 30);
    }

    #[test]
    fn pods_lie_where_tasks_are_counted_if_they_all_or_each_have_a_limit() {
        let none = Held::default();
        let some = Held { pids: Some(100), ..none };
        for (held, pod_pids, expect) in [
            (None, None, None),
            (Some(none), None, None),
            (Some(some), None, Some(NO_LIMIT)),
            (Some(some), Some(20), Some(20)),
            (None, Some(20), Some(20)),
        ] {
            let cgroups = PodCgroups {
                manager: CgroupManager::detect().expect("cgroups"),
                root: String::new(),
                held,
                pod_pids,
                page_sizes: Vec::new(),
                burstable: Arc::default(),
            };
            assert_eq!(cgroups.pids_of_pods(), expect, "{held:?} {pod_pids:?}");
        }
    }

    #[test]
    fn what_is_left_for_pods_becomes_limits() {
        let held = Held { millicpu: Some(1500), memory: Some(1 << 30), pids: Some(0) };
        let limits = limits_of(held);
        assert_eq!(
            (limits.cpu_shares, limits.memory_limit, limits.pids),
            (Some(1536), Some(1 << 30), Some(1))
        );
        assert_eq!(limits_of(Held::default()), Limits::default());
    }

    #[test]
    fn huge_pages_are_limited_to_what_is_asked_for_and_others_to_none() {
        let sizes = [2 << 20, 1 << 30];
        let pod = pod_of(serde_json::json!({
            "initContainers": [
                { "name": "i", "image": "i", "resources": { "limits": { "hugepages-1Gi": "1Gi" } } },
            ],
            "containers": [
                { "name": "a", "image": "i", "resources": { "limits": { "hugepages-2Mi": "4Mi" } } },
                { "name": "b", "image": "i", "resources": { "limits": { "hugepages-2048Ki": "6Mi" } } },
                { "name": "c", "image": "i" },
            ],
        }));
        let of_pod = |pod: &Pod| huge_pages_of_pod(pod, &sizes).into_values().collect::<Vec<_>>();
        let of = |pod: &Pod, container: &v1::Container| {
            let limits = huge_pages_of_container(pod, container, &sizes);
            limits.into_iter().map(|one| format!("{} {}", one.page_size, one.limit)).collect::<Vec<_>>()
        };
        // By name: 1GB, 2MB.
        assert_eq!(of_pod(&pod), [1 << 30, 10 << 20]);
        assert_eq!(of(&pod, &pod.init_containers[0].spec), ["2MB 0", "1GB 1073741824"]);
        assert_eq!(of(&pod, &pod.containers[1].spec), ["2MB 6291456", "1GB 0"]);
        assert_eq!(of(&pod, &pod.containers[2].spec), ["2MB 0", "1GB 0"]);
        let pod = pod_of(serde_json::json!({
            "resources": { "limits": { "hugepages-2Mi": "8Mi" } },
            "containers": [
                { "name": "a", "image": "i", "resources": { "limits": { "hugepages-2Mi": "4Mi" } } },
                { "name": "b", "image": "i" },
            ],
        }));
        assert_eq!(of_pod(&pod), [0, 8 << 20]);
        assert_eq!(of(&pod, &pod.containers[0].spec)[0], "2MB 4194304");
        assert_eq!(of(&pod, &pod.containers[1].spec)[0], "2MB 8388608");
        assert!(huge_pages_of_pod(&pod, &[]).is_empty());
    }

    #[test]
    fn a_container_swaps_nothing() {
        let limited = LinuxContainerResources { memory_limit_in_bytes: 1 << 20, ..Default::default() };
        for (version, resources, swap, file) in [
            (Version::V1, limited.clone(), 1 << 20, None),
            (Version::V1, LinuxContainerResources::default(), 0, None),
            (Version::V2, limited, 0, Some("0")),
            (Version::V2, LinuxContainerResources::default(), 0, Some("0")),
        ] {
            let mut resources = resources;
            forbid_swap(&mut resources, version);
            assert_eq!(resources.memory_swap_limit_in_bytes, swap);
            assert_eq!(resources.unified.get("memory.swap.max").map(String::as_str), file);
        }
    }

    #[test]
    fn who_is_killed_first_depends_on_the_class() {
        assert_eq!(oom_score_adj(QosClass::Guaranteed, 0, 100), -997);
        assert_eq!(oom_score_adj(QosClass::BestEffort, 0, 100), 1000);
        assert_eq!(oom_score_adj(QosClass::Burstable, 25, 100), 750);
        assert_eq!(oom_score_adj(QosClass::Burstable, 100, 100), 3);
        assert_eq!(oom_score_adj(QosClass::Burstable, 0, 100), 999);
    }
}
