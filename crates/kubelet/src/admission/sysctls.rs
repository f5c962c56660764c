//! Kernel settings that a pod may have of its own: pure. Upstream: pkg/kubelet/sysctl.

use super::Rejection;
use crate::pod::model::Pod;

/// Sysctls that a pod may set: they are counted or limited per namespace. Upstream: pkg/kubelet/sysctl/safe_sysctls.go.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Those that are safe, and those that the node's admin allows: names, or prefixes that end in `*`. Names may be written with
/// dots or slashes. Values are the runtime's to check (CVE-2022-0811).
pub(super) fn allowed(pod: &Pod, unsafe_ones: &[String]) -> Result<(), Rejection> {
    let Some(spec) = &pod.source.spec else { return Ok(()) };
    let sysctls = spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten());
    for sysctl in sysctls {
        let name = sysctl.name.replace('/', ".");
        let is_of = |namespace: &str| name.starts_with(namespace);
        let trouble = if !SAFE_SYSCTLS.contains(&name.as_str()) && !is_allowed(&name, unsafe_ones) {
            "not allowlisted"
        } else if spec.host_network == Some(true) && is_of("net.") {
            "not allowed with host net enabled"
        } else if spec.host_ipc == Some(true) && (is_of("kernel.") || is_of("fs.mqueue.")) {
            "not allowed with host ipc enabled"
        } else {
            continue;
        };
        let message = format!("forbidden sysctl: {:?} {trouble}", sysctl.name);
        return Err(Rejection::new("SysctlForbidden", message));
    }
    Ok(())
}

/// Only what a namespace of the pod has can be allowed.
fn is_allowed(name: &str, unsafe_ones: &[String]) -> bool {
    let namespaced = ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    namespaced.iter().any(|prefix| name.starts_with(prefix))
        && unsafe_ones.iter().map(|pattern| pattern.replace('/', ".")).any(|pattern| {
            match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::NodeFacts;
    use super::super::tests::check;

    #[test]
    fn only_safe_sysctls_of_the_pod_s_own_namespaces_are_admitted() {
        let facts = NodeFacts::default();
        let sysctl = |name: &str| json!({ "sysctls": [{ "name": name, "value": "1" }] });
        let spec = |name: &str| json!({ "securityContext": sysctl(name) });
        check(spec("net.ipv4.tcp_syncookies"), &facts, None);
        check(spec("kernel/shm_rmid_forced"), &facts, None);
        for name in ["kernel.core_pattern", "net.core.somaxconn", "vm.swappiness"] {
            let expect = format!("forbidden sysctl: {name:?} not allowlisted");
            check(spec(name), &facts, Some(("SysctlForbidden", &expect)));
        }
        for (of_host, name, expect) in [
            ("hostNetwork", "net.ipv4.tcp_syncookies", "not allowed with host net enabled"),
            ("hostIPC", "kernel.shm_rmid_forced", "not allowed with host ipc enabled"),
        ] {
            let expect = format!("forbidden sysctl: {name:?} {expect}");
            let spec = json!({ of_host: true, "securityContext": sysctl(name) });
            check(spec, &facts, Some(("SysctlForbidden", &expect)));
        }
    }

    #[test]
    fn an_admin_can_allow_more_of_what_is_the_pod_s_own() {
        let allowed = ["net.core.somaxconn", "kernel.msg*", "vm.*"].map(str::to_owned);
        let facts = NodeFacts { allowed_sysctls: &allowed, ..NodeFacts::default() };
        let spec = |name: &str| json!({ "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } });
        check(spec("net.core.somaxconn"), &facts, None);
        check(spec("kernel.msgmax"), &facts, None);
        let expect = "forbidden sysctl: \"vm.swappiness\" not allowlisted";
        check(spec("vm.swappiness"), &facts, Some(("SysctlForbidden", expect)));
    }
}
