//! Which controllers a set of limits needs.

use super::Limits;

/// Controllers in the names that both versions share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    Cpuset,
    Memory,
    Pids,
}

impl Controller {
    pub(super) fn name(self) -> &'static str {
        match self {
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
            || self.cpu_idle.is_some();
        let cpuset = self.cpuset_cpus.is_some() || self.cpuset_mems.is_some();
        let memory = self.memory_limit.is_some()
            || self.memory_reservation.is_some()
            || self.memory_swap.is_some()
            || self.accounting;
        let wanted = [
            (cpu, Controller::Cpu),
            (cpuset, Controller::Cpuset),
            (memory, Controller::Memory),
            (self.pids.is_some(), Controller::Pids),
        ];
        wanted.into_iter().filter_map(|(needed, controller)| needed.then_some(controller)).collect()
    }
}
