//! One door to Linux: namespaces, mounts, cgroups, processes, safe paths; and errors told in one line. No async, no policy.

pub mod cgroup;
pub mod error;
pub mod lsm;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod path;
pub mod proc_paths;
pub mod process;
pub mod self_exe;
pub mod state_file;
pub mod sys;
pub mod user_namespace;
pub mod xtables;
