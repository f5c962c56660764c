//! Makes the pods on this node match what a manifest directory or an API server asks for.
//!
//! It speaks CRI and knows no pids, no mounts of containers, no netlink. It owns volumes and the pod and QoS cgroups, on any
//! runtime. Begin with [`pod::plan`].

pub mod admission;
pub mod api;
pub mod certificates;
mod cgroups;
mod cri_requests;
mod downward;
mod env_files;
mod environment;
mod events;
mod eviction;
mod hosts;
mod huge_pages;
mod image_gc;
mod inputs;
pub mod join;
mod kept;
mod log_links;
mod log_rotation;
mod manager;
mod meminfo;
mod names;
mod node_logins;
mod orphans;
pub mod pod;
mod probe;
mod probe_counts;
mod pull_secrets;
mod report;
mod resolver;
pub mod server;
mod services;
mod sizing;
mod static_pod;
mod time;
mod tokens;
mod user_namespaces;
mod volumes;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use image_gc::ImageGcPolicy;
pub use inputs::Inputs;
pub use log_links::sweep_log_links;
pub use log_rotation::LogRotationPolicy;
pub use manager::{Parts, run};
pub use node_logins::NodeLogins;
pub use pod::worker::{forget_other_boots, remembered_pods, wanted_pods};
pub use probe_counts::ProbeCounts;
pub use pull_secrets::{DockerConfig, docker_logins};
pub use report::{NodeReport, StartTimes};
pub use sizing::{Held, MemoryThreshold, Reserved, ReservedCgroup, Sizing};
pub use static_pod::{
    CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE, is_mirror, is_mirror_of, mirror_pod, static_pod,
};
pub use time::BootTime;
pub use tokens::{Token, TokenRequest, TokenSource};

/// Where a kubelet keeps its things, and what it knows of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name: the default of a pod's `spec.nodeName`, and in events.
    pub node_name: String,
    /// The node's addresses, for `status.hostIPs`: one, or one of each family.
    pub node_ips: Vec<IpAddr>,
    /// `/var/lib/kubelet`: volumes and /etc/hosts of pods.
    pub root_dir: PathBuf,
    /// `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// `/var/log/containers`: links to those logs.
    pub container_logs_dir: PathBuf,
    /// The cgroup below which `kubepods` lies: `/`.
    pub cgroup_root: String,
    /// What must survive a restart of the agent, but not a boot: verdicts of probes, back-offs.
    pub state_dir: PathBuf,
    /// The node's resolv.conf.
    pub resolv_conf: PathBuf,
    /// The cluster's name servers; without one, pods that ask for them get the node's.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of Services and pods: `cluster.local`.
    pub cluster_domain: String,
    /// When images are removed.
    pub image_gc: ImageGcPolicy,
    /// When logs of containers are rotated.
    pub log_rotation: LogRotationPolicy,
    /// How much pods may have; all that there is on a node of its own.
    pub sizing: Option<Sizing>,
    /// Cgroups of the machine that are held to what is reserved for them.
    pub reserved_cgroups: Vec<ReservedCgroup>,
    /// Tasks that one pod may have at most (`podPidsLimit`).
    pub pod_pids_limit: Option<i64>,
    /// Whether containers that name no seccomp profile have the runtime's (`seccompDefault`).
    pub seccomp_default: bool,
    /// How long pressure is told after it is over (`evictionPressureTransitionPeriod`).
    pub pressure_transition: Duration,
    /// Sysctls beside the safe ones that pods may set: names, or prefixes that end in `*`.
    pub allowed_sysctls: Vec<String>,
    /// What registries are shown beside the pods' own pull secrets.
    pub node_logins: NodeLogins,
}

/// Why the kubelet ended.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A directory cannot be made.
    #[error("create {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A cgroup is not held to what is reserved for it.
    #[error("hold the cgroup {path} to {key}")]
    Reserved {
        /// The reservation.
        key: &'static str,
        /// The cgroup.
        path: String,
        /// What the system said.
        source: host::cgroup::CgroupError,
    },
    /// The machine has no cgroups that we know.
    #[error("look at the machine's cgroups")]
    Cgroups(#[from] host::cgroup::CgroupError),
    /// The runtime does not answer.
    #[error("{what}")]
    Runtime {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: Box<tonic::Status>,
    },
}
