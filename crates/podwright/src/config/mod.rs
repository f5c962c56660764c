//! Configuration files, and what can be wrong with them and with flags. `podwright runtime --config` reads TOML of
//! ours; `podwright run` and `agent` a KubeletConfiguration. A key that is not known is refused by name.

mod duration;
mod kubelet;
mod runtime;

pub(crate) use duration::GoDuration;
pub(crate) use kubelet::{
    Authentication, Authorization, Capacity, HeldCgroup, KubeletFlags, Machine, Settings, Threshold,
    TlsVersion, kubelet, kubelet_text,
};
pub(crate) use runtime::runtime;

use std::path::{Path, PathBuf};

use ipnet::IpNet;

/// What is wrong with the configuration; the process ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A flag's value cannot be used.
    #[error("--{flag} {value:?} {reason}")]
    Flag {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What is no flag cannot be used.
    #[error("{name} {value:?} {reason}")]
    Argument {
        /// What it is.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An address would be a pod's and a Service's.
    #[error("--pod-cidr {pods} and --service-cidr {services} overlap")]
    Overlap {
        /// The pods' range.
        pods: IpNet,
        /// The Services' range.
        services: IpNet,
    },
    /// The kubelet's flags ask for what cannot be.
    #[error("the kubelet's flags: {0}")]
    KubeletFlags(String),
    /// The machine is one on which the KubeletConfiguration lets no node start.
    #[error("the KubeletConfiguration lets no node start here: {0}")]
    Machine(String),
    /// The file cannot be read.
    #[error("read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file's text is wrong; the message names the place.
    #[error("configuration file {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

/// One range, or two with a comma between.
fn ranges(key: &str, text: Option<&str>) -> Result<Vec<IpNet>, String> {
    let ranges = text.into_iter().flat_map(|text| text.split(',')).map(|range| {
        range
            .trim()
            .parse()
            .map_err(|_| format!("{key}: {range:?} is not a range of addresses such as 10.85.0.0/16"))
    });
    ranges.collect()
}

pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}
