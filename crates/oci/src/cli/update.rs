//! `update`: new limits for a running container.

use std::io::Read;
use std::path::Path;

use host::cgroup::CgroupManager;
use oci_spec::runtime::LinuxResources;

use super::CliError;
use super::args::{Change, Global};
use super::record::{Record, Status};
use crate::plan;

/// Writes new limits; what is not given stays.
pub(super) fn update(global: &Global, id: &str, change: &Change) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    if matches!(record.status(global), Status::Creating | Status::Stopped) {
        return Err(CliError::new("container not running"));
    }
    let resources = match change {
        Change::Resources(resources) => resources.as_ref().clone(),
        Change::File(path) => read(path)?,
    };
    let limits = plan::plan_update(&resources).map_err(|error| CliError::new(error.to_string()))?;
    CgroupManager::detect()
        .and_then(|cgroups| cgroups.update(&record.cgroup_path, &limits))
        .map_err(|error| CliError::because("update the cgroup", &error))
}

fn read(path: &Path) -> Result<LinuxResources, CliError> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map_err(std::io::Error::other)
        .and_then(|_| serde_json::from_slice(&text).map_err(std::io::Error::from))
        .map_err(|error| CliError::because(&format!("read resources from {}", path.display()), &error))
}
