//! Rotates the logs of running containers: `0.log` becomes `0.log.20060102-150405`, the runtime opens a new file, older
//! ones are compressed, the oldest removed. Links to logs that are gone go too. Upstream: pkg/kubelet/logs.
//!
//! A pod that sees the host's directories may have put links among the logs: none is followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest,
    ReopenContainerLogRequest,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;
use rustix::fs::{FileType, Mode, OFlags};
use tonic::transport::Channel;

use crate::cri_requests::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::log_links::LogLinks;
use crate::time::wall_ns;

/// When logs are rotated, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotationPolicy {
    /// `containerLogMaxSize`: a longer log is rotated.
    pub max_size: u64,
    /// `containerLogMaxFiles`: of one container, the current one included; 2 at least.
    pub max_files: usize,
    /// `containerLogMonitorInterval`: how often logs are looked at.
    pub interval: Duration,
}

impl Default for LogRotationPolicy {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5, interval: Duration::from_secs(10) }
    }
}

/// What one rotation does with the files beside a log: pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct FilePlan {
    remove: Vec<String>,
    compress: Vec<String>,
}

/// Decides about the rotated files of the log `name`; names sort by their time.
fn plan_files(name: &str, beside: &[String], max_files: usize) -> FilePlan {
    let mut rotated: Vec<&String> = beside
        .iter()
        .filter(|file| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
        .collect();
    rotated.sort();
    let mut plan = FilePlan::default();
    let packed: Vec<&String> = rotated.iter().copied().filter(|file| file.ends_with(".gz")).collect();
    rotated.retain(|file| {
        // Half a compression, and what is compressed already: left by one who was killed.
        let is_left = file.ends_with(".tmp") || packed.iter().any(|packed| **packed == format!("{file}.gz"));
        if is_left {
            plan.remove.push((*file).clone());
        }
        !is_left
    });
    // One is current, one is about to be made.
    let excess = rotated.len().saturating_sub(max_files.saturating_sub(2));
    plan.remove.extend(rotated.drain(..excess).cloned());
    plan.compress = rotated.into_iter().filter(|file| !file.ends_with(".gz")).cloned().collect();
    plan
}

/// Looks after the logs of the pods of this kubelet.
pub(crate) struct Rotator {
    pub(crate) cri: Channel,
    pub(crate) policy: LogRotationPolicy,
    pub(crate) links: LogLinks,
}

impl Rotator {
    /// For ever.
    pub(crate) async fn run(&self) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(self.policy.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.running().await {
                Err(status) => {
                    tracing::warn!(error = status.message(), "list the containers whose logs may be rotated");
                }
                Ok(containers) => {
                    for container in containers {
                        if let Err(error) = self.look_after(&container).await {
                            tracing::warn!(container = container.id, %error, "rotate a log");
                        }
                    }
                }
            }
            // After the rotations: while one is under way, its log has no file of that name.
            let links = self.links.clone();
            let swept = tokio::task::spawn_blocking(move || links.sweep()).await;
            if let Err(error) = swept.unwrap_or_else(|error| Err(io::Error::other(error))) {
                tracing::warn!(%error, "remove links to logs that are gone");
            }
        }
    }

    async fn running(&self) -> Result<Vec<Container>, tonic::Status> {
        let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(state), ..Default::default() };
        let listed =
            self.client().list_containers(ListContainersRequest { filter: Some(filter) }).await?.into_inner();
        Ok(listed.containers)
    }

    async fn look_after(&self, container: &Container) -> io::Result<()> {
        let Some(log) = log_of(container) else { return Ok(()) };
        let directory = match self.open(&log.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match size_of(&directory, &log.name) {
            // Somebody removed it: the runtime writes into a file without a name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.reopen(&container.id).await,
            Ok(size) if size > self.policy.max_size => self.rotate(&container.id, directory, log.name).await,
            other => other.map(drop),
        }
    }

    async fn rotate(&self, id: &str, directory: OwnedFd, name: String) -> io::Result<()> {
        let max_files = self.policy.max_files;
        let tidied = tokio::task::spawn_blocking(move || {
            tidy(&directory, &name, max_files)?;
            let rotated = format!("{name}.{}", time_stamp(wall_ns()));
            rustix::fs::renameat(&directory, &name, &directory, &rotated)?;
            io::Result::Ok((directory, name, rotated))
        });
        let (directory, name, rotated) = tidied.await.map_err(io::Error::other)??;
        if let Err(error) = self.reopen(id).await {
            // The runtime goes on writing into the old file: it keeps its name.
            rustix::fs::renameat(&directory, &rotated, &directory, &name)?;
            return Err(error);
        }
        tracing::debug!(container = id, rotated, "rotated a log");
        Ok(())
    }

    async fn reopen(&self, id: &str) -> io::Result<()> {
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        let done = self.client().reopen_container_log(request).await;
        done.map(drop).map_err(|status| io::Error::other(status.message().to_owned()))
    }

    fn open(&self, directory: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.links.pod_logs_dir, flags, Mode::empty())?;
        host::path::open_strict(&root, directory, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn client(&self) -> RuntimeServiceClient<Channel> {
        cri::runtime_client(&self.cri)
    }
}

/// Where a log lies, below the directory of all pods' logs.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    directory: PathBuf,
    name: String,
}

