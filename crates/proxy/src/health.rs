//! What load balancers and monitors ask: `/healthz` of the proxy, and for each Service with a `healthCheckNodePort` whether
//! this node has endpoints.
//!
//! It does not know whether the node itself is going away, so that `/healthz` and `/livez` say the same.

mod server;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hostnet::netfilter::PerFamily;
use manifest::ObjectKey;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::ServiceMap;
use server::Server;

/// A change that is not programmed after so long is no good sign: upstream's two sync periods.
const LATE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Since when a change waits to be programmed.
    waiting: Option<Instant>,
    updated: Option<SystemTime>,
    local: BTreeMap<ObjectKey, usize>,
}

/// Answers for as long as the proxy is on.
pub(crate) struct Health {
    healthz: Option<SocketAddr>,
    state: watch::Sender<Arc<State>>,
    servers: BTreeMap<Question, Server>,
    wanted: BTreeMap<u16, ObjectKey>,
    open: bool,
}

/// What a listener answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Question {
    /// Whether the proxy works.
    Proxy(SocketAddr),
    /// Whether a Service has endpoints here.
    Service(u16, ObjectKey),
}

/// How many endpoints this node has, for each Service with a health check: by its port.
pub(crate) fn local_counts(services: &PerFamily<ServiceMap>) -> BTreeMap<u16, (ObjectKey, usize)> {
    let mut counts: BTreeMap<u16, (ObjectKey, usize)> = BTreeMap::new();
    for (name, port) in services.v4.iter().chain(&services.v6) {
        let Some(number) = port.health_check_node_port else { continue };
        // Its pods, however many ports and families they have.
        let entry = counts.entry(number).or_insert_with(|| (name.service.clone(), 0));
        entry.1 = entry.1.max(port.local.len());
    }
    counts
}

impl Health {
    pub(crate) fn new(healthz: Option<SocketAddr>) -> Self {
        let (state, _) = watch::channel(Arc::default());
        Self { healthz, state, servers: BTreeMap::new(), wanted: BTreeMap::new(), open: false }
    }

    /// From now on it is asked.
    pub(crate) fn open(&mut self) {
        self.open = true;
        self.listen();
    }

    /// The ports are somebody else's from now on.
    pub(crate) fn close(&mut self) {
        self.open = false;
        self.wanted.clear();
        self.servers.clear();
        self.state.send_replace(Arc::default());
    }

    /// A change is to be programmed.
    pub(crate) fn wants(&self, on: bool) {
        if on {
            self.state.send_modify(|state| {
                Arc::make_mut(state).waiting.get_or_insert_with(Instant::now);
            });
        }
    }

    /// A round is over.
    pub(crate) fn served(&mut self, worked: bool, counts: BTreeMap<u16, (ObjectKey, usize)>) {
        self.wanted = counts.iter().map(|(port, (service, _))| (*port, service.clone())).collect();
        self.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.local = counts.into_values().collect();
            if worked {
                (state.waiting, state.updated) = (None, Some(now()));
            }
        });
        self.listen();
    }

    /// Brings the listeners to what is wanted; those that cannot be opened are tried again in the next round.
    fn listen(&mut self) {
        let services = self.wanted.iter().map(|(port, service)| Question::Service(*port, service.clone()));
        let wanted: Vec<Question> =
            self.healthz.iter().map(|at| Question::Proxy(*at)).chain(services).collect();
        self.servers.retain(|question, server| wanted.contains(question) && server.is_alive());
        for question in wanted.into_iter().filter(|_| self.open) {
            if !self.servers.contains_key(&question) {
                match Server::start(question.clone(), self.state.subscribe()) {
                    Ok(server) => drop(self.servers.insert(question, server)),
                    Err(error) => tracing::warn!(?question, %error, "listen for health checks"),
                }
            }
        }
    }
}

