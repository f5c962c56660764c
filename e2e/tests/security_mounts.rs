//! What hostile pods tried with mounts, named after what went wrong elsewhere.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use e2e::image::{self, ImageConfig, Layer};
use e2e::story::{Story, container_id};
use e2e::test_host::eventually;
use rustix::fs::{CWD, RenameFlags};
use serde_json::Value;

/// Where the kubelet keeps that emptyDir.
fn empty_dir(story: &Story, pod: &Value, volume: &str) -> Result<PathBuf> {
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    let volumes = format!("root/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/{volume}");
    Ok(story.host.path().join(volumes))
}

fn states(pod: &Value) -> Vec<Value> {
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    statuses.into_iter().map(|status| status["state"].clone()).collect()
}

/// One container makes a link that leads out of the volume, the other asks for the part behind it.
#[test]
#[ignore = "needs root"]
fn cve_2017_1002101_a_link_in_a_volume_leads_nowhere() -> Result<()> {
    let host = e2e::TestHost::new()?;
    let secret = host.path().join("secret");
    std::fs::create_dir(&secret)?;
    std::fs::write(secret.join("flag"), "of the host\n")?;
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: linked
spec:
  volumes:
  - {{name: v, emptyDir: {{}}}}
  initContainers:
  - name: links
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - ln -s {secret} /v/absolute && ln -s ../../../../../../../../../../../{secret} /v/relative && mkdir /v/good && ln -s good /v/inside
    volumeMounts:
    - {{name: v, mountPath: /v}}
  containers:
  - {{name: absolute, image: IMAGE, command: [sleep, '1000000'], volumeMounts: [{{name: v, mountPath: /m, subPath: absolute}}]}}
  - {{name: below, image: IMAGE, command: [sleep, '1000000'], volumeMounts: [{{name: v, mountPath: /m, subPath: absolute/new}}]}}
  - {{name: relative, image: IMAGE, command: [sleep, '1000000'], volumeMounts: [{{name: v, mountPath: /m, subPath: relative}}]}}
  - {{name: inside, image: IMAGE, command: [sleep, '1000000'], volumeMounts: [{{name: v, mountPath: /m, subPath: inside/new}}]}}
",
        secret = secret.display()
    );
    let story = Story::start_on(host, &[("pod.yaml", &text)], &[])?;
    let pod = story.pod_until("linked", "three wait and one runs", |pod| {
        let states = states(pod);
        let waiting =
            states.iter().filter(|state| state["waiting"]["reason"] == "CreateContainerConfigError").count();
        waiting == 3 && states.iter().any(|state| state["running"].is_object())
    })?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    for status in statuses {
        let refused = status["state"]["waiting"]["message"].as_str();
        match status["name"].as_str() {
            Some("inside") => assert!(status["state"]["running"].is_object(), "{status}"),
            _ => assert!(refused.is_some_and(|text| text.contains("failed to prepare subPath")), "{status}"),
        }
    }
    assert_eq!(std::fs::read_dir(&secret)?.count(), 1, "nothing was made behind the link");
    Ok(())
}

/// Exchanges a directory of the volume and a link to the host's, as fast as it can, while containers mount it.
#[test]
#[ignore = "needs root"]
fn cve_2021_25741_subpath_race_never_leaves_the_volume() -> Result<()> {
    const CONTAINERS: usize = 16;
    let host = e2e::TestHost::new()?;
    let secret = host.path().join("secret");
    std::fs::create_dir(&secret)?;
    std::fs::write(secret.join("flag"), "of the host\n")?;
    let victims: String = (0..CONTAINERS)
        .map(|number| {
            format!(
                "  - {{name: v{number}, image: IMAGE, command: [sleep, '1000000'], volumeMounts: [{{name: v, mountPath: /m, subPath: part}}]}}\n"
            )
        })
        .collect();
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: raced
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {{name: v, emptyDir: {{}}}}
  initContainers:
  - name: gate
    image: IMAGE
    command: [/bin/sh, -c, 'mkdir /v/part; touch /v/ready; until [ -e /v/go ]; do sleep 0.02; done']
    volumeMounts:
    - {{name: v, mountPath: /v}}
  containers:
{victims}"
    );
    let story = Story::start_on(host, &[("pod.yaml", &text)], &[])?;
    let pod = eventually("the pod is known", || story.object("Pod", "raced"))?;
    let volume = empty_dir(&story, &pod, "v")?;
    eventually("the volume is prepared", || volume.join("ready").exists().then_some(()))?;
    std::os::unix::fs::symlink(&secret, volume.join("link"))?;
    std::fs::write(volume.join("part/flag"), "of the volume\n")?;
    let (part, link) = (volume.join("part"), volume.join("link"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&part, &link, &stop));
        let raced = race(&story, &volume, CONTAINERS);
        stop.store(true, Ordering::Relaxed);
        raced
    })?;
    // Whichever the kernel's scheduler let meet the link was refused, and comes up once the directory stays.
    if part.is_symlink() {
        rustix::fs::renameat_with(CWD, &part, CWD, &link, RenameFlags::EXCHANGE)?;
    }
    let pod = story.pod_until("raced", "every container runs", |pod| {
        states(pod).iter().filter(|state| state["running"].is_object()).count() == CONTAINERS
    })?;
    anyhow::ensure!(sees_its_volume(&story, &pod)? == CONTAINERS, "{}", pod["status"]);
    Ok(())
}

