//! Pods with users of their own (`hostUsers: false`) on a standalone node: who they are inside, outside, and on the disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::story::{Story, container_id};

/// What the container's process sees of its ids and volumes; it goes on until it is killed.
const SCRIPT: &str = "id -u
tr -s ' ' < /proc/self/uid_map | cut -d' ' -f2,4
stat -L -c '%n %u %g %a' /empty /memory /config/key /secret/key /etc/hosts /dev/termination-log
cat /config/key /secret/key
touch /empty/made /memory/made && chown 5:6 /empty/made
echo bye > /dev/termination-log
echo '#' >> /etc/hosts
touch /config/made 2>/dev/null || echo closed
echo end
trap 'exit 0' TERM
while :; do sleep 0.1; done";

const OBJECTS: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {key: \"of config\\n\"}
---
apiVersion: v1
kind: Secret
metadata: {name: words}
stringData: {key: \"of secret\\n\"}
";

fn pod(name: &str, more: &str) -> String {
    let script = SCRIPT.lines().map(|line| format!("      {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 5
{more}  volumes:
  - {{name: empty, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory}}}}
  - {{name: config, configMap: {{name: words}}}}
  - {{name: secret, secret: {{secretName: words, defaultMode: 0400}}}}
  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - |
{script}    volumeMounts:
    - {{name: empty, mountPath: /empty}}
    - {{name: memory, mountPath: /memory}}
    - {{name: config, mountPath: /config}}
    - {{name: secret, mountPath: /secret}}
"
    )
}

/// Who the pod's first process is for this machine.
fn outside(story: &Story, name: &str) -> Result<u32> {
    let (pid, _) = story.facts(&container_id(&story.ready(name)?)?)?;
    Ok(std::fs::metadata(format!("/proc/{pid}")).context("the process")?.uid())
}

#[test]
#[ignore = "needs root"]
fn root_of_a_pod_is_somebody_else_outside_and_volumes_are_its_own() -> Result<()> {
    let (one, two) = (pod("one", ""), pod("two", "  securityContext: {fsGroup: 7}\n"));
    let mut story = Story::start(&[("objects.yaml", OBJECTS), ("one.yaml", &one), ("two.yaml", &two)])?;
    let said = |story: &Story, name: &str| {
        let pod = story.ready(name)?;
        e2e::test_host::eventually("it has looked", || {
            story.logs(&pod).ok().filter(|text| text.ends_with("end\n"))
        })
    };
    let expect = |group: u32, empty: &str, memory: &str, config: &str, secret: &str| {
        format!(
            "0\n0 65536\n/empty 0 {group} {empty}\n/memory 0 {group} {memory}\n/config/key 0 {group} {config}\n\
             /secret/key 0 {group} {secret}\n/etc/hosts 0 0 644\n/dev/termination-log 0 0 666\nof config\nof secret\n\
             closed\nend\n"
        )
    };
    assert_eq!(said(&story, "one")?, expect(0, "777", "777", "644", "400"));
    assert_eq!(said(&story, "two")?, expect(7, "2777", "2777", "644", "440"));
    // Two pods have nobody in common, and neither is anybody here.
    let ids = [outside(&story, "one")?, outside(&story, "two")?];
    ensure!(ids.iter().all(|id| *id >= 1 << 16 && id % (1 << 16) == 0) && ids[0] != ids[1], "{ids:?}");
    // On the disk everything is whose it is inside.
    let pod = story.ready("one")?;
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    let directory =
        story.host.run("find", &[&story.host.path().to_string_lossy(), "-name", uid, "-path", "*/pods/*"])?;
    let directory = Path::new(directory.lines().next().context("the pod's directory")?);
    let made = std::fs::metadata(directory.join("volumes/kubernetes.io~empty-dir/empty/made"))?;
    assert_eq!((made.uid(), made.gid()), (5, 6));
    let record = std::fs::read_to_string(directory.join("userns"))?;
    ensure!(record.contains(&format!("\"hostId\":{}", ids[0])), "{record}");
    // An agent that starts again starts nothing again, and knows whose ids are whose.
    let before = container_id(&story.ready("one")?)?;
    story.node().crash();
    story.restart()?;
    assert_eq!(container_id(&story.ready("one")?)?, before);
    story.write("three.yaml", &crate::pod("three", ""))?;
    let third = outside(&story, "three")?;
    ensure!(!ids.contains(&third), "{third} of {ids:?}");
    // A container that is started again is in the pod's namespace.
    story.exec(&before, "kill 1")?;
    let again = story.pod_until("one", "it runs again", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && !pod["status"]["containerStatuses"][0]["state"]["running"].is_null()
    })?;
    assert_eq!(again["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"], "bye\n");
    assert_eq!(outside(&story, "one")?, ids[0]);
    // What one gives back another may have.
    std::fs::remove_file(story.manifests.join("one.yaml"))?;
    e2e::test_host::eventually("one is gone", || story.object("Pod", "one").is_none().then_some(()))?;
    story.write("four.yaml", &crate::pod("four", ""))?;
    assert_eq!(outside(&story, "four")?, ids[0]);
    Ok(())
}
