//! What no probe and no hook of a container can be.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::container::{Place, Role, exactly_one, number};
use super::{one_of, tell};
use crate::decode::Fault;

/// Checks the probes and hooks of a container.
pub(super) fn all(container: &Container, place: &Place<'_>, faults: &mut Vec<Fault>) {
    let at = place.at;
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    for (field, found) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        let Some(found) = found else { continue };
        let path = format!("{at}.{field}");
        if place.role == Role::Init && !sidecar {
            tell(faults, path, "an init container has none, unless its restartPolicy is Always");
        } else {
            probe(found, field, &path, container, faults);
        }
    }
    if let Some(lifecycle) = &container.lifecycle {
        for (field, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let Some(handler) = handler else { continue };
            let path = format!("{at}.lifecycle.{field}");
            if place.role == Role::Init && !sidecar {
                tell(faults, path, "an init container has none, unless its restartPolicy is Always");
            } else {
                hook(handler, &path, container, faults);
            }
        }
    }
}

fn probe(probe: &Probe, field: &str, at: &str, container: &Container, faults: &mut Vec<Fault>) {
    let given =
        [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    exactly_one(faults, at, &given);
    action(&probe.exec, &probe.http_get, &probe.tcp_socket, at, container, faults);
    if let Some(GRPCAction { port, .. }) = &probe.grpc {
        number(faults, &format!("{at}.grpc.port"), *port);
    }
    for (name, value, least) in [
        ("initialDelaySeconds", probe.initial_delay_seconds, 0),
        ("timeoutSeconds", probe.timeout_seconds, 1),
        ("periodSeconds", probe.period_seconds, 1),
        ("successThreshold", probe.success_threshold, 1),
        ("failureThreshold", probe.failure_threshold, 1),
    ] {
        if let Some(value) = value.filter(|value| *value < least) {
            tell(faults, format!("{at}.{name}"), format!("{value} is less than {least}"));
        }
    }
    if field != "readinessProbe" && probe.success_threshold.is_some_and(|threshold| threshold > 1) {
        tell(faults, format!("{at}.successThreshold"), "is 1 for this probe");
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        if field == "readinessProbe" {
            tell(
                faults,
                format!("{at}.terminationGracePeriodSeconds"),
                "not for a readiness probe: it kills nothing",
            );
        } else if seconds < 1 {
            tell(faults, format!("{at}.terminationGracePeriodSeconds"), format!("{seconds} is less than 1"));
        }
    }
}

fn hook(handler: &LifecycleHandler, at: &str, container: &Container, faults: &mut Vec<Fault>) {
    let given = [
        handler.exec.is_some(),
        handler.http_get.is_some(),
        handler.tcp_socket.is_some(),
        handler.sleep.is_some(),
    ];
    exactly_one(faults, at, &given);
    action(&handler.exec, &handler.http_get, &handler.tcp_socket, at, container, faults);
}

fn action(
    exec: &Option<ExecAction>,
    http: &Option<HTTPGetAction>,
    tcp: &Option<TCPSocketAction>,
    at: &str,
    container: &Container,
    faults: &mut Vec<Fault>,
) {
    if exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        tell(faults, format!("{at}.exec.command"), "required");
    }
    if let Some(http) = http {
        one_of(faults, &format!("{at}.httpGet.scheme"), http.scheme.as_deref(), &["HTTP", "HTTPS"]);
        target(&http.port, &format!("{at}.httpGet.port"), container, faults);
        for (index, header) in http.http_headers.iter().flatten().enumerate() {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if header.name.is_empty() || !header.name.bytes().all(token) {
                let path = format!("{at}.httpGet.httpHeaders[{index}].name");
                tell(faults, path, format!("{:?} is not the name of an HTTP header", header.name));
            }
        }
    }
    if let Some(tcp) = tcp {
        target(&tcp.port, &format!("{at}.tcpSocket.port"), container, faults);
    }
}

/// A port by number, or by the name that the container gives it.
fn target(port: &IntOrString, path: &str, container: &Container, faults: &mut Vec<Fault>) {
    match port {
        IntOrString::Int(port) => number(faults, path, *port),
        IntOrString::String(name) => {
            let known = container.ports.iter().flatten().any(|port| port.name.as_ref() == Some(name));
            if !known {
                tell(faults, path, format!("{name:?} is not the name of a port of this container"));
            }
        }
    }
}
