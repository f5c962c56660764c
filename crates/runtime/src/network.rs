//! What CNI is told of a sandbox: its namespace, whose it is, and what plugins may want to know. Pure.

use std::collections::BTreeMap;

use cni::Attachment;
use cri::v1::{PodSandboxConfig, Protocol};
use host::process::ProcessId;
use serde_json::{Value, json};

use crate::record::SandboxRecord;

/// What CNI connects. The namespace is of use while the supervisor lives.
pub(crate) fn attachment(record: &SandboxRecord, supervisor: Option<&ProcessId>) -> Attachment {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    Attachment {
        container_id: record.id.clone(),
        netns: supervisor.map(|process| format!("/proc/{}/ns/net", process.pid).into()),
        ifname: "eth0".to_owned(),
        pod_namespace: metadata.namespace,
        pod_name: metadata.name,
        pod_uid: metadata.uid,
        capabilities: capabilities(&record.config),
    }
}

/// `NAMESPACE/NAME`.
pub(crate) fn pod_name(record: &SandboxRecord) -> String {
    let metadata = record.config.metadata.as_ref();
    metadata.map(|metadata| format!("{}/{}", metadata.namespace, metadata.name)).unwrap_or_default()
}

/// The capabilities that CNI's conventions name; a plugin gets those that it declares.
fn capabilities(config: &PodSandboxConfig) -> BTreeMap<String, Value> {
    let mut capabilities = BTreeMap::new();
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match mapping.protocol() {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            json!({ "hostPort": mapping.host_port, "containerPort": mapping.container_port,
                "protocol": protocol, "hostIP": mapping.host_ip })
        })
        .collect();
    if !ports.is_empty() {
        capabilities.insert("portMappings".to_owned(), json!(ports));
    }
    if let Some(dns) = &config.dns_config {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        capabilities.insert("dns".to_owned(), dns);
    }
    let mut bandwidth = serde_json::Map::new();
    for (annotation, rate, burst) in [
        ("kubernetes.io/ingress-bandwidth", "ingressRate", "ingressBurst"),
        ("kubernetes.io/egress-bandwidth", "egressRate", "egressBurst"),
    ] {
        if let Some(bits) = config.annotations.get(annotation).and_then(|text| bits_per_second(text)) {
            bandwidth.insert(rate.to_owned(), json!(bits));
            bandwidth.insert(burst.to_owned(), json!(i32::MAX));
        }
    }
    if !bandwidth.is_empty() {
        capabilities.insert("bandwidth".to_owned(), Value::Object(bandwidth));
    }
    capabilities
}

/// A quantity as annotations write it: `10M`, `1Gi`, `5000`.
fn bits_per_second(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use cri::v1::PortMapping;

    use super::*;

    #[test]
    fn plugins_may_know_of_ports_names_and_rates() {
        let mapping = |host_port, protocol: Protocol| PortMapping {
            protocol: protocol.into(),
            container_port: 80,
            host_port,
            host_ip: "192.0.2.1".into(),
        };
        let config = PodSandboxConfig {
            port_mappings: vec![mapping(8080, Protocol::Udp), mapping(0, Protocol::Tcp)],
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())].into(),
            ..Default::default()
        };
        let found = capabilities(&config);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["bandwidth", "portMappings"]);
        let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1" });
        assert_eq!(found["portMappings"], json!([port]));
        assert_eq!(found["bandwidth"]["ingressRate"], 10_000_000);
        assert!(capabilities(&PodSandboxConfig::default()).is_empty());
        assert_eq!(
            (bits_per_second("1Ki"), bits_per_second("x"), bits_per_second("1T")),
            (Some(1024), None, None)
        );
    }
}
