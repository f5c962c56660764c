//! What a pod's manifest says of namespaces, names, users and rights, seen from inside its containers.

use anyhow::{Context, Result};
use e2e::TestHost;
use e2e::story::{Story, container_id};
use serde_json::Value;

/// A pod that runs a script in its only container; both extras are more fields, of its spec and of its container.
fn pod(name: &str, script: &str, spec: &str, container: &str) -> String {
    let script = script.lines().map(|line| format!("      {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
{spec}  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - |
{script}{container}"
    )
}

fn waiting(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}: {}", text(&waiting["reason"]), text(&waiting["message"]))
}

#[test]
#[ignore = "needs root"]
fn a_pod_may_live_in_the_node_s_namespaces() -> Result<()> {
    let script = "for name in net ipc uts pid; do readlink /proc/self/ns/$name; done
cat /proc/1/comm
cat /etc/hosts | head -1
echo $IP
echo end";
    let ip = "    env:\n    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}\n";
    let spec = "  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n";
    let story = Story::start(&[("pod.yaml", &pod("host", script, spec, ip))])?;
    let names = ["net", "ipc", "uts", "pid"];
    let of_node = names.map(|name| story.host.run("readlink", &[&format!("/proc/self/ns/{name}")]));
    let of_node: String = of_node.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let first = std::fs::read_to_string("/proc/1/comm")?;
    let expect = format!("{of_node}{first}# Kubernetes-managed hosts file (host network).\n192.0.2.2\nend\n");
    assert_eq!(story.output("host")?, expect);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn containers_of_a_pod_can_share_their_processes() -> Result<()> {
    let second = "  - name: other\n    image: IMAGE\n    command: [sleep, '1000111']\n";
    let shared = pod("shared", "exec sleep 1000222", "  shareProcessNamespace: true\n", second);
    let apart = pod("apart", "exec sleep 1000222", "", second);
    let story = Story::start(&[("shared.yaml", &shared), ("apart.yaml", &apart)])?;
    for (name, expect) in [("shared", 2), ("apart", 1)] {
        let id = container_id(&story.ready(name)?)?;
        let seen = story.exec(&id, "ps -o args | grep -c '^sleep 1000'")?;
        assert_eq!(seen.trim(), expect.to_string(), "{name}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn names_and_resolvers_are_those_of_the_manifest() -> Result<()> {
    let script = "hostname
grep web.inner /etc/hosts | sed 's/^[0-9.]*//'
tail -1 /etc/hosts
cat /etc/resolv.conf
echo end";
    let spec = "  hostname: web
  subdomain: inner
  setHostnameAsFQDN: true
  hostAliases:
  - {ip: 192.0.2.7, hostnames: [one.test, two.test]}
  dnsPolicy: None
  dnsConfig:
    nameservers: [192.0.2.53]
    searches: [a.test, b.test]
    options: [{name: ndots, value: '3'}, {name: edns0}]
";
    let story = Story::start(&[("pod.yaml", &pod("named", script, spec, ""))])?;
    let expect = "web.inner.default.svc.cluster.local
\tweb.inner.default.svc.cluster.local\tweb
192.0.2.7\tone.test\ttwo.test
search a.test b.test
nameserver 192.0.2.53
options ndots:3 edns0
end
";
    assert_eq!(story.output("named")?, expect);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn users_groups_and_rights_are_those_of_the_manifest() -> Result<()> {
    let script = "id -u; id -g; id -G
grep -E '^(NoNewPrivs|CapInh|CapEff)' /proc/self/status | tr '\\t' ' '
cat /proc/sys/net/ipv4/tcp_syncookies /proc/sys/net/ipv4/ping_group_range
head -c 1 /proc/kcore | wc -c
echo end";
    let spec = "  securityContext:
    runAsUser: 33
    runAsGroup: 44
    runAsNonRoot: true
    fsGroup: 55
    supplementalGroups: [66]
    supplementalGroupsPolicy: Strict
    sysctls:
    - {name: net.ipv4.tcp_syncookies, value: '0'}
    - {name: net.ipv4.ping_group_range, value: '7 8'}
";
    let container = "    securityContext:\n      allowPrivilegeEscalation: false\n      procMount: Default\n";
    let strict = pod("strict", script, spec, container);
    let merged = pod("merged", "id -G; echo end", &spec.replace("Strict", "Merge"), "");
    let story = Story::start(&[("strict.yaml", &strict), ("merged.yaml", &merged)])?;
    let expect = "33
44
44 55 66
CapInh: 0000000000000000
CapEff: 0000000000000000
NoNewPrivs: 1
0
7\t8
0
end
";
    assert_eq!(story.output("strict")?, expect);
    let merged = story.output("merged")?;
    let mut groups: Vec<&str> = merged.lines().next().context("groups")?.split(' ').collect();
    groups.sort_unstable();
    assert_eq!(groups, ["100", "44", "55", "66"], "the image's own groups too");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_seccomp_profile_of_the_node_confines_and_a_missing_one_is_waited_for() -> Result<()> {
    let host = TestHost::new()?;
    let profiles = host.path().join("root/kubelet/seccomp");
    std::fs::create_dir_all(&profiles)?;
    let rules = "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\",\"mkdirat\"],\"action\":\"SCMP_ACT_ERRNO\"}]}";
    std::fs::write(profiles.join("no-mkdir.json"), rules)?;
    let profile = |name: &str| {
        format!("  securityContext:\n    seccompProfile: {{type: Localhost, localhostProfile: {name}}}\n")
    };
    let script = "mkdir /tmp/x 2>/dev/null || echo refused\ntouch /tmp/y && echo allowed\necho end";
    let files = [
        ("pod.yaml", pod("confined", script, &profile("no-mkdir.json"), "")),
        ("absent.yaml", pod("absent", script, &profile("absent.json"), "")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let story = Story::start_on(host, &files, &[])?;
    assert_eq!(story.output("confined")?, "refused\nallowed\nend\n");
    let absent = story.pod_until("absent", "it waits", |pod| waiting(pod).contains("absent.json"))?;
    assert!(waiting(&absent).starts_with("CreateContainer"), "{}", absent["status"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_a_pod_may_not_be_is_refused_with_the_reason() -> Result<()> {
    let sysctl = "  securityContext:\n    sysctls:\n    - {name: kernel.core_pattern, value: '|/bin/evil'}\n";
    let root = "  securityContext: {runAsNonRoot: true}\n";
    let profile = "  securityContext:\n    appArmorProfile: {type: RuntimeDefault}\n";
    let files = [
        ("sysctl.yaml", pod("sysctl", "echo end", sysctl, "")),
        ("apparmor.yaml", pod("apparmor", "echo end", profile, "")),
        ("root.yaml", pod("root", "echo end", root, "")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let story = Story::start(&files)?;
    for (name, sentence) in
        [("sysctl", "forbidden sysctl: \"kernel.core_pattern\" not allowlisted"), ("apparmor", "AppArmor")]
    {
        let refused = story.pod_until(name, "it is refused", |pod| pod["status"]["phase"] == "Failed")?;
        let message = refused["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(sentence), "{message}");
    }
    story.pod_until("root", "it waits", |pod| {
        waiting(pod) == "CreateContainerConfigError: container has runAsNonRoot and image will run as root"
    })?;
    Ok(())
}
