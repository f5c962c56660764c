//! /etc/hosts and resolv.conf of a pod: pure, but for reading the node's files.

use std::path::Path;

use cri::v1::DnsConfig;

use crate::pod::model::Pod;

/// The managed /etc/hosts of a pod with a network of its own; one on the host's network has the host's, with its aliases.
pub(crate) fn render_hosts(pod: &Pod, hostname: &str, ips: &[String], of_node: Option<&str>) -> String {
    let mut text = match of_node {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned(),
    };
    if of_node.is_none() {
        ips.iter().for_each(|ip| text += &format!("{ip}\t{hostname}\n"));
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

/// What CRI gets. Without a cluster DNS, ClusterFirst is Default; the caller tells so by an event.
pub(crate) fn dns_of(pod: &Pod, node_resolv_conf: &Path) -> DnsConfig {
    let spec = pod.source.spec.clone().unwrap_or_default();
    let mut dns = match spec.dns_policy.as_deref() {
        Some("None") => DnsConfig::default(),
        _ => parse_resolv_conf(&std::fs::read_to_string(node_resolv_conf).unwrap_or_default()),
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
    dns
}

/// Whether a pod asks for a cluster DNS that a standalone node does not have.
pub(crate) fn misses_cluster_dns(pod: &Pod) -> bool {
    let spec = pod.source.spec.as_ref();
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref());
    matches!(policy, None | Some("ClusterFirst" | "ClusterFirstWithHostNet"))
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
    fn hosts_names_the_pod() {
        let pod = crate::pod::model::tests::pod(&["a"]);
        let text = render_hosts(&pod, "web", &["10.85.0.2".into()], None);
        assert!(text.ends_with("10.85.0.2\tweb\n"), "{text}");
        assert!(render_hosts(&pod, "web", &[], Some("192.0.2.1 node\n")).ends_with("192.0.2.1 node\n"));
    }
}
