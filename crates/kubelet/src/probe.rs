//! Probes: how a container is asked, and what its answers mean. Upstream: pkg/kubelet/prober.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cri::v1::runtime_service_client::RuntimeServiceClient;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tonic::transport::Channel;

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    Readiness,
    Liveness,
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

/// Asks once. The answer, or why there is none.
///
/// # Errors
/// The sentence for the Unhealthy event.
pub(crate) async fn ask(
    probe: &v1::Probe,
    target: &Target,
    cri: &Channel,
    timeout: Duration,
) -> Result<(), String> {
    let answer = async {
        if let Some(exec) = &probe.exec {
            ask_exec(exec, target, cri, timeout).await
        } else if let Some(http) = &probe.http_get {
            ask_http(http, target).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let address = address(tcp.host.as_deref(), &tcp.port, target)?;
            tokio::net::TcpStream::connect(address)
                .await
                .map(drop)
                .map_err(|error| format!("dial tcp {address}: {error}"))
        } else {
            Err("the probe has no handler".into())
        }
    };
    // The runtime itself ends a command at its time limit; this bounds an answer that never comes.
    match tokio::time::timeout(timeout + Duration::from_secs(u64::from(probe.exec.is_some())), answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("timed out after {timeout:?}")),
    }
}

async fn ask_exec(
    exec: &v1::ExecAction,
    target: &Target,
    cri: &Channel,
    timeout: Duration,
) -> Result<(), String> {
    let request = cri::v1::ExecSyncRequest {
        container_id: target.container_id.clone(),
        cmd: exec.command.clone().unwrap_or_default(),
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(1),
    };
    let mut client = RuntimeServiceClient::new(cri.clone());
    let done = client.exec_sync(request).await.map_err(|status| status.message().to_owned())?.into_inner();
    if done.exit_code == 0 {
        return Ok(());
    }
    let output = [done.stdout, done.stderr].concat();
    Err(String::from_utf8_lossy(&output[..output.len().min(10 << 10)]).into_owned())
}

/// 200 to 399 is success; redirects are not followed.
async fn ask_http(http: &v1::HTTPGetAction, target: &Target) -> Result<(), String> {
    let address = address(http.host.as_deref(), &http.port, target)?;
    let path = http
        .path
        .clone()
        .filter(|path| path.starts_with('/'))
        .unwrap_or_else(|| format!("/{}", http.path.clone().unwrap_or_default()));
    let failed = |error: &dyn std::fmt::Display| format!("Get \"http://{address}{path}\": {error}");
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let headers = http.http_headers.clone().unwrap_or_default();
    let named = |name: &str| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let mut request = hyper::Request::get(&path);
    for (name, value) in [
        ("host", address.to_string()),
        ("user-agent", "kube-probe/1.36".to_owned()),
        ("accept", "*/*".to_owned()),
    ] {
        if !named(name) {
            request = request.header(name, value);
        }
    }
    for header in &headers {
        request = request.header(&header.name, &header.value);
    }
    let request =
        request.header("connection", "close").body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let status = answer.status();
    // Read so that the server is not cut off; its size is bounded by the time limit only for what is kept: nothing.
    let mut body = answer.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
}

fn address(host: Option<&str>, port: &IntOrString, target: &Target) -> Result<SocketAddr, String> {
    let ip = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.parse().map_err(|_| format!("host {host:?} of the probe is not an address"))?,
        None => target.ip.ok_or("the pod has no address")?,
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
    let number = u16::try_from(number).map_err(|_| format!("port {number} is out of range"))?;
    Ok(SocketAddr::new(ip, number))
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
        let find = |port: IntOrString| address(None, &port, &target).map(|address| address.to_string());
        assert_eq!(find(IntOrString::String("http".into())), Ok("10.0.0.1:8080".into()));
        assert_eq!(find(IntOrString::Int(9)), Ok("10.0.0.1:9".into()));
        find(IntOrString::String("nope".into())).expect_err("no such port");
        find(IntOrString::Int(70000)).expect_err("out of range");
    }
}