fn exchange(one: &Path, other: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    }
}

/// Every container either sees its volume or was refused; none sees the host.
fn race(story: &Story, volume: &Path, containers: usize) -> Result<()> {
    std::fs::write(volume.join("go"), "")?;
    let pod = story.pod_until("raced", "each container was tried", |pod| {
        let tried = states(pod).into_iter().filter(|state| {
            state["running"].is_object() || state["waiting"]["reason"] == "CreateContainerConfigError"
        });
        tried.count() == containers
    })?;
    sees_its_volume(story, &pod).map(drop)
}

/// How many containers run; an error if one of them sees something else than its volume.
fn sees_its_volume(story: &Story, pod: &Value) -> Result<usize> {
    let mut running = 0;
    for status in pod["status"]["containerStatuses"].as_array().context("statuses")? {
        if status["state"]["running"].is_object() {
            let id = status["containerID"].as_str().context("an id")?.trim_start_matches("podwright://");
            let flag = story.exec(id, "cat /m/flag")?;
            anyhow::ensure!(flag.trim_end() == "of the volume", "{flag}{status}");
            running += 1;
        }
    }
    Ok(running)
}

#[test]
#[ignore = "needs root"]
fn cve_2020_8557_a_container_cannot_fill_the_disk_through_etc_hosts() -> Result<()> {
    let text = "apiVersion: v1
kind: Pod
metadata:
  name: filler
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: IMAGE, command: [sleep, '1000000']}
";
    let story = Story::start(&[("pod.yaml", text)])?;
    let id = container_id(&story.ready("filler")?)?;
    let script = "echo 192.0.2.9 mine >> /etc/hosts; grep -c mine /etc/hosts
dd if=/dev/zero of=/etc/hosts bs=64k count=64 conv=notrunc oflag=append 2>&1 | grep -c 'No space'
[ $(stat -c %s /etc/hosts) -le 1048576 ] && echo bounded";
    assert_eq!(story.exec(&id, script)?.trim_end(), "1\n1\nbounded");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2024_40635_a_user_beyond_the_range_is_not_root() -> Result<()> {
    let host = e2e::TestHost::new()?;
    let story = Story::start_on(host, &[], &[])?;
    for user in ["4294967296", "2147483648", "-1"] {
        let plain = user.trim_start_matches('-');
        let name = format!("registry.test/user{plain}:1");
        let config = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
        let layout = story.host.path().join(format!("user{plain}.oci"));
        image::write_layout(&layout, &name, vec![Layer::default().file("x", 0o644, b"")?], &config)?;
        story.node.as_ref().context("the node")?.import(&story.host, &layout)?;
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: u{plain}\nspec:\n  securityContext: {{runAsNonRoot: true}}\n  containers:\n  - {{name: c, image: '{name}', imagePullPolicy: Never, command: [id]}}\n"
        );
        story.write(&format!("u{plain}.yaml"), &pod)?;
        story.pod_until(&format!("u{plain}"), "it is refused", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"].as_str().is_some_and(|reason| reason.starts_with("CreateContainer"))
        })?;
    }
    Ok(())
}