impl Question {
    /// Where to listen, in the order in which to try.
    fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Proxy(at) => vec![*at],
            Self::Service(port, _) => {
                let all: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
                all.map(|ip| SocketAddr::new(ip, *port)).into()
            }
        }
    }

    /// The answer, in upstream's words.
    fn answer(&self, path: &str, state: &State, at: Instant, now: SystemTime) -> Answer {
        let healthy = state.waiting.is_none_or(|since| at.duration_since(since) < LATE);
        match self {
            Self::Proxy(_) if !["/healthz", "/livez"].contains(&path) => Answer::not_found(),
            Self::Proxy(_) => {
                let (updated, now) = (text_of(state.updated.unwrap_or(SystemTime::UNIX_EPOCH)), text_of(now));
                let body =
                    serde_json::json!({"lastUpdated": updated, "currentTime": now, "nodeEligible": true});
                Answer { status: status(healthy), weight: None, body: body.to_string() }
            }
            Self::Service(_, service) => {
                let count = state.local.get(service).copied().unwrap_or_default();
                let body = serde_json::json!({
                    "service": {"namespace": service.namespace, "name": service.name},
                    "localEndpoints": count,
                    "serviceProxyHealthy": healthy,
                });
                Answer { status: status(healthy && count > 0), weight: Some(count), body: body.to_string() }
            }
        }
    }
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// `X-Load-Balancing-Endpoint-Weight`.
    weight: Option<usize>,
    body: String,
}

impl Answer {
    fn not_found() -> Self {
        Self { status: 404, weight: None, body: "404 page not found\n".to_owned() }
    }
}

fn status(good: bool) -> u16 {
    if good { 200 } else { 503 }
}

fn text_of(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "what a health check tells has the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Protocol, ServicePort, ServicePortName};

    #[test]
    fn a_service_is_healthy_here_when_it_has_endpoints_here_and_the_proxy_works() {
        let began = Instant::now();
        let web = ObjectKey::new("default", "web");
        let question = Question::Service(31000, web.clone());
        let check = |waiting: Option<Instant>, count: usize, expect: (u16, &str)| {
            let state = State { waiting, updated: None, local: [(web.clone(), count)].into() };
            let answer = question.answer("/", &state, began + LATE, SystemTime::UNIX_EPOCH);
            assert_eq!((answer.status, answer.weight), (expect.0, Some(count)));
            assert_eq!(answer.body, expect.1);
        };
        let body = |count: usize, healthy: bool| {
            format!(
                r#"{{"localEndpoints":{count},"service":{{"name":"web","namespace":"default"}},"serviceProxyHealthy":{healthy}}}"#
            )
        };
        check(None, 2, (200, &body(2, true)));
        check(None, 0, (503, &body(0, true)));
        check(Some(began), 2, (503, &body(2, false)));
        check(Some(began + LATE / 2), 2, (200, &body(2, true)));
    }

    #[test]
    fn the_proxy_is_healthy_unless_a_change_waits_for_long() {
        let began = Instant::now();
        let question = Question::Proxy(([0, 0, 0, 0], 10256).into());
        let status = |path: &str, waiting: Option<Instant>| {
            let state = State { waiting, ..State::default() };
            question.answer(path, &state, began + LATE, SystemTime::UNIX_EPOCH).status
        };
        assert_eq!((status("/healthz", None), status("/livez", None)), (200, 200));
        assert_eq!((status("/healthz", Some(began)), status("/livez", Some(began))), (503, 503));
        assert_eq!(status("/metrics", None), 404);
    }

    #[test]
    fn a_service_s_endpoints_are_counted_once_however_many_ports_it_has() {
        let port = |last: &[u8]| ServicePort {
            health_check_node_port: Some(31000),
            local: last.iter().map(|last| Endpoint { ip: [10, 1, 0, *last].into(), port: 80 }).collect(),
            ..ServicePort::new([10, 96, 0, 1].into(), 80)
        };
        let name = |port: &str| ServicePortName {
            service: ObjectKey::new("default", "web"),
            port: port.to_owned(),
            protocol: Protocol::Tcp,
        };
        let v4 = ServiceMap::from([(name("a"), port(&[1, 2])), (name("b"), port(&[1]))]);
        let services = PerFamily { v4: v4.clone(), v6: v4 };
        assert_eq!(local_counts(&services), [(31000, (ObjectKey::new("default", "web"), 2))].into());
    }
}
