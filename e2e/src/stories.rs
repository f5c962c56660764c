//! Stories that are told twice: on podwright and, as the check that the story is right, on the reference.
//!
//! Each of them is a function; the macros make of it one test per implementation.

use anyhow::Result;

use crate::bundle::OciRuntime;
use crate::cri_server::{CriServer, Implementation};

/// Declares stories of runc's command line, `fn(OciRuntime) -> Result<()>`, as tests on `podwright oci` and on runc.
#[macro_export]
macro_rules! oci_stories {
    ($($name:ident),* $(,)?) => {
        mod on_podwright {
            $(#[test] #[ignore = "needs root"] fn $name() {
                $crate::stories::tell_oci($crate::bundle::OciRuntime::Podwright, super::$name);
            })*
        }
        mod on_runc {
            $(#[test] #[ignore = "needs root"] fn $name() {
                $crate::stories::tell_oci($crate::bundle::OciRuntime::Runc, super::$name);
            })*
        }
    };
}

/// Declares stories of a CRI server, `fn(CriServer) -> Result<()>`, as tests on podwright and on containerd.
#[macro_export]
macro_rules! cri_stories {
    ($($name:ident),* $(,)?) => {
        mod on_podwright {
            $(#[test] #[ignore = "needs root"] fn $name() {
                $crate::stories::tell_cri($crate::cri_server::Implementation::Podwright, super::$name);
            })*
        }
        mod on_containerd {
            $(#[test] #[ignore = "needs root"] fn $name() {
                $crate::stories::tell_cri($crate::cri_server::Implementation::Containerd, super::$name);
            })*
        }
    };
}

/// Tells a story of the OCI core.
///
/// # Panics
/// When the story fails: with its chain of causes.
pub fn tell_oci(runtime: OciRuntime, story: fn(OciRuntime) -> Result<()>) {
    if let Err(error) = story(runtime) {
        panic!("{error:?}");
    }
}

/// Tells a story of a CRI server, on one of its own.
///
/// # Panics
/// When the server does not come up or the story fails: with its chain of causes.
pub fn tell_cri(implementation: Implementation, story: fn(CriServer) -> Result<()>) {
    let server = CriServer::start(implementation).expect("start the CRI server");
    if let Err(error) = story(server) {
        panic!("{error:?}");
    }
}

/// Declares stories of a node in a cluster, `fn(&ClusterStory) -> Result<()>`, as tests on podwright and on the stock
/// kubelet. All stories of a test file share one cluster with a node of each kind.
#[macro_export]
macro_rules! cluster_stories {
    ($($name:ident),* $(,)?) => {
        mod on_podwright {
            $(#[test] #[ignore = "needs a cluster"] fn $name() {
                $crate::cluster::story::tell($crate::cluster::NodeKind::Podwright, stringify!($name), super::$name);
            })*
        }
        mod on_stock {
            $(#[test] #[ignore = "needs a cluster"] fn $name() {
                $crate::cluster::story::tell($crate::cluster::NodeKind::Stock, stringify!($name), super::$name);
            })*
        }
    };
}

/// Declares stories of a node of which one half is the field's, `fn(&ClusterStory) -> Result<()>`, as tests on our kubelet
/// with containerd and on the stock kubelet with our runtime.
#[macro_export]
macro_rules! half_stories {
    ($($name:ident),* $(,)?) => {
        mod on_podwright_with_containerd {
            $(#[test] #[ignore = "needs a cluster"] fn $name() {
                $crate::cluster::story::tell(
                    $crate::cluster::NodeKind::PodwrightOnContainerd, stringify!($name), super::$name);
            })*
        }
        mod on_stock_with_podwright {
            $(#[test] #[ignore = "needs a cluster"] fn $name() {
                $crate::cluster::story::tell(
                    $crate::cluster::NodeKind::StockOnPodwright, stringify!($name), super::$name);
            })*
        }
    };
}
