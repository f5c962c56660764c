//! What can go wrong while a machine joins. The variants are those that a person treats differently; the binary gives each its
//! exit code.

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;

use crate::certificates::{IssueError, Validity};

/// Why a machine did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers.
    #[error("reach the API server {server}: {cause}; check address, port and firewall")]
    Unreachable {
        /// `HOST:PORT`, or a URL.
        server: String,
        /// The innermost cause.
        cause: String,
    },
    /// Somebody answers, but not as a cluster that can be joined by token.
    #[error(
        "read ConfigMap kube-public/cluster-info of {server}: {cause}; a cluster made by kubeadm or kind has it, others are joined with --discovery-file"
    )]
    NoClusterInfo {
        /// The server.
        server: String,
        /// What it said.
        cause: String,
    },
    /// The cluster did not sign for this token.
    #[error(
        "the cluster does not know the token {id}: it has expired, was deleted, or is mistyped; `kubeadm token create --print-join-command` on a control-plane node makes another one"
    )]
    TokenUnknown {
        /// The token's id.
        id: String,
    },
    /// The cluster signed with another secret.
    #[error(
        "the token {id} has another secret than the cluster's token of that name: it is mistyped, or this is not the cluster that it was made for"
    )]
    TokenWrong {
        /// The token's id.
        id: String,
    },
    /// The API server does not let the bearer in.
    #[error(
        "the API server {server} does not accept the credentials: the token is wrong or has expired; `kubeadm token create --print-join-command` on a control-plane node makes another one"
    )]
    Unauthorized {
        /// The server.
        server: String,
    },
    /// The cluster's authority is another one than was pinned.
    #[error(
        "the cluster's certificate authority is {found}, which is none of --discovery-token-ca-cert-hash: the hash is mistyped, or this is not the cluster that it was made for"
    )]
    PinMismatch {
        /// The pins of the authorities that the cluster has.
        found: String,
    },
    /// The server's certificate is not of the cluster's authority.
    #[error(
        "trust the API server {server}: {cause}; somebody may stand between this machine and the cluster"
    )]
    Untrusted {
        /// The server.
        server: String,
        /// What is wrong with its certificate.
        cause: String,
    },
    /// A certificate does not hold now.
    #[error("{what} is valid {}, but the clock of this machine says {}{}: set the clocks right, or renew the certificate", period(validity), time(*ours), theirs.map(|theirs| format!(" and that of the server {}", time(theirs))).unwrap_or_default())]
    Clock {
        /// Whose certificate.
        what: String,
        /// When it is valid, as far as known.
        validity: Option<Validity>,
        /// What our clock says, in seconds since 1970.
        ours: i64,
        /// What the server's clock says.
        theirs: Option<i64>,
    },
    /// A file or ConfigMap does not tell of a cluster.
    #[error("{what} cannot be used: {cause}")]
    Unusable {
        /// The file or ConfigMap.
        what: String,
        /// What is wrong.
        cause: String,
    },
    /// The bearer of the token may not do that.
    #[error(
        "{what}: the cluster does not allow it with this token: {cause}; `kubeadm init phase bootstrap-token` on a control-plane node grants it"
    )]
    Forbidden {
        /// What was tried.
        what: String,
        /// What the API server said.
        cause: String,
    },
    /// The API server cannot do what is asked.
    #[error("{what}: {cause}")]
    Api {
        /// What was tried.
        what: String,
        /// What the API server said.
        cause: String,
    },
    /// Somebody else is that node.
    #[error(
        "the cluster has a node {name} already, and it is Ready: give this machine another name with --node-name, or remove that one by `kubectl delete node {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There is no certificate.
    #[error("get the node's certificate")]
    Certificate(#[source] IssueError),
    /// A file cannot be written; those that were are gone again.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// One end may be unknown.
fn period(validity: &Option<Validity>) -> String {
    match validity.map(|validity| (validity.not_before, validity.not_after)) {
        None => "at another time".to_owned(),
        Some((from, i64::MAX)) => format!("from {} on", time(from)),
        Some((i64::MIN, to)) => format!("until {}", time(to)),
        Some((from, to)) => format!("from {} to {}", time(from), time(to)),
    }
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_else(|_| seconds.to_string())
}
