//! How a machine becomes a node: `podwright join` with a bootstrap token, each way in which that can fail, and what becomes
//! of the node's certificates later. Approving and signing is done by the real controller-manager and by kubectl.

use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use e2e::cluster::certificates::Period;
use e2e::cluster::control_plane::member;
use e2e::cluster::images::{self, BUSYBOX};
use e2e::cluster::kubeconfig;
use e2e::cluster::story::{shared, text};
use e2e::cluster::{Cluster, objects};
use e2e::lab::{Machine, ROUTER};
use e2e::parts;
use e2e::test_host::{Daemon, eventually, text_of};
use e2e::uml::Guest;
use serde_json::Value;

const SECRET: &str = "0123456789abcdef";
const AGENT: [&str; 2] = ["agent", "--config=/var/lib/kubelet/config.yaml"];
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// A machine that is no node yet, or was made one by a story.
struct Newcomer {
    cluster: &'static Cluster,
    machine: Machine,
    token: String,
}

impl Newcomer {
    fn new(name: &str) -> Result<Self> {
        let cluster = shared();
        let machine = cluster.machine(name)?;
        let token = cluster.create_token(&token_id(), SECRET)?;
        Ok(Self { cluster, machine, token })
    }

    fn name(&self) -> &str {
        &self.machine.name
    }

    fn endpoint(&self) -> String {
        format!("{}:6443", self.cluster.control_plane.machine().address)
    }

    fn hash(&self) -> String {
        self.cluster.control_plane.authority().public_key_hash()
    }

    /// The flags that a machine of the lab needs.
    fn flags(&self) -> Vec<String> {
        self.flags_at(&self.machine.address)
    }

    fn flags_at(&self, address: &str) -> Vec<String> {
        vec![
            format!("--registry-config-dir={}", self.machine.host.path().join("certs.d").display()),
            format!("--cgroup-root={}", self.machine.cgroup),
            format!("--node-ip={address}"),
            "--pod-network=builtin".to_owned(),
        ]
    }

    /// `podwright join` as kubeadm prints the line.
    fn join(&self) -> Result<Daemon> {
        let (endpoint, hash) = (self.endpoint(), self.hash());
        let line = ["join", &endpoint, "--token", &self.token, "--discovery-token-ca-cert-hash", &hash];
        self.start(&line)
    }

    fn start(&self, line: &[&str]) -> Result<Daemon> {
        self.start_at(&self.machine.address, line)
    }

    fn start_at(&self, address: &str, line: &[&str]) -> Result<Daemon> {
        let mut command = self.machine.host.command(parts::podwright());
        self.machine.host.spawn("podwright", command.args(line).args(self.flags_at(address)))
    }

    /// `podwright agent` as after a boot.
    fn agent(&self) -> Result<Daemon> {
        self.start(&AGENT)
    }

    /// Joins, and waits until the node is Ready.
    fn joined(&self) -> Result<Daemon> {
        let agent = self.join()?;
        self.wait_ready(&agent)?;
        Ok(agent)
    }

    fn wait_ready(&self, agent: &Daemon) -> Result<()> {
        self.wait_ready_with(|| agent.log())
    }

    fn wait_ready_with(&self, log: impl Fn() -> String) -> Result<()> {
        let node = format!("node/{}", self.name());
        let wait = |condition: &str| self.cluster.kubectl(&["wait", condition, &node, "--timeout=90s"]);
        wait("--for=create").and_then(|_| wait("--for=condition=Ready")).map(drop).with_context(log)
    }

    /// A `podwright join` that must not work.
    fn refused(&self, line: &[&str]) -> Result<(i32, String)> {
        let mut command = self.machine.host.command(parts::podwright());
        let output: Output = command.arg("join").args(line).args(self.flags()).output()?;
        Ok((output.status.code().unwrap_or(-1), text_of(&output)))
    }

    /// Every file by which a machine could be taken for a node.
    fn files(&self) -> Result<String> {
        self.shell("find /etc/kubernetes /var/lib/kubelet ! -type d 2>/dev/null || true")
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.machine.host.run("sh", &["-c", script])
    }