/// Nothing for a container that no kubelet made. Pure.
fn log_of(container: &Container) -> Option<Log> {
    let label = |key: &str| container.labels.get(key).filter(|value| !value.is_empty());
    let (namespace, pod, uid) = (label(POD_NAMESPACE)?, label(POD_NAME)?, label(POD_UID)?);
    let attempt = container.metadata.as_ref()?.attempt;
    let directory = Path::new(&format!("{namespace}_{pod}_{uid}")).join(label(CONTAINER_NAME)?);
    Some(Log { directory, name: format!("{attempt}.log") })
}

fn size_of(directory: &OwnedFd, name: &str) -> io::Result<u64> {
    let stat = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a regular file")),
    }
}

/// Removes and compresses what earlier rotations left.
fn tidy(directory: &OwnedFd, name: &str, max_files: usize) -> io::Result<()> {
    let mut beside = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        beside.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let plan = plan_files(name, &beside, max_files);
    for file in &plan.remove {
        host::path::unlink_at(directory, file)?;
    }
    plan.compress.iter().try_for_each(|file| compress(directory, file))
}

/// The compressed file appears at once, then the other one goes.
fn compress(directory: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut from = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    if host::path::file_type(&from)? != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a rotated log is not a regular file"));
    }
    let (packed, temporary) = (format!("{name}.gz"), format!("{name}.tmp"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, &temporary, flags, Mode::from_raw_mode(0o640))?);
    let mut to = GzEncoder::new(file, Compression::default());
    let done = io::copy(&mut from, &mut to).and_then(|_| to.finish());
    if let Err(error) = done {
        host::path::unlink_at(directory, &temporary)?;
        return Err(error);
    }
    rustix::fs::renameat(directory, &temporary, directory, &packed)?;
    host::path::unlink_at(directory, name)
}

/// As upstream names them, in UTC.
fn time_stamp(ns: i64) -> String {
    let time = Timestamp::from_second(ns / 1_000_000_000).unwrap_or_default();
    time.strftime("%Y%m%d-%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    const A: &str = "0.log.20260101-000001";
    const B: &str = "0.log.20260101-000002";
    const C: &str = "0.log.20260101-000003";

    #[test]
    fn the_oldest_go_and_the_others_are_compressed() {
        let gz = |name: &str| format!("{name}.gz");
        for (beside, max_files, remove, compress) in [
            (vec!["0.log".into()], 5, vec![], vec![]),
            (vec!["0.log".into(), A.into()], 5, vec![], vec![A.to_owned()]),
            (vec![gz(A), B.into(), C.into()], 5, vec![], vec![B.to_owned(), C.to_owned()]),
            (vec![C.into(), gz(A), gz(B)], 3, vec![gz(A), gz(B)], vec![C.to_owned()]),
            (vec![A.into()], 2, vec![A.to_owned()], vec![]),
            (
                vec![A.into(), gz(A), format!("{B}.tmp"), B.into()],
                5,
                vec![A.to_owned(), format!("{B}.tmp")],
                vec![B.to_owned()],
            ),
            (vec!["10.log.20260101-000001".into(), "1.log".into(), "0.logx".into()], 2, vec![], vec![]),
        ] {
            let plan = plan_files("0.log", &beside, max_files);
            assert_eq!(plan, FilePlan { remove, compress }, "{beside:?} {max_files}");
        }
    }

    #[test]
    fn a_compressed_log_replaces_the_other_and_links_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let open = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
        std::fs::write(path.join(A), "hello").expect("written");
        tidy(&open, "0.log", 5).expect("tidied");
        let mut text = String::new();
        let packed = File::open(path.join(format!("{A}.gz"))).expect("compressed");
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
        assert_eq!((text.as_str(), path.join(A).exists()), ("hello", false));
        symlink("/etc/passwd", path.join(B)).expect("a link");
        tidy(&open, "0.log", 5).expect_err("a link");
        assert_eq!(std::fs::read_dir(path).expect("listed").count(), 2);
    }

    #[test]
    fn names_tell_the_time_as_upstream_does() {
        assert_eq!(time_stamp(1_136_214_245 * 1_000_000_000 + 7), "20060102-150405");
    }

    #[test]
    fn only_a_kubelets_containers_have_logs_to_rotate() {
        let labels = [(POD_NAMESPACE, "n"), (POD_NAME, "p"), (POD_UID, "u"), (CONTAINER_NAME, "c")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let metadata = Some(cri::v1::ContainerMetadata { name: "c".into(), attempt: 2 });
        let container = Container { labels: labels.into(), metadata, ..Container::default() };
        assert_eq!(log_of(&container), Some(Log { directory: "n_p_u/c".into(), name: "2.log".into() }));
        assert_eq!(log_of(&Container { labels: Default::default(), ..container }), None);
    }
}
