//! postStart and preStop hooks. Upstream: pkg/kubelet/lifecycle, and where kuberuntime calls it. What a hook's failure says
//! goes into statuses, not into events: it may hold secrets.

use std::time::Duration;

use cri::v1::ExecSyncRequest;
use k8s_openapi::api::core::v1::LifecycleHandler;
use tonic::transport::Channel;

use super::probing::target;
use super::{News, Worker};
use crate::events::Kind;
use crate::pod::model::{Container, Pod};
use crate::pod::plan::{Kill, ObservedPod, StopReason};
use crate::probe::Target;
use crate::probe::http::{self, HookAnswer};
use crate::time::BootTime;

/// How long a request of a hook may take that nothing else bounds.
const NO_LIMIT: Duration = Duration::from_secs(3600);

impl Worker {
    /// Runs a container's postStart hook, if it has one; a container whose hook fails is to end.
    pub(super) async fn post_start(&mut self, container: &Container, id: &str, seen: &ObservedPod) {
        let lifecycle = container.spec.lifecycle.as_ref();
        let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.post_start.clone()) else { return };
        let target = target(container, id, self.pod_ip(seen));
        let done = run(&handler, &target, &self.node.cri, NO_LIMIT).await;
        match done {
            Ok(answer) => self.tell_fallback(&answer),
            Err(error) => {
                let message = describe("PostStart", &self.pod, &container.name, &handler, &error);
                self.node.reporter.event(
                    &self.pod,
                    Kind::Warning,
                    "FailedPostStartHook",
                    "PostStartHook failed",
                );
                self.waiting.insert(container.name.clone(), ("PostStartHookError".to_owned(), message));
                let deadline = BootTime::now().after(self.pod.grace);
                let kill = Kill { deadline, why: StopReason::FailedPostStart };
                self.memory.kills.insert(id.to_owned(), kill);
            }
        }
        self.memory.post_start.remove(id);
    }

    /// Begins a preStop hook, which has until the deadline.
    pub(super) fn pre_stop(&mut self, container: &Container, id: String, kill: Kill, seen: &ObservedPod) {
        let lifecycle = container.spec.lifecycle.as_ref();
        let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.clone()) else { return };
        let target = target(container, &id, self.pod_ip(seen));
        let (cri, news, name) = (self.node.cri.clone(), self.tasks.news.clone(), container.name.clone());
        self.memory.busy.insert(id.clone(), kill.deadline);
        let pod = self.pod.clone();
        self.tasks.running.spawn(async move {
            let left = kill.deadline.since(BootTime::now());
            let done = match tokio::time::timeout(left, run(&handler, &target, &cri, left)).await {
                Err(_) => Err("not completed in the grace period".to_owned()),
                Ok(done) => done,
            };
            let done = done.map_err(|error| describe("PreStop", &pod, &name, &handler, &error));
            // The worker is gone: so is what it would do about it.
            let _ = news.send(News::PreStop { id, name, done }).await;
        });
    }

    /// The hook is over, however: the signal may follow.
    pub(super) fn pre_stopped(&mut self, id: String, name: &str, done: Result<HookAnswer, String>) {
        match done {
            Ok(answer) => self.tell_fallback(&answer),
            Err(failure) => {
                tracing::debug!(pod = self.pod.name, container = name, failure, "a preStop hook failed");
                self.node.reporter.event(&self.pod, Kind::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
        }
        self.memory.busy.remove(&id);
        self.memory.pre_stopped.insert(id);
    }

    /// In upstream's words.
    fn tell_fallback(&self, answer: &HookAnswer) {
        if let HookAnswer::WithoutTls(host) = answer {
            let message = format!(
                "request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded"
            );
            self.node.reporter.event(&self.pod, Kind::Warning, "LifecycleHTTPFallback", &message);
        }
    }
}

/// Runs a hook to its end.
async fn run(
    handler: &LifecycleHandler,
    target: &Target,
    cri: &Channel,
    limit: Duration,
) -> Result<HookAnswer, String> {
    if let Some(exec) = &handler.exec {
        let request = ExecSyncRequest {
            container_id: target.container_id.clone(),
            cmd: exec.command.clone().unwrap_or_default(),
            timeout: 0,
        };
        let mut client = cri::runtime_client(cri);
        let done =
            client.exec_sync(request).await.map_err(|status| status.message().to_owned())?.into_inner();
        if done.exit_code == 0 {
            return Ok(HookAnswer::AsAsked);
        }
        let output = [done.stdout, done.stderr].concat();
        let output = String::from_utf8_lossy(&output[..output.len().min(10 << 10)]).into_owned();
        Err(format!(
            "command {:?} exited with {}: {output}",
            exec.command.clone().unwrap_or_default().join(" "),
            done.exit_code
        ))
    } else if let Some(get) = &handler.http_get {
        http::hook(get, target, limit).await
    } else if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)).min(limit)).await;
        Ok(HookAnswer::AsAsked)
    } else {
        Err("invalid handler".to_owned())
    }
}

/// As upstream tells it in the status.
fn describe(hook: &str, pod: &Pod, container: &str, handler: &LifecycleHandler, error: &str) -> String {
    let (kind, what) = match (&handler.exec, &handler.http_get) {
        (Some(exec), _) => ("Exec", format!("[{}]", exec.command.clone().unwrap_or_default().join(" "))),
        (None, Some(http)) => ("HTTP", http.path.clone().unwrap_or_default()),
        (None, None) => ("Sleep", hook.to_owned()),
    };
    format!(
        "{kind} lifecycle hook ({what}) for Container {container:?} in Pod \"{}_{}({})\" failed - error: {error}",
        pod.name, pod.namespace, pod.uid
    )
}
