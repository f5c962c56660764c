//! `/containerLogs`: what a container wrote, from the files that the runtime writes. Upstream: pkg/kubelet/server, k8s.io/cri-client/
//! pkg/logs.
//!
//! A log is read while the caller takes it: nothing runs for a caller who is gone. Followers wait for inotify and for the kubelet's
//! report; nobody looks again and again.

mod file;
mod find;
mod line;
mod options;
mod tail;
mod watcher;

use std::io;
use std::path::Path;
use std::sync::Arc;

use cri::v1 as crv1;
use cri::v1::ContainerState;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper::StatusCode;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1;
use tokio::sync::watch;
use tonic::transport::Channel;

use self::file::LogFile;
use self::find::Which;
use self::line::{Progress, Selection};
use self::options::{Options, Wrong};
use self::watcher::Changes;
pub(super) use self::watcher::Watcher;
use super::query::Query;
use super::respond::{Answer, of_runtime, stream, text};
use super::{Server, pods, route};
use crate::report::NodeReport;
use crate::time::wall_ns;

impl Server {
    /// `/containerLogs/…`.
    pub(super) async fn logs(&self, asked: &route::Container<'_>, query: Option<&str>) -> Answer {
        let options = match Options::of(&Query::parse(query.unwrap_or_default()), wall_ns()) {
            Ok(options) => options,
            Err(Wrong::Undecodable) => {
                return text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#);
            }
            Err(Wrong::Invalid) => {
                return text(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);
            }
        };
        let Some(pod) = self.pod(&asked.pod) else {
            return text(StatusCode::NOT_FOUND, format!("pod {:?} does not exist", asked.pod.name));
        };
        if !pods::has_container(&pod, asked.name) {
            let reason = format!("container {:?} not found in pod {:?}", asked.name, asked.pod.name);
            return text(StatusCode::NOT_FOUND, reason);
        }
        let which = if options.previous { Which::Previous } else { Which::Latest };
        let id = match find::container_id(&pod, asked.name, which) {
            Ok(id) => id,
            Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
        };
        let status = match status(&mut self.runtime(), &id).await {
            Ok(status) => status,
            Err(status) => return of_runtime(&status),
        };
        match self.open(&status, &options, &pod).await {
            Ok(log) => stream(futures::stream::try_unfold(log, Log::next)),
            Err(error) => {
                let path = &status.log_path;
                text(StatusCode::BAD_REQUEST, format!("failed to open log file {path:?}: {error}"))
            }
        }
    }

    async fn open(
        &self,
        container: &crv1::ContainerStatus,
        options: &Options,
        pod: &v1::Pod,
    ) -> io::Result<Log> {
        let file = LogFile::open(&self.pod_logs_dir, Path::new(&container.log_path), options.tail).await?;
        let selection = Selection::new(options);
        let reading = match options.follow && may_write(container) {
            true => Reading::Follow(Box::new(Follow {
                changes: self.log_watcher.follow(file.directory())?,
                report: self.report.clone(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
                container: container.id.clone(),
                runtime: self.runtime(),
                known: None,
            })),
            false => Reading::Until(file.length()?),
        };
        Ok(Log { file, selection, reading })
    }
}

/// Whether there may be more of its log.
fn may_write(container: &crv1::ContainerStatus) -> bool {
    matches!(container.state(), ContainerState::ContainerRunning | ContainerState::ContainerCreated)
}

async fn status(
    runtime: &mut RuntimeServiceClient<Channel>,
    id: &str,
) -> Result<crv1::ContainerStatus, tonic::Status> {
    let request = crv1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    Ok(runtime.container_status(request).await?.into_inner().status.unwrap_or_default())
}

/// A log that is being told.
struct Log {
    file: LogFile,
    selection: Selection,
    reading: Reading,
}

/// How far it is read.
enum Reading {
    /// Up to there.
    Until(u64),
    /// As long as the container may write.
    Follow(Box<Follow>),
    /// No further.
    Enough,
}

struct Follow {
    changes: Changes,
    report: watch::Receiver<Arc<NodeReport>>,
    uid: String,
    container: String,
    runtime: RuntimeServiceClient<Channel>,
    /// The pod as it was when the container was last seen running.
    known: Option<Arc<v1::Pod>>,
}

impl Log {
    /// The next piece for the caller, and what comes after it.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let end = match self.reading {
                Reading::Until(end) => end,
                Reading::Follow(_) => u64::MAX,
                Reading::Enough => return Ok(None),
            };
            let mut told = Vec::new();
            // Whatever changes from here on is not missed.
            if let Reading::Follow(follow) = &mut self.reading {
                follow.changes.mark_seen();
            }
            let successor = match &self.reading {
                Reading::Follow(_) => self.file.successor()?,
                Reading::Until(_) | Reading::Enough => None,
            };
            let is_over = match &mut self.reading {
                Reading::Follow(follow) if successor.is_none() => follow.is_over().await,
                _ => false,
            };
            while let piece = self.file.read(end).await?
                && !piece.is_empty()
            {
                if self.selection.take(&piece, &mut told) == Progress::Enough {
                    self.reading = Reading::Enough;
                    break;
                }
                if told.len() >= PIECE {
                    return Ok(Some((told.into(), self)));
                }
            }
            match &mut self.reading {
                Reading::Enough => {}
                Reading::Until(_) => self.reading = Reading::Enough,
                Reading::Follow(_) if is_over => self.reading = Reading::Enough,
                Reading::Follow(follow) => match successor {
                    Some(file) => self.file = file,
                    None if told.is_empty() => follow.more().await,
                    None => {}
                },
            }
            if !told.is_empty() {
                return Ok(Some((told.into(), self)));
            }
        }
    }
}

/// Bytes that are told at once.
const PIECE: usize = 64 << 10;

impl Follow {
    /// Whether the container has ended: asked only when something happened to its pod since it was last seen running.
    async fn is_over(&mut self) -> bool {
        let pod = self
            .report
            .borrow_and_update()
            .pods
            .iter()
            .find(|pod| pod.metadata.uid.as_ref() == Some(&self.uid))
            .cloned();
        let is_same = match (&self.known, &pod) {
            (Some(known), Some(pod)) => Arc::ptr_eq(known, pod),
            _ => false,
        };
        if is_same {
            return false;
        }
        self.known = pod;
        match status(&mut self.runtime, &self.container).await {
            Ok(status) => !may_write(&status),
            // It was removed, or the runtime is away: what was written has been told.
            Err(_) => true,
        }
    }

    /// Waits until there may be something to read, or the container may have ended.
    async fn more(&mut self) {
        tokio::select! {
            () = self.changes.changed() => {}
            Ok(()) = self.report.changed() => {}
            else => {}
        }
    }
}
