//! The addresses of Services as variables of containers: pure. Upstream: pkg/kubelet/envvars.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The Service of the API server itself, which every pod is told of.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// What a container of that namespace is told: of every Service of its namespace if it wants `links`, and of the API server.
pub(crate) fn variables(services: &[Service], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut told = BTreeMap::new();
    for service in services.iter().filter(|service| cluster_ip(service).is_some()) {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or("default");
        if of == namespace && links {
            told.insert(name, service);
        } else if (of, name) == MASTER {
            // One of that name in the pod's own namespace is nearer.
            told.entry(name).or_insert(service);
        }
    }
    told.into_iter().flat_map(|(name, service)| of_service(name, service)).collect()
}

/// A headless Service has none.
fn cluster_ip(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.cluster_ip.as_deref().filter(|ip| !matches!(*ip, "" | "None"))
}

fn of_service(name: &str, service: &Service) -> Vec<(String, String)> {
    let (prefix, ip) = (variable_name(name), cluster_ip(service).unwrap_or_default());
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).collect::<Vec<_>>();
    let mut variables = vec![(format!("{prefix}_SERVICE_HOST"), ip.to_owned())];
    variables.extend(ports.first().map(|first| (format!("{prefix}_SERVICE_PORT"), first.port.to_string())));
    for port in &ports {
        let named = port.name.as_deref().filter(|name| !name.is_empty());
        variables.extend(
            named.map(|name| {
                (format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string())
            }),
        );
    }
    variables.extend(ports.first().map(|first| (format!("{prefix}_PORT"), url(ip, first))));
    variables.extend(ports.iter().flat_map(|port| links_of(&prefix, ip, port)));
    variables
}

/// As Docker's links were.
fn links_of(prefix: &str, ip: &str, port: &ServicePort) -> [(String, String); 4] {
    let prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
    [
        (prefix.clone(), url(ip, port)),
        (format!("{prefix}_PROTO"), protocol(port)),
        (format!("{prefix}_PORT"), port.port.to_string()),
        (format!("{prefix}_ADDR"), ip.to_owned()),
    ]
}

fn url(ip: &str, port: &ServicePort) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("{}://{host}:{}", protocol(port), port.port)
}

fn protocol(port: &ServicePort) -> String {
    port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP").to_lowercase()
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str, ports: Value) -> Service {
        let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": { "clusterIP": ip, "ports": ports } });
        serde_json::from_value(object).expect("a service")
    }

    fn lines(services: &[Service], namespace: &str, links: bool) -> Vec<String> {
        variables(services, namespace, links)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test]
    fn a_service_is_told_as_docker_s_links_were() {
        let ports = json!([{ "name": "p-1", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        let told = lines(&[service("n", "my-web", "10.96.0.2", ports)], "n", true);
        let expect = [
            "MY_WEB_SERVICE_HOST=10.96.0.2",
            "MY_WEB_SERVICE_PORT=80",
            "MY_WEB_SERVICE_PORT_P_1=80",
            "MY_WEB_SERVICE_PORT_DNS=53",
            "MY_WEB_PORT=tcp://10.96.0.2:80",
            "MY_WEB_PORT_80_TCP=tcp://10.96.0.2:80",
            "MY_WEB_PORT_80_TCP_PROTO=tcp",
            "MY_WEB_PORT_80_TCP_PORT=80",
            "MY_WEB_PORT_80_TCP_ADDR=10.96.0.2",
            "MY_WEB_PORT_53_UDP=udp://10.96.0.2:53",
            "MY_WEB_PORT_53_UDP_PROTO=udp",
            "MY_WEB_PORT_53_UDP_PORT=53",
            "MY_WEB_PORT_53_UDP_ADDR=10.96.0.2",
        ];
        assert_eq!(told, expect);
        let six = lines(&[service("n", "six", "fd00::2", json!([{ "port": 1 }]))], "n", true);
        assert!(six.contains(&"SIX_PORT=tcp://[fd00::2]:1".to_owned()), "{six:?}");
    }

    #[test]
    fn a_pod_is_told_of_its_namespace_and_of_the_api_server() {
        let port = json!([{ "port": 443 }]);
        let services = [
            service("default", "kubernetes", "10.96.0.1", port.clone()),
            service("default", "other", "10.96.0.3", port.clone()),
            service("n", "headless", "None", port.clone()),
            service("n", "outside", "", json!([])),
            service("n", "web", "10.96.0.2", port.clone()),
        ];
        let hosts = |services: &[Service], links: bool| -> Vec<String> {
            let all = lines(services, "n", links);
            all.into_iter().filter(|line| line.contains("_HOST=")).collect()
        };
        assert_eq!(
            hosts(&services, true),
            ["KUBERNETES_SERVICE_HOST=10.96.0.1", "WEB_SERVICE_HOST=10.96.0.2"]
        );
        assert_eq!(hosts(&services, false), ["KUBERNETES_SERVICE_HOST=10.96.0.1"]);
        let own = service("n", "kubernetes", "10.96.0.9", port);
        for order in [vec![own.clone(), services[0].clone()], vec![services[0].clone(), own]] {
            assert_eq!(hosts(&order, true), ["KUBERNETES_SERVICE_HOST=10.96.0.9"]);
        }
    }
}
