//! /etc/hosts and resolv.conf of a pod: pure, but for reading the node's files.

use cri::v1::DnsConfig;

use crate::Config;
use crate::cri_requests::on_host_network;
use crate::names;
use crate::pod::model::Pod;

/// What resolvers take. Upstream: pkg/apis/core/validation.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LINE: usize = 2048;

/// The managed /etc/hosts of a pod with a network of its own; one on the host's network has the host's, with its aliases.
pub(crate) fn render_hosts(pod: &Pod, cluster: &str, ips: &[String], of_node: Option<&str>) -> String {
    let hostname = names::hostname(pod);
    let mut text = match of_node {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned(),
    };
    if of_node.is_none() {
        let domain =
            names::domain(pod, cluster).map_or_else(String::new, |domain| format!("{hostname}.{domain}\t"));
        ips.iter().for_each(|ip| text += &format!("{ip}\t{domain}{hostname}\n"));
    }
    let aliases = pod.source.spec.as_ref().and_then(|spec| spec.host_aliases.as_ref());
    if let Some(aliases) = aliases.filter(|aliases| !aliases.is_empty()) {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
        }
    }
    text
}

/// A pod's resolv.conf, and what had to be left out of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dns {
    pub(crate) config: DnsConfig,
    /// Sentences of upstream's DNSConfigForming events.
    pub(crate) omitted: Vec<String>,
}

/// What upstream tells where pods ask for a cluster DNS and there is none.
pub(crate) const NO_CLUSTER_DNS: &str = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";

/// What CRI gets. Without a cluster DNS, ClusterFirst is Default.
pub(crate) fn dns_of(pod: &Pod, config: &Config) -> Dns {
    let of_node = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let servers: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    render_dns(pod, &of_node, &servers, &config.cluster_domain)
}

fn render_dns(pod: &Pod, of_node: &str, cluster_servers: &[String], domain: &str) -> Dns {
    let spec = pod.source.spec.clone().unwrap_or_default();
    let mut dns = match spec.dns_policy.as_deref() {
        Some("None") => DnsConfig::default(),
        _ if wants_cluster_dns(pod) && !cluster_servers.is_empty() => DnsConfig {
            servers: cluster_servers.to_vec(),
            searches: cluster_searches(pod, domain).chain(parse_resolv_conf(of_node).searches).collect(),
            options: vec!["ndots:5".into()],
        },
        _ => parse_resolv_conf(of_node),
    };
    if let Some(extra) = spec.dns_config {
        dns.servers.extend(extra.nameservers.unwrap_or_default());
        dns.searches.extend(extra.searches.unwrap_or_default());
        for option in extra.options.unwrap_or_default() {
            let name = option.name.unwrap_or_default();
            let text = option.value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
            dns.options.retain(|known| known.split(':').next() != Some(name.as_str()));
            dns.options.push(text);
        }
    }
    unique(&mut dns.servers);
    unique(&mut dns.searches);
    limit(dns)
}

/// Services of the pod's namespace by their name alone.
fn cluster_searches(pod: &Pod, domain: &str) -> impl Iterator<Item = String> {
    let searches = [format!("{}.svc.{domain}", pod.namespace), format!("svc.{domain}"), domain.to_owned()];
    searches.into_iter().filter(|_| !domain.is_empty())
}

/// Whether a pod asks for the cluster's name servers; on the node's network only where it insists.
pub(crate) fn wants_cluster_dns(pod: &Pod) -> bool {
    let policy = pod.source.spec.as_ref().and_then(|spec| spec.dns_policy.as_deref());
    match policy {
        Some("ClusterFirstWithHostNet") => true,
        None | Some("ClusterFirst") => !on_host_network(pod),
        Some(_) => false,
    }
}

