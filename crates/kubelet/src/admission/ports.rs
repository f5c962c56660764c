//! Ports of the node that several pods want: pure. Upstream: scheduler, plugins/nodeports.

use super::{Rejection, predicate};
use crate::pod::model::{Pod, Role};

/// A port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    /// Empty for all addresses.
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn meets(&self, other: &Self) -> bool {
        let everywhere = self.ip.is_empty() || other.ip.is_empty();
        self.port == other.port && self.protocol == other.protocol && (everywhere || self.ip == other.ip)
    }
}

/// Whether nobody else has a port that the pod wants.
pub(super) fn fit(pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let taken: Vec<HostPort> = others.iter().flat_map(|other| host_ports(other)).collect();
    match wanted.iter().any(|port| taken.iter().any(|other| port.meets(other))) {
        true => Err(predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")),
        false => Ok(()),
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = pod.init_containers.iter().filter(|container| container.role == Role::Sidecar);
    let all = sidecars.chain(&pod.containers);
    let ports = all.flat_map(|container| container.spec.ports.iter().flatten());
    let host = ports.filter_map(|port| {
        let ip = port.host_ip.clone().unwrap_or_default();
        Some(HostPort {
            ip: if ["0.0.0.0", "::"].contains(&ip.as_str()) { String::new() } else { ip },
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    });
    host.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::NodeFacts;
    use super::super::tests::check;
    use crate::pod::model::tests::pod_of;

    #[test]
    fn a_port_of_the_node_is_given_once() {
        let spec = |port: Value| json!({ "containers": [{ "name": "a", "image": "i", "ports": [port] }] });
        let other = pod_of(spec(json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1" })));
        let others = [&other];
        let facts = NodeFacts { others: &others, ..NodeFacts::default() };
        let expect = Some((
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
        for (port, expect) in [
            (json!({ "containerPort": 80 }), None),
            (json!({ "containerPort": 80, "hostPort": 81 }), None),
            (json!({ "containerPort": 80, "hostPort": 80 }), expect),
            (json!({ "containerPort": 80, "hostPort": 80, "hostIP": "0.0.0.0" }), expect),
            (json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1" }), expect),
            (json!({ "containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.9" }), None),
            (json!({ "containerPort": 80, "hostPort": 80, "protocol": "UDP" }), None),
        ] {
            check(spec(port), &facts, expect);
        }
    }
}
