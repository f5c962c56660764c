//! Which controllers a set of limits needs.

use super::Limits;

/// Controllers in the names that both versions share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    Cpuset,
    Memory,
    Pids,
    Io,
    Hugetlb,
    NetCls,
    NetPrio,
}

impl Controller {
    /// As v2 has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            other => other.v1_name(),
        }
    }

    /// As v1 has it.
    pub(super) fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            Self::Hugetlb => "hugetlb",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl Limits {
    /// The controllers that these limits write to.
    pub(super) fn controllers(&self) -> Vec<Controller> {
        let cpu = self.cpu_shares.is_some()
            || self.cpu_quota.is_some()
            || self.cpu_period.is_some()
            || self.cpu_burst.is_some()
            || self.cpu_idle.is_some()
            || self.has_v1_file("cpu.");
        let cpuset = self.cpuset_cpus.is_some() || self.cpuset_mems.is_some();
        let memory = self.memory_limit.is_some()
            || self.memory_reservation.is_some()
            || self.memory_swap.is_some()
            || self.has_v1_file("memory.")
            || self.accounting;
        let wanted = [
            (cpu, Controller::Cpu),
            (cpuset, Controller::Cpuset),
            (memory, Controller::Memory),
            (self.pids.is_some(), Controller::Pids),
            (!self.io.is_empty(), Controller::Io),
            (!self.hugepages.is_empty(), Controller::Hugetlb),
            (self.has_v1_file("net_cls."), Controller::NetCls),
            (self.has_v1_file("net_prio."), Controller::NetPrio),
        ];
        wanted.into_iter().filter_map(|(needed, controller)| needed.then_some(controller)).collect()
    }

    fn has_v1_file(&self, prefix: &str) -> bool {
        self.v1_only.keys().any(|name| name.starts_with(prefix))
    }
}
