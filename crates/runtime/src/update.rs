//! UpdateContainerResources: new limits for a container, all of them or none. UpdatePodSandboxResources: written down; a pod's own
//! cgroup belongs to the client that made it.

use std::sync::Arc;

use cri::v1;
use host::cgroup::Limits;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, Spec};

use crate::containers::read_spec;
use crate::error::Error;
use crate::record::ContainerPhase;
use crate::runtime::Runtime;
use crate::state::Container;

impl Runtime {
    /// Changes what is given, and leaves what is zero or empty as it is. A container that has not been started gets the
    /// limits when it is; one that has exited has none.
    pub(crate) async fn update_container(
        self: &Arc<Self>,
        id: &str,
        asked: v1::LinuxContainerResources,
    ) -> Result<(), Error> {
        let container = self.index().container(id)?;
        let _busy = container.busy.lock().await;
        let record = container.record();
        let old = record.config.linux.clone().unwrap_or_default().resources.unwrap_or_default();
        let new = merged(&old, asked)?;
        match record.phase {
            ContainerPhase::Exited(_) | ContainerPhase::Starting => {
                return Err(Error::WrongState(format!("container {id} is not in created or running state")));
            }
            ContainerPhase::Running { .. } => self.set_limits(&record.cgroup, &old, &new)?,
            // Planned again when it is started.
            ContainerPhase::Created => drop(container.take_plan()),
        }
        write_down(&container, &new, self.limits_swap)
    }

    /// On an error the old limits are back.
    fn set_limits(
        &self,
        path: &str,
        old: &v1::LinuxContainerResources,
        new: &v1::LinuxContainerResources,
    ) -> Result<(), Error> {
        let fail = |source| Error::Cgroup { path: path.to_owned(), source };
        let cgroup = self.cgroups.open(path).map_err(fail)?;
        let wanted = limits(new, self.limits_swap);
        let Err(error) = cgroup.set(&wanted) else { return Ok(()) };
        if let Err(error) = cgroup.set(&before(&limits(old, self.limits_swap), &wanted)) {
            tracing::error!(cgroup = path, %error, "the former limits are not back");
        }
        Err(fail(error))
    }

    /// UpdatePodSandboxResources: the client has changed the pod's cgroup itself; what it says is kept for those who ask.
    pub(crate) fn update_sandbox(&self, request: v1::UpdatePodSandboxResourcesRequest) -> Result<(), Error> {
        let sandbox = self.index().sandbox(&request.pod_sandbox_id)?;
        sandbox.update(|record| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = request.overhead.or(linux.overhead.take());
            linux.resources = request.resources.or(linux.resources.take());
        })
    }
}

/// The record is what CRI tells, `config.json` what a later start and the tools of the OCI runtime look at.
fn write_down(
    container: &Container,
    new: &v1::LinuxContainerResources,
    limits_swap: bool,
) -> Result<(), Error> {
    let path = container.directory.join("config.json");
    let mut spec = read_spec(&container.directory)?;
    change_spec(&mut spec, limits(new, limits_swap));
    let text = serde_json::to_vec(&spec).map_err(|error| Error::io("write", &path)(error.into()))?;
    host::state_file::write_atomic(&path, &text, 0o600).map_err(Error::io("write", &path))?;
    container.change(|record| {
        record.config.linux.get_or_insert_default().resources = Some(new.clone());
    })
}

/// What is asked over what there was. What cannot be changed in a running cgroup is refused.
fn merged(
    old: &v1::LinuxContainerResources,
    asked: v1::LinuxContainerResources,
) -> Result<v1::LinuxContainerResources, Error> {
    if !asked.hugepage_limits.is_empty() {
        return Err(Error::Invalid("huge page limits of a container cannot be changed".into()));
    }
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
    let mut unified = old.unified.clone();
    unified.extend(asked.unified);
    Ok(v1::LinuxContainerResources {
        cpu_period: number(asked.cpu_period, old.cpu_period),
        cpu_quota: number(asked.cpu_quota, old.cpu_quota),
        cpu_shares: number(asked.cpu_shares, old.cpu_shares),
        memory_limit_in_bytes: number(asked.memory_limit_in_bytes, old.memory_limit_in_bytes),
        // It is decided at the start of a process.
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(asked.cpuset_cpus, &old.cpuset_cpus),
        cpuset_mems: text(asked.cpuset_mems, &old.cpuset_mems),
        hugepage_limits: old.hugepage_limits.clone(),
        unified,
        memory_swap_limit_in_bytes: number(asked.memory_swap_limit_in_bytes, old.memory_swap_limit_in_bytes),
    })
}