    /// Runs a pod on the node, and waits until it is Ready.
    fn run_pod(&self, name: &str) -> Result<()> {
        let pod = format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {}
  terminationGracePeriodSeconds: 1
  volumes: [{{name: kept, emptyDir: {{}}}}]
  containers: [{{name: c, image: '{BUSYBOX}', command: [sleep, '100000']}}]
",
            self.name()
        );
        self.cluster.apply(&pod)?;
        let wait = ["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=90s"];
        self.cluster.kubectl(&wait).map(drop)
    }

    /// What is known of a pod's container.
    fn container(&self, pod: &str) -> Result<Value> {
        Ok(self.cluster.get(&[&format!("pod/{pod}")])?["status"]["containerStatuses"][0].clone())
    }

    fn restarts(&self, pod: &str) -> Result<Value> {
        Ok(self.container(pod)?["restartCount"].clone())
    }

    /// Requests of the node that are for that signer, newest last.
    fn requests(&self, signer: &str) -> Result<Vec<Value>> {
        let all = self.cluster.get(&["csr", "--sort-by=.metadata.creationTimestamp"])?;
        let user = format!("system:node:{}", self.name());
        let ours =
            |one: &&Value| one["spec"]["username"] == user.as_str() && one["spec"]["signerName"] == signer;
        Ok(all["items"].as_array().into_iter().flatten().filter(ours).cloned().collect())
    }

    /// Puts a client certificate that holds for `period` in the place of the present one.
    fn replace_certificate(&self, period: Period) -> Result<()> {
        let user = format!("system:node:{}", self.name());
        let identity =
            self.cluster.control_plane.authority().client_within(member(&user, "system:nodes"), period)?;
        let file = self.machine.host.path().join("short.pem");
        std::fs::write(&file, format!("{}{}", identity.certificate, identity.key))?;
        self.shell(&format!("cat {} > {CURRENT}", file.display())).map(drop)
    }
}

