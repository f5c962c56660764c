//! Where the programs under test and their peers are: told by `hack/e2e.sh` in the environment.

use std::path::{Path, PathBuf};

/// The release binary of podwright: `PODWRIGHT_BIN`, else `target/podwright` of this checkout.
///
/// # Panics
/// When it was not built: run `hack/build.sh`.
#[must_use]
pub fn podwright() -> PathBuf {
    let path = std::env::var_os("PODWRIGHT_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/podwright"), PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}; run hack/build.sh", path.display()))
}

/// A program built by `hack/tools.sh` (crictl, runc, containerd, …), from the directory `PODWRIGHT_TOOLS`.
///
/// # Panics
/// When it is not there: run the tests by `hack/e2e.sh`, which builds it.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let path = tools().join(name);
    assert!(path.exists(), "{} is missing; run hack/tools.sh", path.display());
    path
}

/// The directory that `hack/tools.sh` prints.
///
/// # Panics
/// When `PODWRIGHT_TOOLS` does not say where it is.
#[must_use]
pub fn tools() -> PathBuf {
    std::env::var_os("PODWRIGHT_TOOLS")
        .unwrap_or_else(|| panic!("PODWRIGHT_TOOLS is not set; run the tests by hack/e2e.sh"))
        .into()
}

/// The directory of the upstream CNI plugins.
#[must_use]
pub fn upstream_cni() -> PathBuf {
    tool("cni")
}