/// `limits_swap`: what is limited does not go on in the swap, where the machine can tell.
fn limits(resources: &v1::LinuxContainerResources, limits_swap: bool) -> Limits {
    let given = |value: i64| (value != 0).then_some(value);
    let memory_limit = given(resources.memory_limit_in_bytes);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    Limits {
        cpu_shares: u64::try_from(resources.cpu_shares).ok().filter(|shares| *shares > 0),
        cpu_quota: given(resources.cpu_quota),
        cpu_period: u64::try_from(resources.cpu_period).ok().filter(|period| *period > 0),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        memory_limit,
        memory_swap: given(resources.memory_swap_limit_in_bytes).or(memory_limit.filter(|_| limits_swap)),
        unified: resources.unified.clone().into_iter().collect(),
        ..Limits::default()
    }
}

/// What undoes `wanted`: the old limits, and the kernel's defaults where there was none.
fn before(old: &Limits, wanted: &Limits) -> Limits {
    let or = |old: Option<i64>, wanted: Option<i64>| old.or(wanted.map(|_| -1));
    Limits {
        cpu_shares: old.cpu_shares.or(wanted.cpu_shares.map(|_| 1024)),
        cpu_quota: or(old.cpu_quota, wanted.cpu_quota),
        memory_limit: or(old.memory_limit, wanted.memory_limit),
        memory_swap: or(old.memory_swap, wanted.memory_swap),
        ..old.clone()
    }
}

fn change_spec(spec: &mut Spec, wanted: Limits) {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut cpu: LinuxCpu = resources.cpu().clone().unwrap_or_default();
    cpu.set_shares(wanted.cpu_shares)
        .set_quota(wanted.cpu_quota)
        .set_period(wanted.cpu_period)
        .set_cpus(wanted.cpuset_cpus)
        .set_mems(wanted.cpuset_mems);
    let mut memory: LinuxMemory = resources.memory().unwrap_or_default();
    memory.set_limit(wanted.memory_limit).set_swap(wanted.memory_swap);
    resources.set_cpu(Some(cpu)).set_memory(Some(memory));
    if !wanted.unified.is_empty() {
        resources.set_unified(Some(wanted.unified.into_iter().collect()));
    }
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 7,
            ..Default::default()
        }
    }

    #[test]
    fn only_what_is_given_changes() {
        let asked = v1::LinuxContainerResources {
            cpu_quota: -1,
            oom_score_adj: 500,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let expected = v1::LinuxContainerResources { cpu_quota: -1, cpuset_cpus: "0".into(), ..old() };
        assert_eq!(merged(&old(), asked).expect("it can be changed"), expected);
        assert_eq!(merged(&old(), Default::default()).expect("nothing changes"), old());
    }

    #[test]
    fn huge_pages_are_refused_by_name() {
        let limit = v1::HugepageLimit { page_size: "2MB".into(), limit: 1 };
        let asked = v1::LinuxContainerResources { hugepage_limits: vec![limit], ..Default::default() };
        assert!(merged(&old(), asked).expect_err("no").to_string().contains("huge page"));
    }

    #[test]
    fn a_limit_that_was_not_there_is_taken_away_again() {
        let had = Limits { memory_limit: Some(5), ..Limits::default() };
        let wanted = Limits {
            memory_limit: Some(9),
            memory_swap: Some(9),
            cpu_shares: Some(2),
            cpu_quota: Some(3),
            ..Limits::default()
        };
        let expected = Limits {
            memory_limit: Some(5),
            memory_swap: Some(-1),
            cpu_shares: Some(1024),
            cpu_quota: Some(-1),
            ..Limits::default()
        };
        assert_eq!(before(&had, &wanted), expected);
    }

    #[test]
    fn config_json_says_the_new_limits_and_keeps_the_rest() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "linux": {"resources": {"pids": {"limit": 5}, "memory": {"limit": 1, "reservation": 3}}}}"#,
        )
        .expect("a spec");
        change_spec(&mut spec, limits(&old(), true));
        let value = serde_json::to_value(&spec).expect("JSON");
        let resources = &value["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 1 << 20);
        assert_eq!(resources["memory"]["swap"], 1 << 20);
        assert_eq!(resources["memory"]["reservation"], 3);
        assert_eq!(resources["cpu"]["shares"], 512);
        assert_eq!(resources["pids"]["limit"], 5);
    }
}
