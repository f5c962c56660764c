//! The runtime handlers that RuntimeClasses name, and what each can do on this machine.

use std::path::{Path, PathBuf};

use cri::v1;
use tokio::sync::OnceCell;

use crate::error::Error;

/// Ours under the names by which clients know the default, that of this program, and containerd's.
const NAMES: [&str; 3] = ["", "podwright", "runc"];

/// What was found out about the kernel, once.
#[derive(Debug, Default)]
pub(crate) struct Features {
    user_namespaces: OnceCell<bool>,
}

impl Features {
    /// Whether pods may have user namespaces: tried, the first time, by a program of its own.
    pub(crate) async fn user_namespaces(&self, probe: Probe) -> bool {
        let find_out = || async {
            match tokio::task::spawn_blocking(move || probe.run()).await {
                Ok(Ok(())) => true,
                Ok(Err(reason)) => {
                    tracing::info!(reason, "pods cannot have user namespaces here");
                    false
                }
                Err(_) => false,
            }
        };
        *self.user_namespaces.get_or_init(find_out).await
    }
}

/// What the probe of user namespaces needs.
#[derive(Debug)]
pub(crate) struct Probe {
    /// This program.
    pub(crate) exe: PathBuf,
    /// Where images' layers lie.
    pub(crate) layers: PathBuf,
    /// Where those of containers lie.
    pub(crate) containers: PathBuf,
}

impl Probe {
    #[expect(clippy::disallowed_methods, reason = "a program that ends at once, off the start path")]
    fn run(&self) -> Result<(), String> {
        use std::os::unix::process::CommandExt;
        let directories: [&Path; 2] = [&self.layers, &self.containers];
        let output = std::process::Command::new(&self.exe)
            .arg0(oci::probe::ARGV0)
            .args(directories)
            .env_clear()
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What Status tells of each.
pub(crate) fn all(user_namespaces: bool) -> Vec<v1::RuntimeHandler> {
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: host::mount::has_recursive_attributes(),
        user_namespaces,
    };
    NAMES.map(|name| v1::RuntimeHandler { name: name.to_owned(), features: Some(features) }).into()
}

/// Refuses a handler that does not exist.
pub(crate) fn check(name: &str) -> Result<(), Error> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(Error::Invalid(format!("no runtime for {name:?} is configured")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_status_names_can_be_used_and_nothing_else() {
        assert!(all(false).iter().all(|handler| check(&handler.name).is_ok()));
        let error = check("kata").expect_err("there is none");
        assert_eq!(error.to_string(), "no runtime for \"kata\" is configured");
    }
}