fn limit(mut dns: DnsConfig) -> Dns {
    let mut omitted = Vec::new();
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        omitted.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let asked = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.join(" ").len() > MAX_SEARCH_LINE {
        dns.searches.pop();
    }
    if dns.searches.len() < asked {
        omitted.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    Dns { config: dns, omitted }
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last one counts.
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

fn unique(words: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    words.retain(|word| seen.insert(word.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_resolver_reads_it() {
        let dns = parse_resolv_conf(
            "# x\nsearch a b\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch c\noptions ndots:2\n",
        );
        assert_eq!(
            (dns.servers.len(), dns.searches, dns.options),
            (2, vec!["c".to_owned()], vec!["ndots:2".to_owned()])
        );
    }

    #[test]
    fn policies_and_limits_decide_what_the_resolver_gets() {
        use crate::pod::model::tests::pod_of;
        let of_node = "search node\nnameserver 192.0.2.1\noptions ndots:2\n";
        let dns = |mut spec: serde_json::Value| {
            spec["containers"] = serde_json::json!([{ "name": "a", "image": "i" }]);
            render_dns(&pod_of(spec), of_node, &[], "cluster.local")
        };
        let extra = serde_json::json!({
            "nameservers": ["192.0.2.9"], "searches": ["own", "node"], "options": [{ "name": "ndots", "value": "5" }, { "name": "edns0" }],
        });
        for policy in ["Default", "ClusterFirst", "ClusterFirstWithHostNet"] {
            let made = dns(serde_json::json!({ "dnsPolicy": policy, "dnsConfig": extra }));
            assert_eq!(made.config.servers, ["192.0.2.1", "192.0.2.9"], "{policy}");
            assert_eq!(made.config.searches, ["node", "own"], "{policy}");
            assert_eq!(made.config.options, ["ndots:5", "edns0"], "{policy}");
        }
        let none = dns(serde_json::json!({ "dnsPolicy": "None", "dnsConfig": extra }));
        assert_eq!((none.config.servers.len(), none.config.searches.len(), none.omitted.len()), (1, 2, 0));
        let many: Vec<String> = (0..40).map(|number| format!("{number:02}")).collect();
        let servers = ["192.0.2.2", "192.0.2.3", "192.0.2.4"];
        let cut = dns(serde_json::json!({ "dnsConfig": { "nameservers": servers, "searches": many } }));
        assert_eq!((cut.config.servers.len(), cut.config.searches.len(), cut.omitted.len()), (3, 32, 2));
        let long: Vec<String> = (0..20).map(|number| format!("{number:0200}")).collect();
        let cut = dns(serde_json::json!({ "dnsPolicy": "None", "dnsConfig": { "searches": long } }));
        assert_eq!(cut.config.searches.len(), 10);
        assert!(cut.omitted[0].starts_with("Search Line limits were exceeded"), "{:?}", cut.omitted);
    }

    #[test]
    fn the_cluster_s_name_servers_are_for_those_who_ask_for_them() {
        use crate::pod::model::tests::pod_of;
        let of_node = "search node\nnameserver 192.0.2.1\noptions ndots:2\n";
        let dns = |policy: &str, host_network: bool, domain: &str| {
            let spec = serde_json::json!({
                "dnsPolicy": policy, "hostNetwork": host_network, "containers": [{ "name": "a", "image": "i" }],
            });
            render_dns(&pod_of(spec), of_node, &["10.96.0.10".into()], domain).config
        };
        for (policy, host_network, expect) in [
            ("ClusterFirst", false, "10.96.0.10"),
            ("ClusterFirst", true, "192.0.2.1"),
            ("ClusterFirstWithHostNet", true, "10.96.0.10"),
            ("Default", false, "192.0.2.1"),
        ] {
            assert_eq!(dns(policy, host_network, "c.local").servers, [expect], "{policy} {host_network}");
        }
        let made = dns("ClusterFirst", false, "c.local");
        assert_eq!(made.searches, ["default.svc.c.local", "svc.c.local", "c.local", "node"]);
        assert_eq!(made.options, ["ndots:5"]);
        assert_eq!(dns("ClusterFirst", false, "").searches, ["node"], "a cluster without a domain");
    }

    #[test]
    fn hosts_names_the_pod() {
        let pod = crate::pod::model::tests::pod(&["a"]);
        let text = render_hosts(&pod, "c.local", &["10.85.0.2".into()], None);
        assert!(text.ends_with("10.85.0.2\tp\n"), "{text}");
        assert!(render_hosts(&pod, "c.local", &[], Some("192.0.2.1 node\n")).ends_with("192.0.2.1 node\n"));
        let spec = serde_json::json!({
            "hostname": "web", "subdomain": "s", "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["x", "y"] }],
            "containers": [{ "name": "a", "image": "i" }],
        });
        let text =
            render_hosts(&crate::pod::model::tests::pod_of(spec), "c.local", &["10.85.0.2".into()], None);
        let expect =
            "10.85.0.2\tweb.s.default.svc.c.local\tweb\n\n# Entries added by HostAliases.\n192.0.2.7\tx\ty\n";
        assert!(text.ends_with(expect), "{text}");
    }
}