/// Tokens of one cluster have different names.
fn token_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("join{:02}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[expect(clippy::disallowed_methods, reason = "certificates hold by the wall clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[test]
#[ignore = "needs a cluster"]
fn a_machine_joins_runs_pods_and_comes_back_after_a_restart() -> Result<()> {
    let new = Newcomer::new("joiner")?;
    let mut agent = new.joined()?;
    // What it runs by is kubeadm's; the token is nowhere.
    let modes = new.shell("stat -Lc '%a %n' /etc/kubernetes/kubelet.conf /etc/kubernetes/pki/ca.crt /var/lib/kubelet/config.yaml /var/lib/kubelet/pki/kubelet-client-current.pem")?;
    let expect = format!(
        "600 /etc/kubernetes/kubelet.conf\n644 /etc/kubernetes/pki/ca.crt\n644 /var/lib/kubelet/config.yaml\n600 {CURRENT}\n"
    );
    assert_eq!(modes, expect);
    assert_eq!(
        new.shell(&format!(
            "grep -rl {SECRET} /etc/kubernetes /var/lib/kubelet /var/lib/podwright/joined || true"
        ))?,
        ""
    );
    // The cluster's own controllers approved and signed.
    let bootstrap = format!("system:bootstrap:{}", &new.token[..6]);
    let requests = new.cluster.get(&["csr"])?;
    let mut requests = requests["items"].as_array().into_iter().flatten();
    let request =
        requests.find(|one| one["spec"]["username"] == bootstrap.as_str()).context("its request")?;
    assert_eq!(request["status"]["conditions"][0]["reason"], "AutoApproved");
    assert!(!text(&request["status"]["certificate"]).is_empty());
    // The rights that a node lacks are told, with what an admin does about it.
    let told = agent.log().contains("deploy/rbac.yaml");
    let user = format!("--as=system:node:{}", new.name());
    let may =
        ["auth", "can-i", "watch", "endpointslices.discovery.k8s.io", "-A", &user, "--as-group=system:nodes"];
    assert_eq!(told, new.cluster.kubectl(&may).is_err(), "{}", agent.log());
    new.run_pod("joined")?;
    agent.terminate()?;
    let (endpoint, hash) = (new.endpoint(), new.hash());
    let line = [&endpoint, "--token", &new.token, "--discovery-token-ca-cert-hash", &hash];
    let (code, message) = new.refused(&line)?;
    assert_eq!(code, 16, "{message}");
    assert!(message.contains("is the node joiner of https://192.0.2.10:6443 already"), "{message}");
    let agent = new.agent()?;
    new.wait_ready(&agent)?;
    let lease = || new.cluster.get(&["-n", "kube-node-lease", "lease/joiner"]);
    let before = lease()?["spec"]["renewTime"].clone();
    eventually("the lease is renewed", || (lease().ok()?["spec"]["renewTime"] != before).then_some(()))?;
    assert_eq!(new.restarts("joined")?, 0);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn each_wrong_word_has_its_message_and_leaves_nothing() -> Result<()> {
    let new = Newcomer::new("refused")?;
    let (endpoint, hash, token) = (new.endpoint(), new.hash(), new.token.clone());
    let id = &token[..6];
    let wrong_secret = format!("{id}.0123456789abcdee");
    let wrong_hash = hash.replace(&hash[7..9], if &hash[7..9] == "00" { "11" } else { "00" });
    let expired = format!("{}.{SECRET}", token_id());
    new.cluster.apply(&objects::bootstrap_token(&expired[..6], SECRET, "2024-01-01T00:00:00Z"))?;
    let closed = endpoint.replace(":6443", ":1");
    let nobody = "192.0.2.250:6443";
    let pinned = ["--discovery-token-ca-cert-hash", &hash, "--discovery-timeout=1s"];
    let with = |endpoint: &str, token: &str, more: &[&str]| {
        let line = [endpoint, "--token", token].into_iter().chain(more.iter().copied());
        new.refused(&line.collect::<Vec<_>>())
    };
    for (what, (code, message), expect_code, expect) in [
        (
            "no such token",
            with(&endpoint, &format!("nobody.{SECRET}"), &pinned)?,
            11,
            "does not know the token nobody: it has expired",
        ),
        ("expired", with(&endpoint, &expired, &pinned)?, 11, "it has expired"),
        ("wrong secret", with(&endpoint, &wrong_secret, &pinned)?, 12, "has another secret"),
        (
            "wrong hash",
            with(&endpoint, &token, &["--discovery-token-ca-cert-hash", &wrong_hash])?,
            13,
            hash.as_str(),
        ),
        ("closed", with(&closed, &token, &pinned)?, 10, "onnection refused"),
        ("nobody", with(nobody, &token, &pinned)?, 10, "reach the API server 192.0.2.250:6443"),
        ("no pin", with(&endpoint, &token, &[])?, 2, "--discovery-token-unsafe-skip-ca-verification"),
        ("no token", with(&endpoint, "abc", &pinned)?, 2, "is no bootstrap token"),
        ("no port", with("192.0.2.10", &token, &pinned)?, 2, "HOST:PORT"),
    ] {
        assert_eq!(code, expect_code, "{what}: {message}");
        assert!(message.contains(expect), "{what}: {message}");
        assert!(!message.contains(SECRET), "{what}: {message}");
        assert_eq!(new.files()?, "", "{what}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn clocks_that_differ_and_a_server_of_another_name_are_told() -> Result<()> {
    let new = Newcomer::new("clock")?;
    new.shell("echo '192.0.2.10 future.lab past.lab other.lab' >> /etc/hosts")?;
    let hash = new.hash();
    let line = ["other.lab:6443", "--token", &new.token, "--discovery-token-ca-cert-hash", &hash];
    let (code, message) = new.refused(&line)?;
    assert_eq!(code, 13, "{message}");
    assert!(message.contains("not valid for name \"other.lab\""), "{message}");
    assert_eq!(new.files()?, "");
    for (name, expect) in [("future.lab", "is valid from 2122-"), ("past.lab", "is valid until 2025-")] {
        let (endpoint, hash) = (format!("{name}:6443"), new.hash());
        let (code, message) =
            new.refused(&[&endpoint, "--token", &new.token, "--discovery-token-ca-cert-hash", &hash])?;
        assert_eq!(code, 14, "{message}");
        for part in [expect, "the clock of this machine says", "that of the server", "set the clocks right"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(new.files()?, "");
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn a_name_that_a_ready_node_has_is_taken() -> Result<()> {
    let new = Newcomer::new("second")?;
    new.cluster.apply("{apiVersion: v1, kind: Node, metadata: {name: taken}}")?;
    let ready = r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Test","message":"","lastHeartbeatTime":null}]}}"#;
    new.cluster.kubectl(&["patch", "node/taken", "--subresource=status", "-p", ready])?;
    let (endpoint, hash) = (new.endpoint(), new.hash());
    let line =
        [&endpoint, "--token", &new.token, "--discovery-token-ca-cert-hash", &hash, "--node-name=taken"];
    let (code, message) = new.refused(&line)?;
    assert_eq!(code, 15, "{message}");
    assert!(
        message.contains("a node taken already, and it is Ready") && message.contains("--node-name"),
        "{message}"
    );
    assert_eq!(new.files()?, "");
    new.cluster.kubectl(&["delete", "node/taken"]).map(drop)
}

#[test]
#[ignore = "needs a cluster"]
fn an_admin_decides_where_nobody_approves() -> Result<()> {
    let new = Newcomer::new("manual")?;
    let group = "system:bootstrappers:manual";
    for (kind, namespace, name, role) in [
        ("ClusterRoleBinding", "", "manual-bootstrap", "system:node-bootstrapper"),
        ("ClusterRoleBinding", "", "manual-get-nodes", "kubeadm:get-nodes"),
        ("RoleBinding", "kube-system", "manual-config", "kubeadm:kubelet-config"),
    ] {
        let (role_kind, namespace) = match namespace {
            "" => ("ClusterRole", String::new()),
            namespace => ("Role", format!(", namespace: {namespace}")),
        };
        new.cluster.apply(&format!(
            "apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}
metadata: {{name: {name}{namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {role_kind}, name: '{role}'}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: '{group}'}}]
"
        ))?;
    }
    let secret = format!("secret/bootstrap-token-{}", &new.token[..6]);
    let groups = format!(r#"{{"stringData":{{"auth-extra-groups":"{group}"}}}}"#);
    new.cluster.kubectl(&["-n", "kube-system", "patch", &secret, "-p", &groups])?;
    let user = format!("system:bootstrap:{}", &new.token[..6]);
    let pending = || {
        let all = new.cluster.get(&["csr"]).ok()?;
        let mut all = all["items"].as_array().into_iter().flatten();
        let one = all
            .find(|one| one["spec"]["username"] == user.as_str() && one["status"]["conditions"].is_null())?;
        Some(text(&one["metadata"]["name"]).to_owned())
    };
    let agent = new.join()?;
    let request = eventually("it asks for a certificate", pending)?;
    new.cluster.kubectl(&["certificate", "deny", &request])?;
    eventually("it gives up", || agent.log().contains("denied").then_some(()))
        .with_context(|| agent.log())?;
    assert_eq!(new.files()?, "");
    drop(agent);
    let agent = new.join()?;
    let request = eventually("it asks again", pending)?;
    new.cluster.kubectl(&["certificate", "approve", &request])?;
    new.wait_ready(&agent)
}

#[test]
#[ignore = "needs a cluster"]
fn a_join_configuration_and_a_discovery_file_are_kubeadms() -> Result<()> {
    let new = Newcomer::new("configured")?;
    let authority = new.cluster.control_plane.authority().identity().certificate;
    let discovery = new.machine.host.path().join("discovery.conf");
    let info = kubeconfig::of_cluster(&new.cluster.control_plane.server(), &authority);
    std::fs::write(&discovery, info.to_string())?;
    let expired = format!("{}.{SECRET}", token_id());
    let file = format!("--discovery-file={}", discovery.display());
    let (code, message) = new.refused(&[&file, "--token", &expired])?;
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("the token is wrong or has expired"), "{message}");
    let config = new.machine.host.path().join("join.yaml");
    let write = |more: &str| {
        let text = format!(
            "apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  file: {{kubeConfigPath: '{}'}}
  tlsBootstrapToken: {}
nodeRegistration:
  name: by-file
  taints: [{{key: edge, value: 'yes', effect: NoSchedule}}]
  kubeletExtraArgs:
  - {{name: node-labels, value: 'pool=edge,tier=one'}}
  - {{name: max-pods, value: '30'}}
{more}",
            discovery.display(),
            new.token
        );
        std::fs::write(&config, text)
    };
    write("skipPhases: [preflight]\n")?;
    let argument = format!("--config={}", config.display());
    let (code, message) = new.refused(&[&argument])?;
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("skipPhases"), "{message}");
    assert_eq!(new.files()?, "");
    write("")?;
    let agent = new.start(&["join", &argument])?;
    let node = eventually("the node registers", || {
        let node = new.cluster.get(&["node/by-file"]).ok()?;
        node["status"]["capacity"]["pods"].is_string().then_some(node)
    })
    .with_context(|| agent.log())?;
    assert_eq!(node["metadata"]["labels"]["pool"], "edge");
    assert_eq!(node["metadata"]["labels"]["tier"], "one");
    assert_eq!(node["status"]["capacity"]["pods"], "30");
    let taints = node["spec"]["taints"].as_array().context("taints")?;
    assert!(taints.iter().any(|taint| taint["key"] == "edge" && taint["value"] == "yes"), "{taints:?}");
    Ok(())
}

/// A guest of user-mode Linux that systemd boots, on cgroup v2.
#[test]
#[ignore = "needs a cluster"]
fn join_systemd_makes_a_node_that_is_one_again_after_a_boot() -> Result<()> {
    let new = Newcomer::new("booted")?;
    let guest = Guest::new()?;
    guest.install(&parts::podwright())?;
    // Not podwright's own: no writable layer can lie on the file system that a guest has of this machine.
    guest.with_systemd(&["kubelet"])?;
    let certs_d = guest.path().join("etc/certs.d");
    images::write_mirrors(&certs_d)?;
    guest.unit(
        "cable.service",
        &format!(
            "[Unit]\nBefore=network-online.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/bin/sh -ec 'ip address add {}/24 dev vec0; ip link set vec0 up; ip route add default via {ROUTER}; \
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo nameserver {ROUTER} >/etc/resolv.conf'\n",
            new.machine.address
        ),
    )?;
    // The guest's kernel has legacy iptables only.
    std::fs::create_dir(guest.path().join("etc/systemd/system/podwright.service.d"))?;
    let path = "[Service]\nEnvironment=PATH=/legacy:/bin:/usr/sbin:/usr/bin\n";
    guest.write("etc/systemd/system/podwright.service.d/path.conf", path)?;
    let mut kernel = guest.boot_at(&new.machine)?;
    let join = format!(
        "podwright join {} --token {} --discovery-token-ca-cert-hash {} --systemd --node-name=booted --node-ip={} \
         --pod-network=builtin --registry-config-dir=/etc/certs.d",
        new.endpoint(),
        new.token,
        new.hash(),
        new.machine.address
    );
    let said = guest.order(&join).with_context(|| kernel.log())?;
    assert!(said.contains("podwright.service runs the agent"), "{said}");
    let log = || {
        guest
            .order("journalctl -u podwright --no-pager | tail -n 50")
            .unwrap_or_else(|error| format!("{error:#}"))
    };
    new.wait_ready_with(log)?;
    new.run_pod("on-systemd").with_context(log)?;
    assert_eq!(
        guest.order("systemctl is-enabled podwright; systemctl is-active podwright")?,
        "enabled\nactive\n"
    );
    // The agent may be started again under its pods; systemd takes nothing of theirs down.
    guest.order("systemctl restart podwright")?;
    new.wait_ready_with(log)?;
    assert_eq!(new.restarts("on-systemd")?, 0);
    let before = new.container("on-systemd")?["containerID"].clone();
    guest.order("echo once >$(echo /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/kept)/it")?;
    // Its last word before the machine goes down, which waits for nobody for long.
    guest.give("systemctl poweroff")?;
    kernel.wait_ended()?;
    let wait = ["wait", "--for=condition=Ready=false", "node/booted", "--timeout=60s"];
    new.cluster.kubectl(&wait)?;
    let _kernel = guest.boot_at(&new.machine)?;
    new.wait_ready_with(log)?;
    let runs_again = || {
        let container = new.container("on-systemd").ok()?;
        (container["ready"] == true && container["containerID"] != before).then_some(())
    };
    eventually("the pod runs again", runs_again).with_context(log)?;
    assert_eq!(guest.order("cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/kept/it")?, "once\n");
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn a_client_certificate_is_renewed_while_the_node_runs() -> Result<()> {
    let new = Newcomer::new("rotating")?;
    let mut agent = new.joined()?;
    agent.terminate()?;
    // 70 to 90 % of it are over in 12 to 44 s.
    let end = now() + 60;
    new.replace_certificate(Period { from: end - 160, to: end })?;
    let short = new.shell(&format!("cat {CURRENT}"))?;
    let agent = new.agent()?;
    new.wait_ready(&agent)?;
    eventually("the certificate is another", || {
        (new.shell(&format!("cat {CURRENT}")).ok()? != short).then_some(())
    })
    .with_context(|| agent.log())?;
    ensure!(now() <= end, "it came too late");
    let request =
        new.requests("kubernetes.io/kube-apiserver-client-kubelet")?.pop().context("its request")?;
    assert_eq!(request["status"]["conditions"][0]["reason"], "AutoApproved");
    assert_eq!(
        new.shell("ls /var/lib/kubelet/pki | grep -c kubelet-client-")?,
        "2\n",
        "the link and one file"
    );
    while now() <= end + 1 {
        std::thread::sleep(Duration::from_millis(200));
    }
    // The former certificate has expired: whatever works from here on works with the new one.
    new.run_pod("rotated")?;
    let lease = || new.cluster.get(&["-n", "kube-node-lease", "lease/rotating"]);
    let before = lease()?["spec"]["renewTime"].clone();
    eventually("the lease is renewed", || (lease().ok()?["spec"]["renewTime"] != before).then_some(()))?;
    assert!(!agent.log().contains("trying again"), "{}", agent.log());
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn pods_outlive_credentials_that_have_expired() -> Result<()> {
    let new = Newcomer::new("expiring")?;
    let mut agent = new.joined()?;
    new.run_pod("survivor")?;
    agent.terminate()?;
    let end = now() + 25;
    new.replace_certificate(Period { from: end - 600, to: end })?;
    new.shell("sed -i 's/rotateCertificates: true/rotateCertificates: false/' /var/lib/kubelet/config.yaml")?;
    let mut agent = new.agent()?;
    eventually("the end of the certificate is told", || {
        agent.log().contains("the client certificate has expired").then_some(())
    })?;
    eventually("the API server refuses", || agent.log().contains("Unauthorized").then_some(()))
        .with_context(|| agent.log())?;
    assert_eq!(new.shell("pgrep -fc '^sleep 100000'")?, "1\n");
    agent.terminate()?;
    // As the log says: the cluster forgets the node first, then it joins with a new token.
    let forgotten = "--for=condition=Ready=Unknown";
    new.cluster.kubectl(&["wait", forgotten, "node/expiring", "--timeout=120s"])?;
    let agent = new.joined()?;
    assert_eq!(new.restarts("survivor")?, 0);
    assert_eq!(new.shell("pgrep -fc '^sleep 100000'")?, "1\n");
    drop(agent);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn an_agent_gets_its_first_certificate_by_a_bootstrap_kubeconfig() -> Result<()> {
    let new = Newcomer::new("bootstrapped")?;
    let control_plane = &new.cluster.control_plane;
    let authority = control_plane.authority().identity().certificate;
    let directory = new.machine.host.path();
    let bootstrap =
        kubeconfig::with_token(&control_plane.server(), &authority, "tls-bootstrap-token-user", &new.token);
    std::fs::write(directory.join("bootstrap.conf"), bootstrap.to_string())?;
    std::fs::write(directory.join("ca.crt"), &authority)?;
    let config = new.cluster.get(&["-n", "kube-system", "configmap/kubelet-config"])?;
    std::fs::write(directory.join("config.yaml"), text(&config["data"]["kubelet"]))?;
    new.shell(&format!(
        "mkdir -p /etc/kubernetes/pki && cp {}/ca.crt /etc/kubernetes/pki",
        directory.display()
    ))?;
    let flags = ["bootstrap-kubeconfig=bootstrap.conf", "config=config.yaml"];
    let flags = flags.map(|flag| flag.replace('=', &format!("={}/", directory.display())));
    let start = || new.start(&["agent", &format!("--{}", flags[0]), &format!("--{}", flags[1])]);
    let mut agent = start()?;
    new.wait_ready(&agent)?;
    assert_eq!(new.shell("stat -c %a /etc/kubernetes/kubelet.conf")?, "600\n");
    assert_eq!(
        new.shell("ls /var/lib/kubelet/pki | grep -c tmp || true")?,
        "0\n",
        "the key of the request is gone"
    );
    // The certificate expires behind a cut link, so that nobody could renew it.
    new.run_pod("stays")?;
    agent.terminate()?;
    let end = now() + 20;
    new.replace_certificate(Period { from: end - 21, to: end })?;
    let agent = start()?;
    new.wait_ready(&agent)?;
    new.cluster.lab.cut(&new.machine)?;
    while now() <= end + 1 {
        std::thread::sleep(Duration::from_millis(200));
    }
    new.cluster.lab.heal(&new.machine)?;
    eventually("it asks by the bootstrap kubeconfig", || {
        let log = agent.log();
        log.contains("asking for one by the bootstrap kubeconfig").then_some(())?;
        log.contains("the node has a new client certificate").then_some(())
    })
    .with_context(|| agent.log())?;
    new.run_pod("with-another-certificate")?;
    new.wait_ready(&agent)?;
    assert_eq!(new.restarts("stays")?, 0);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn a_serving_certificate_is_signed_when_an_admin_approves_it() -> Result<()> {
    let new = Newcomer::new("serving")?;
    let mut agent = new.joined()?;
    let control_plane = &new.cluster.control_plane;
    let authority = control_plane.pki().join("ca.crt");
    let url = format!("https://{}:10250/pods", new.machine.address);
    let trusted =
        ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &authority.to_string_lossy(), &url];
    let asked = || control_plane.machine().host.run("curl", &trusted);
    assert!(asked().is_err(), "the certificate is self-signed");
    agent.terminate()?;
    new.shell("echo 'serverTLSBootstrap: true' >> /var/lib/kubelet/config.yaml")?;
    let mut agent = new.agent()?;
    let request =
        eventually("it asks for a certificate", || new.requests("kubernetes.io/kubelet-serving").ok()?.pop())
            .with_context(|| agent.log())?;
    assert!(request["status"]["conditions"].is_null(), "nobody approves it by himself: {request}");
    new.cluster.kubectl(&["certificate", "approve", text(&request["metadata"]["name"])])?;
    let code =
        eventually("it serves with what the cluster signed", || asked().ok()).with_context(|| agent.log())?;
    assert_eq!(code, "401", "who shows no credentials sees nothing");
    // It is used again after a restart, and nobody is asked.
    agent.terminate()?;
    let mut agent = new.agent()?;
    eventually("it serves as before", || asked().ok()).with_context(|| agent.log())?;
    new.wait_ready(&agent)?;
    let requests = || new.requests("kubernetes.io/kubelet-serving");
    assert_eq!(requests()?.len(), 1);
    // At another address it is another server, and asks again.
    agent.terminate()?;
    new.shell("ip address add 192.0.2.201/24 dev up0")?;
    let agent = new.start_at("192.0.2.201", &AGENT)?;
    eventually("it asks under its new address", || (requests().ok()?.len() == 2).then_some(()))
        .with_context(|| agent.log())
}

#[test]
#[ignore = "needs a cluster"]
fn systemd_gets_a_unit_that_runs_the_agent() -> Result<()> {
    let new = Newcomer::new("unit")?;
    let (endpoint, hash) = (new.endpoint(), new.hash());
    let line = [&endpoint, "--token", &new.token, "--discovery-token-ca-cert-hash", &hash, "--systemd"];
    let (code, message) = new.refused(&line)?;
    assert_eq!(code, 20, "{message}");
    assert_eq!(new.files()?, "");
    // There is no systemd on this machine: what is told to it is written down.
    new.shell(
        "mkdir -p /run/systemd/system /opt/systemd
         printf '#!/bin/sh\\necho \"$@\" >> /run/systemctl.calls\\n' > /opt/systemd/systemctl
         chmod +x /opt/systemd/systemctl",
    )?;
    let path = format!("/opt/systemd:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = new.machine.host.command(parts::podwright());
    let output = command.env("PATH", path).arg("join").args(line).args(new.flags()).output()?;
    ensure!(output.status.success(), "{}", text_of(&output));
    assert_eq!(new.shell("cat /run/systemctl.calls")?, "daemon-reload\nenable --now podwright.service\n");
    let program = parts::podwright();
    let unit = new.shell("cat /etc/systemd/system/podwright.service")?;
    let start = format!("ExecStart={} agent $PODWRIGHT_AGENT_FLAGS", program.display());
    assert!(unit.lines().any(|line| line == start), "{unit}");
    // As systemd would start it.
    let script =
        format!(". /etc/podwright/agent.env; exec {} agent $PODWRIGHT_AGENT_FLAGS", program.display());
    let agent = new.machine.host.spawn("podwright", new.machine.host.command("sh").args(["-c", &script]))?;
    new.wait_ready(&agent)
}

#[test]
#[ignore = "needs a cluster"]
fn a_node_whose_machine_goes_down_says_so_and_one_that_is_restarted_does_not() -> Result<()> {
    let new = Newcomer::new("going")?;
    new.joined()?.terminate()?;
    let ready = || -> Result<(String, String)> {
        let node = new.cluster.get(&["node", new.name()])?;
        let ready = |one: &&Value| one["type"] == "Ready";
        let condition = node["status"]["conditions"].as_array().into_iter().flatten().find(ready).cloned();
        let condition = condition.context("a condition")?;
        Ok((text(&condition["status"]).to_owned(), text(&condition["message"]).to_owned()))
    };
    // There is no systemd on this machine: another one answers.
    let path = format!("/opt/systemd:{}", std::env::var("PATH").unwrap_or_default());
    for (answer, status, message) in [
        ("running", "True", "kubelet is posting ready status"),
        ("stopping", "False", "node is shutting down"),
    ] {
        new.shell(&format!(
            "mkdir -p /run/systemd/system /opt/systemd
             printf '#!/bin/sh\\n[ $1 = is-system-running ] && echo {answer}\\nexit 1\\n' > /opt/systemd/systemctl
             chmod +x /opt/systemd/systemctl"
        ))?;
        let mut command = new.machine.host.command(parts::podwright());
        let agent = command.env("PATH", &path).args(AGENT).args(new.flags());
        let mut agent = new.machine.host.spawn("podwright", agent)?;
        new.wait_ready(&agent)?;
        eventually("the agent serves", || {
            let asked = "curl -sk -o /dev/null https://127.0.0.1:10250/healthz";
            new.shell(asked).ok()
        })
        .with_context(|| agent.log())?;
        agent.terminate()?;
        assert_eq!(ready()?, (status.to_owned(), message.to_owned()), "{}", agent.log());
    }
    // And it comes back.
    let agent = new.agent()?;
    new.wait_ready(&agent)
}

#[test]
#[ignore = "needs a cluster"]
fn a_machine_that_was_reset_joins_again() -> Result<()> {
    let new = Newcomer::new("returning")?;
    let endpoint = new.endpoint();
    let line = ["join", &endpoint, "--token", &new.token, "--discovery-token-unsafe-skip-ca-verification"];
    let agent = new.start(&line)?;
    new.wait_ready(&agent)?;
    let cgroup = format!("--cgroup-root={}", new.machine.cgroup);
    new.machine.host.run(parts::podwright(), &["reset", "--force", &cgroup])?;
    assert_eq!(new.files()?, "");
    // Nobody has told the cluster yet.
    let (code, message) = new.refused(&line[1..])?;
    assert_eq!(code, 15, "{message}");
    new.cluster.kubectl(&["delete", "node/returning"])?;
    let agent = new.start(&line)?;
    new.wait_ready(&agent)
}
