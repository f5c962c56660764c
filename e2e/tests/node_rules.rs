//! Rules where iptables-restore does not do what it is asked: once, while somebody holds its lock, or for one rule always.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use e2e::TestHost;
use e2e::story::{Story, web_pod};
use e2e::test_host::{NODE_ADDRESS, eventually};

/// Stands before iptables-restore: fails as often as `locked` says, and refuses what has the words of `unknown` in it.
const WRAPPER: &str = r#"#!/bin/sh
input=HERE/input.$$
cat > $input
locked=$(cat HERE/locked)
if [ "$locked" -gt 0 ]; then
  echo $((locked - 1)) > HERE/locked
  echo 'Another app is currently holding the xtables lock. Stopped waiting after 10s.' >&2
  exit 4
fi
unknown=$(cat HERE/unknown)
if [ -n "$unknown" ] && line=$(grep -n -m 1 -e "$unknown" $input); then
  echo "iptables-restore: line ${line%%:*} failed" >&2
  exit 1
fi
exec REAL "$@" < $input
"#;

/// A host whose iptables-restore fails when it is told to.
struct Troubled {
    directory: PathBuf,
}

impl Troubled {
    fn host() -> Result<(TestHost, Self)> {
        let host = TestHost::new()?;
        let directory = host.path().join("iptables");
        std::fs::create_dir(&directory)?;
        let troubled = Self { directory };
        troubled.locked(0)?;
        troubled.unknown("")?;
        let program = || host.run("sh", &["-c", "command -v iptables-restore"]);
        let here = troubled.directory.display().to_string();
        let wrapper = troubled.directory.join("iptables-restore");
        std::fs::write(&wrapper, WRAPPER.replace("HERE", &here).replace("REAL", program()?.trim()))?;
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;
        host.run("mount", &["--bind", &here, "/usr/local/sbin"])?;
        let found = program()?;
        ensure!(found.trim() == "/usr/local/sbin/iptables-restore", "{found} comes first on the PATH");
        Ok((host, troubled))
    }

    /// The next restores fail, so many of them.
    fn locked(&self, times: u32) -> Result<()> {
        Ok(std::fs::write(self.directory.join("locked"), times.to_string())?)
    }

    /// Rules with these words are refused from now on.
    fn unknown(&self, words: &str) -> Result<()> {
        Ok(std::fs::write(self.directory.join("unknown"), words)?)
    }

    fn is_free(&self) -> bool {
        std::fs::read_to_string(self.directory.join("locked")).is_ok_and(|left| left.trim() == "0")
    }
}

/// A Service of the web pods.
fn service(address: &str, target: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: {address}
  selector:
    app: web
  ports:
  - port: 80
    targetPort: {target}
"
    )
}

/// The web pods' port, with one of the node that leads to it.
const PORT: &str = "containerPort: 8080\n      hostPort: 8081\n";

fn rules(host: &TestHost) -> Result<String> {
    host.run("iptables-save", &[])
}

/// The Service answers at this address, and nothing tells of another one.
fn serves_only(story: &Story, address: &str, former: &str) -> Result<()> {
    eventually(&format!("{address} answers"), || story.get(address).filter(|name| name == "a"))?;
    let rules = rules(&story.host)?;
    ensure!(!rules.contains(former), "{former} is still there:\n{rules}");
    Ok(())
}

/// Somebody held the lock just then: as many rules as before, but others.
#[test]
#[ignore = "needs root"]
fn a_change_whose_restore_failed_once_is_programmed_all_the_same() -> Result<()> {
    let (host, troubled) = Troubled::host()?;
    let (pod, before) = (web_pod("a", ""), service("10.96.0.50", 9999));
    let story = Story::start_on(host, &[("a.yaml", &pod), ("services.yaml", &before)], &[])?;
    story.ready("a")?;
    let programmed = |words: &str| {
        eventually(words, || rules(&story.host).ok().filter(|rules| rules.contains(words)).map(drop))
    };
    programmed(":9999")?;

    // The endpoint's chain has another name now; the Service's has as many rules.
    troubled.locked(2)?;
    story.write("services.yaml", &service("10.96.0.50", 8080))?;
    eventually("it failed", || troubled.is_free().then_some(()))?;
    serves_only(&story, "10.96.0.50", ":9999")?;

    troubled.locked(1)?;
    story.write("services.yaml", &service("10.96.0.60", 8080))?;
    eventually("it failed", || troubled.is_free().then_some(()))?;
    serves_only(&story, "10.96.0.60", "10.96.0.50")
}

/// No pod has an address of its own: the proxy is the first to write.
#[test]
#[ignore = "needs root"]
fn a_service_that_changed_while_no_agent_ran_is_served_as_it_is_now() -> Result<()> {
    let pod = web_pod("a", "").replace("\nspec:\n", "\nspec:\n  hostNetwork: true\n");
    let mut story = Story::start(&[("a.yaml", &pod), ("services.yaml", &service("10.96.0.50", 8080))])?;
    story.ready("a")?;
    eventually("it answers", || story.get("10.96.0.50"))?;
    story.node().crash();
    story.write("services.yaml", &service("10.96.0.60", 8080))?;
    story.restart()?;
    serves_only(&story, "10.96.0.60", "10.96.0.50")
}

/// Session affinity where the kernel has no xt_recent: Services wait for it, pods do not.
#[test]
#[ignore = "needs root"]
fn a_rule_that_the_kernel_does_not_know_keeps_its_owner_alone_from_its_rules() -> Result<()> {
    let (host, troubled) = Troubled::host()?;
    troubled.unknown("-m recent")?;
    let sticky = format!("{}  sessionAffinity: ClientIP\n", service("10.96.0.50", 8080));
    let mut story = Story::start_on(host, &[("services.yaml", &sticky), ("a.yaml", &web_pod("a", ""))], &[])?;
    let told = eventually("the rule is named", || {
        let log = story.node().log();
        log.lines().find(|line| line.contains("-m recent")).map(str::to_owned)
    })?;
    ensure!(
        told.contains("the rules of Services are not programmed") && told.contains("failed (-A KUBE-"),
        "{told}"
    );

    // Pods with ports of the node come and go meanwhile.
    let with_port = web_pod("b", "").replace("containerPort: 8080\n", PORT);
    for _ in 0..2 {
        story.write("b.yaml", &with_port)?;
        story.ready("b")?;
        let near = format!("{NODE_ADDRESS}:8081");
        eventually("the port answers", || story.get(&near).filter(|name| name == "b"))?;
        std::fs::remove_file(story.manifests.join("b.yaml"))?;
        eventually("the port is free", || (!rules(&story.host).ok()?.contains("8081")).then_some(()))?;
    }

    troubled.unknown("")?;
    eventually("the Service answers", || story.get("10.96.0.50").filter(|name| name == "a"))?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_port_of_the_node_is_free_also_when_its_rules_could_not_be_removed_at_first() -> Result<()> {
    let (host, troubled) = Troubled::host()?;
    let pod = web_pod("a", "").replace("containerPort: 8080\n", PORT);
    let story = Story::start_on(host, &[("a.yaml", &pod)], &[])?;
    story.ready("a")?;
    ensure!(rules(&story.host)?.contains("8081"));
    troubled.locked(1)?;
    std::fs::remove_file(story.manifests.join("a.yaml"))?;
    eventually("it failed", || troubled.is_free().then_some(()))?;
    eventually("the pod is gone", || story.object("Pod", "a").is_none().then_some(()))?;
    let rules = rules(&story.host)?;
    ensure!(!rules.contains("8081"), "{rules}");
    Ok(())
}
