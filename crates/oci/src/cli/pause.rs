//! `pause` and `resume`.

use std::time::Duration;

use host::cgroup::Frozen;

use super::CliError;
use super::args::Global;
use super::record::{Record, Status};

/// How long the processes of a container may take to stand still.
const PATIENCE: Duration = Duration::from_secs(2);

/// Stops every process of a container where it stands.
pub(super) fn pause(global: &Global, id: &str) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    match record.status(global) {
        Status::Running | Status::Created => {}
        Status::Paused | Status::Creating | Status::Stopped => {
            return Err(CliError::new("container not running or created"));
        }
    }
    record.cgroup()?.pause(PATIENCE).map_err(|error| CliError::because("pause the container", &error))
}

/// Lets them go on.
pub(super) fn resume(global: &Global, id: &str) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    if record.status(global) != Status::Paused && !record.cgroup()?.is_frozen() {
        return Err(CliError::new("container not paused"));
    }
    thaw(&record)
}

pub(super) fn thaw(record: &Record) -> Result<(), CliError> {
    record.cgroup()?.freeze(Frozen::No).map_err(|error| CliError::because("resume the container", &error))
}
