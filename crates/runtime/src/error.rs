//! What can go wrong with a CRI call, and the gRPC code that clients know it by.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::images::ImageError;
use crate::record::RecordError;
use crate::spec::SpecError;
use crate::supervisor::{RequestError, SpawnError};

/// Why the runtime cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory cannot be made.
    #[error("create {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The images cannot be opened.
    #[error("open the image store")]
    Images(#[from] ImageError),
    /// There is no network.
    #[error("open the pods' network")]
    Network(#[from] cni::CniError),
    /// The machine has no cgroups that we know.
    #[error("look at the machine's cgroups")]
    Cgroups(#[from] host::cgroup::CgroupError),
    /// The program cannot be run again as a supervisor.
    #[error("seal a copy of this program for supervisors")]
    Seal(#[source] std::io::Error),
}

/// Why a CRI call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container`, `image`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// A short id fits several.
    #[error("{kind} id {id:?} is not unique: it is the beginning of several")]
    Ambiguous {
        /// `sandbox`, `container`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// A name is taken.
    #[error("{kind} name {name:?} is reserved for {id}")]
    Reserved {
        /// `sandbox`, `container`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The object is in the wrong state.
    #[error("{0}")]
    WrongState(String),
    /// Only what runs can do this. In the words and with the code of containerd.
    #[error("{0}")]
    NotRunning(String),
    /// No more of these now.
    #[error("{0}")]
    Exhausted(String),
    /// A spec cannot be rendered.
    #[error("container spec")]
    Spec(#[from] SpecError),
    /// The spec cannot be carried out.
    #[error("plan the start of the container")]
    Plan(#[from] oci::plan::PlanError),
    /// A seccomp profile cannot be compiled.
    #[error("compile the seccomp profile")]
    Seccomp(#[from] oci::seccomp::SeccompError),
    /// No supervisor.
    #[error("start the sandbox")]
    Spawn(#[from] SpawnError),
    /// A supervisor's answer.
    #[error("{what}")]
    Supervisor {
        /// What was asked of it.
        what: String,
        /// What it said.
        source: RequestError,
    },
    /// No network.
    #[error("set up the network of sandbox {sandbox}")]
    Network {
        /// The sandbox.
        sandbox: String,
        /// What the plugin said.
        source: cni::CniError,
    },
    /// A record cannot be kept.
    #[error("keep or read a record")]
    Record(#[from] RecordError),
    /// A file or directory.
    #[error("{what} {}", path.display())]
    Io {
        /// A verb.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A command took longer than it may.
    #[error("command {command:?} timed out after {seconds} s")]
    Timeout {
        /// The command.
        command: Vec<String>,
        /// The limit.
        seconds: i64,
    },
    /// A cgroup does not take a value.
    #[error("change the limits of {path}")]
    Cgroup {
        /// Which.
        path: String,
        /// What the kernel said.
        source: host::cgroup::CgroupError,
    },
    /// Resources remain.
    #[error("{what} could not be removed: {problems}")]
    Teardown {
        /// Of which object.
        what: String,
        /// Each problem.
        problems: String,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid(_) | Self::Spec(SpecError::Invalid(_)) => {
                Code::InvalidArgument
            }
            Self::Spec(SpecError::Unsupported(_)) | Self::Plan(_) => Code::Unimplemented,
            Self::WrongState(_) | Self::Spec(SpecError::Absent { .. }) => Code::FailedPrecondition,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Image(error) => image_code(error),
            // What containerd answers with too; crictl and the kubelet show the message.
            Self::Reserved { .. }
            | Self::NotRunning(_)
            | Self::Seccomp(_)
            | Self::Spawn(_)
            | Self::Supervisor { .. }
            | Self::Network { .. }
            | Self::Record(_)
            | Self::Io { .. }
            | Self::Cgroup { .. }
            | Self::Teardown { .. } => Code::Unknown,
        }
    }

    /// The message with its causes, on one line.
    pub(crate) fn chain(&self) -> String {
        host::error::chain(self)
    }
}

fn image_code(error: &ImageError) -> Code {
    match error {
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::InvalidReference { .. } => Code::InvalidArgument,
        _ => Code::Unknown,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.chain())
    }
}
