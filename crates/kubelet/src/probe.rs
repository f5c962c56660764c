//! Probes: how a container is asked, and what its answers mean. Upstream: pkg/kubelet/prober, pkg/probe.

mod dial;
mod grpc;
pub(crate) mod http;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use tonic::Code;
use tonic::transport::Channel;

use self::dial::{Host, Place};

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As events begin.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a container answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    /// A success to be told of.
    Warning(String),
    Failure(String),
    /// It could not be asked: that is no answer.
    Error(String),
}

/// How often and how long, from the manifest's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    success: u32,
    failure: u32,
}

impl Timing {
    pub(crate) fn of(probe: &v1::Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|count| *count > 0).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            success: count(probe.success_threshold, 1),
            failure: count(probe.failure_threshold, 3),
        }
    }
}

/// The run of equal answers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streak {
    last: Option<bool>,
    count: u32,
}

impl Streak {
    /// Takes an answer; gives the verdict when a threshold is reached, nothing while it is not.
    pub(crate) fn answer(&mut self, success: bool, timing: &Timing) -> Option<bool> {
        self.count = if self.last == Some(success) { self.count.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { timing.success } else { timing.failure };
        (self.count >= needed).then_some(success)
    }
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) container_id: String,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) ports: Vec<v1::ContainerPort>,
}

/// How often one that cannot be asked is asked again.
const TRIES: usize = 3;
/// How much of a command's output is told.
const MAX_OUTPUT: usize = 10 << 10;

/// Asks, and again where it cannot be asked.
pub(crate) async fn ask(probe: &v1::Probe, target: &Target, cri: &Channel, timeout: Duration) -> Answer {
    let mut answer = Answer::Error("the probe has no handler".into());
    for _ in 0..TRIES {
        answer = ask_once(probe, target, cri, timeout).await;
        if !matches!(answer, Answer::Error(_)) {
            break;
        }
    }
    answer
}

async fn ask_once(probe: &v1::Probe, target: &Target, cri: &Channel, timeout: Duration) -> Answer {
    if let Some(exec) = &probe.exec {
        ask_exec(exec, target, cri, timeout).await
    } else if let Some(get) = &probe.http_get {
        http::ask(get, target, timeout).await
    } else if let Some(tcp) = &probe.tcp_socket {
        match place(tcp.host.as_deref(), &tcp.port, target) {
            Err(message) => Answer::Error(message),
            Ok(place) => dial::dial(&place, timeout).await.map_or_else(Answer::Failure, |_| Answer::Success),
        }
    } else if let Some(health) = &probe.grpc {
        let port = IntOrString::Int(health.port);
        match place(None, &port, target) {
            Err(message) => Answer::Error(message),
            Ok(place) => grpc::ask(health.service.as_deref().unwrap_or_default(), &place, timeout).await,
        }
    } else {
        Answer::Error("the probe has no handler".into())
    }
}

async fn ask_exec(exec: &v1::ExecAction, target: &Target, cri: &Channel, timeout: Duration) -> Answer {
    let command = exec.command.clone().unwrap_or_default();
    let timed_out = format!("command {:?} timed out", command.join(" "));
    let request = cri::v1::ExecSyncRequest {
        container_id: target.container_id.clone(),
        cmd: command,
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(1),
    };
    let mut client = cri::runtime_client(cri);
    // The runtime itself ends a command at its time limit; this bounds an answer that never comes.
    let done = tokio::time::timeout(timeout + Duration::from_secs(2), client.exec_sync(request)).await;
    let done = match done {
        Err(_) => return Answer::Failure(timed_out),
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => return Answer::Failure(timed_out),
        Ok(Err(status)) => return Answer::Error(status.message().to_owned()),
        Ok(Ok(done)) => done.into_inner(),
    };
    if done.exit_code == 0 {
        return Answer::Success;
    }
    let output = [done.stdout, done.stderr].concat();
    Answer::Failure(String::from_utf8_lossy(&output[..output.len().min(MAX_OUTPUT)]).into_owned())
}

/// Where a probe or hook asks: the pod, unless it names another host.
fn place(host: Option<&str>, port: &IntOrString, target: &Target) -> Result<Place, String> {
    let host = match host.filter(|host| !host.is_empty()) {
        Some(host) => Host::parse(host),
        None => Host::Ip(target.ip.ok_or("the pod has no address")?),
    };
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = target.ports.iter().find(|port| port.name.as_deref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
                .ok_or_else(|| format!("no port is named {name:?}"))?
        }
    };
    let port = u16::try_from(number).map_err(|_| format!("port {number} is out of range"))?;
    Ok(Place { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_as_many_equal_answers_as_its_threshold() {
        let probe =
            v1::Probe { failure_threshold: Some(2), success_threshold: Some(2), ..v1::Probe::default() };
        let (timing, mut streak) = (Timing::of(&probe), Streak::default());
        let verdicts: Vec<Option<bool>> = [true, true, false, true, false, false, false, true, true]
            .map(|answer| streak.answer(answer, &timing))
            .into();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, yes, None, None, None, no, no, None, yes]);
    }

    #[test]
    fn numbers_default_as_upstream() {
        let timing = Timing::of(&v1::Probe::default());
        assert_eq!(
            (timing.period.as_secs(), timing.timeout.as_secs(), timing.success, timing.failure),
            (10, 1, 1, 3)
        );
    }

    #[test]
    fn ports_are_found_by_name() {
        let port =
            v1::ContainerPort { name: Some("http".into()), container_port: 8080, ..Default::default() };
        let target =
            Target { container_id: String::new(), ip: Some([10, 0, 0, 1].into()), ports: vec![port] };
        let find = |port: IntOrString| place(None, &port, &target).map(|place| place.to_string());
        assert_eq!(find(IntOrString::String("http".into())), Ok("10.0.0.1:8080".into()));
        assert_eq!(find(IntOrString::Int(9)), Ok("10.0.0.1:9".into()));
        find(IntOrString::String("nope".into())).expect_err("no such port");
        find(IntOrString::Int(70000)).expect_err("out of range");
    }
}
