//! What a pod's manifest says of volumes and variables, seen from inside its containers and on the node.

use anyhow::{Context, Result};
use e2e::TestHost;
use e2e::image::{ImageConfig, Layer, write_layout};
use e2e::story::Story;
use e2e::test_host::eventually;

const OBJECTS: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  COLOR: green
  motto: be brief
---
apiVersion: v1
kind: Secret
metadata:
  name: hidden
stringData:
  TOKEN: s3cret
---
";

/// A pod that runs a script once; `extra` are more fields of its spec, `container` of its container.
fn once(name: &str, script: &str, extra: &str, container: &str) -> String {
    let script = script.lines().map(|line| format!("      {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels:
    app: {name}
  annotations:
    note: two words
spec:
  restartPolicy: Never
{extra}  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - |
{script}{container}"
    )
}

/// The mounts of the node below its kubelet's directory.
fn mounts(story: &Story) -> Result<String> {
    let below = story.host.path().join("root/kubelet").display().to_string();
    let all = story.host.run("cat", &["/proc/self/mountinfo"])?;
    Ok(all.lines().filter(|line| line.contains(&below)).map(|line| format!("{line}\n")).collect())
}

#[test]
#[ignore = "needs root"]
fn variables_tell_objects_fields_and_resources() -> Result<()> {
    let script = "echo $COLOR $PRE_COLOR $PRE_motto $TOKEN $ONE
echo $NAME $UID_LENGTH $NODE $ACCOUNT $HOST $HOSTS
echo \"$APP|$NOTE|$(echo $IP | cut -d. -f1-2)|$IP-$IPS\" | sed \"s/$IP-$IP/same/\"
echo $CPU $MEMORY $REQUEST $LIMITLESS
env | grep -c '^MISSING' || true
echo end";
    let container = "    envFrom:
    - configMapRef: {name: settings}
    - configMapRef: {name: settings}
      prefix: PRE_
    - secretRef: {name: hidden}
    - configMapRef: {name: absent, optional: true}
    env:
    - {name: ONE, valueFrom: {configMapKeyRef: {name: settings, key: motto}}}
    - {name: MISSING, valueFrom: {secretKeyRef: {name: hidden, key: absent, optional: true}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: UID_LENGTH, value: $(NAME)-$(COLOR)}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['note']\"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: REQUEST, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}
    - {name: LIMITLESS, valueFrom: {resourceFieldRef: {resource: requests.ephemeral-storage}}}
    resources:
      requests: {cpu: 100m}
      limits: {cpu: 250m, memory: 64Mi}
";
    let story = Story::start(&[("pod.yaml", &(OBJECTS.to_owned() + &once("vars", script, "", container)))])?;
    let told = story.output("vars")?;
    let pod = story.object("Pod", "vars").context("the pod")?;
    let node = pod["spec"]["nodeName"].as_str().context("a node name")?;
    let expect = format!(
        "green green be brief s3cret be brief
vars vars-green {node} default 192.0.2.2 192.0.2.2
vars|two words|10.85|same
250 64 1 0
0
end
"
    );
    assert_eq!(told, expect);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn every_kind_of_volume_reaches_the_container_and_goes_with_the_pod() -> Result<()> {
    let script = "echo x > /disk/f && stat -c '%a %g' /disk
df -k /memory | tail -1 | awk '{print $2}'; stat -c '%a %g' /memory
grep -c ' /memory tmpfs ' /proc/mounts
cat /all/c/color; echo; cat /all/token; echo; cat /all/labels; echo
stat -L -c '%a %g' /all/token /all/labels
(echo x > /all/token) 2>/dev/null || echo read-only
cat /down/cpu; echo
cat /part; echo; ls /parts
cat /host/kept
ls -A /disk
echo end";
    let host = TestHost::new()?;
    let outside = host.path().join("outside");
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("kept"), "of the host\n")?;
    let extra = format!(
        "  securityContext:
    fsGroup: 4711
  volumes:
  - name: disk
    emptyDir: {{}}
  - name: memory
    emptyDir: {{medium: Memory, sizeLimit: 2Mi}}
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - configMap: {{name: settings, items: [{{key: COLOR, path: c/color}}]}}
      - secret: {{name: hidden, items: [{{key: TOKEN, path: token, mode: 0400}}]}}
      - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
  - name: down
    downwardAPI: {{items: [{{path: cpu, resourceFieldRef: {{containerName: c, resource: requests.cpu, divisor: 1m}}}}]}}
  - name: settings
    configMap: {{name: settings}}
  - name: host
    hostPath: {{path: {}, type: Directory}}
",
        outside.display()
    );
    let container = "    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    resources:
      requests: {cpu: 250m}
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: all, mountPath: /all}
    - {name: down, mountPath: /down}
    - {name: settings, mountPath: /part, subPath: motto}
    - {name: disk, mountPath: /parts, subPathExpr: logs/$(POD)}
    - {name: host, mountPath: /host, subPath: .}
";
    let text = OBJECTS.to_owned() + &once("all", script, &extra, container);
    let story = Story::start_on(host, &[("pod.yaml", &text)], &[])?;
    let expect = "2777 4711
2048
2777 4711
1
green
s3cret
app=\"all\"
440 4711
440 4711
read-only
250
be brief
of the host
f
logs
end
";
    assert_eq!(story.output("all")?, expect);
    // It has ended: what was mounted for it goes before its object does.
    eventually("nothing is mounted for it", || mounts(&story).ok()?.is_empty().then_some(()))?;
    std::fs::remove_file(story.manifests.join("pod.yaml"))?;
    eventually("the pod is gone", || story.object("Pod", "all").is_none().then_some(()))?;
    assert_eq!(mounts(&story)?, "");
    let pods = story.host.path().join("root/kubelet/pods");
    assert_eq!(std::fs::read_dir(pods)?.count(), 0, "nothing of the pod is left");
    assert_eq!(std::fs::read_to_string(outside.join("kept"))?, "of the host\n");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn changed_objects_reach_the_files_of_a_running_pod_at_once_and_together() -> Result<()> {
    let extra = "  volumes:
  - name: settings
    configMap: {name: settings}
  - name: all
    projected:
      sources:
      - configMap: {name: settings}
      - secret: {name: hidden}
";
    let container = "    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: all, mountPath: /all}
";
    let pod = once("live", "exec sleep 1000000", extra, container);
    let story = Story::start(&[("objects.yaml", OBJECTS), ("pod.yaml", &pod)])?;
    let running = story.ready("live")?;
    let id = e2e::story::container_id(&running)?;
    story.write("objects.yaml", &OBJECTS.replace("green", "blue").replace("  motto: be brief\n", ""))?;
    let script = "cat /settings/COLOR /all/COLOR /all/TOKEN; ls /settings | wc -l; ls /all | wc -l";
    eventually("the files changed", || {
        let seen = story.exec(&id, script).ok()?;
        (seen.split_whitespace().collect::<Vec<_>>() == ["blueblues3cret1", "2"]).then_some(())
    })?;
    let after = story.ready("live")?;
    assert_eq!(e2e::story::container_id(&after)?, id, "the container was not restarted");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_a_volume_lacks_is_told_and_waited_for() -> Result<()> {
    let extra = "  volumes:
  - {name: host, hostPath: {path: /nonexistent, type: Directory}}
";
    let wrong = once("wrong", "echo end", extra, "    volumeMounts:\n    - {name: host, mountPath: /h}\n");
    let extra = "  volumes:\n  - {name: late, configMap: {name: settings}}\n";
    let late = once("late", "echo end", extra, "    volumeMounts:\n    - {name: late, mountPath: /l}\n");
    let story = Story::start(&[("wrong.yaml", &wrong), ("late.yaml", &late)])?;
    for (pod, sentence) in [
        ("wrong", "hostPath type check failed: /nonexistent is not a directory"),
        ("late", "configmap \"settings\" not found"),
    ] {
        eventually(sentence, || {
            let log = story.node.as_ref()?.log().replace("\\\"", "\"");
            let mut lines = log.lines().filter(|line| line.contains("FailedMount") && line.contains(pod));
            lines.any(|line| line.contains(sentence)).then_some(())
        })?;
    }
    story.write("objects.yaml", OBJECTS)?;
    story.output("late").map(drop)
}

#[test]
#[ignore = "needs root"]
fn mounts_propagate_as_the_manifest_asks() -> Result<()> {
    let host = TestHost::new()?;
    let shared = host.path().join("shared").display().to_string();
    host.run("mkdir", &[&shared])?;
    host.run("mount", &["-t", "tmpfs", "tmpfs", &shared])?;
    host.run("mount", &["--make-shared", &shared])?;
    host.run("mkdir", &[&format!("{shared}/in"), &format!("{shared}/out")])?;
    let extra = format!("  volumes:\n  - {{name: host, hostPath: {{path: {shared}}}}}\n");
    let container = "    securityContext: {privileged: true}
    volumeMounts:
    - {name: host, mountPath: /none}
    - {name: host, mountPath: /slave, mountPropagation: HostToContainer}
    - {name: host, mountPath: /both, mountPropagation: Bidirectional}
";
    let pod = once("spread", "exec sleep 1000000", &extra, container);
    let story = Story::start_on(host, &[("pod.yaml", &pod)], &[])?;
    let id = e2e::story::container_id(&story.ready("spread")?)?;
    story.host.run("mount", &["-t", "tmpfs", "tmpfs", &format!("{shared}/in")])?;
    story.host.run("touch", &[&format!("{shared}/in/from-host")])?;
    let seen = story.exec(&id, "ls /none/in /slave/in /both/in")?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["/both/in:", "from-host", "/none/in:", "/slave/in:", "from-host"]);
    story.exec(&id, "mount -t tmpfs tmpfs /both/out && touch /both/out/from-container")?;
    story.exec(&id, "mount -t tmpfs tmpfs /slave/in")?;
    assert_eq!(story.host.run("ls", &[&format!("{shared}/out")])?.trim(), "from-container");
    assert_eq!(story.host.run("ls", &[&format!("{shared}/in")])?.trim(), "from-host");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn read_only_can_mean_everything_below() -> Result<()> {
    let host = TestHost::new()?;
    let tree = host.path().join("tree").display().to_string();
    host.run("mkdir", &["-p", &format!("{tree}/below")])?;
    host.run("mount", &["-t", "tmpfs", "tmpfs", &format!("{tree}/below")])?;
    let extra = format!("  volumes:\n  - {{name: host, hostPath: {{path: {tree}}}}}\n");
    let script = "(echo x > /plain/f) 2>/dev/null || echo plain is read-only
echo x > /plain/below/f && echo below plain is not
(echo x > /deep/below/f) 2>/dev/null || echo below deep is read-only
echo end";
    let container = "    volumeMounts:
    - {name: host, mountPath: /plain, readOnly: true}
    - {name: host, mountPath: /deep, readOnly: true, recursiveReadOnly: Enabled}
";
    let story = Story::start_on(host, &[("pod.yaml", &once("rro", script, &extra, container))], &[])?;
    let expect = "plain is read-only\nbelow plain is not\nbelow deep is read-only\nend\n";
    assert_eq!(story.output("rro")?, expect);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_image_is_a_volume_that_is_only_read() -> Result<()> {
    let layer = || Layer::default().directory("data/", 0o755);
    let first = layer()?
        .file("data/a", 0o644, b"one\n")?
        .file("data/gone", 0o644, b"x")?
        .symlink("data/link", "/data/a")?
        .symlink("data/out", "../../../../../../root")?
        .file("tool", 0o755, b"#!/bin/sh\necho ran\n")?;
    let second = layer()?.file("data/b", 0o644, b"two\n")?.file("data/.wh.gone", 0o644, b"")?;
    let flat = layer()?.file("data/c", 0o644, b"three\n")?;
    let host = TestHost::new()?;
    let config = ImageConfig::default();
    let layouts = [("deep", vec![first, second]), ("flat", vec![flat])];
    let layouts: Vec<_> =
        layouts.into_iter().map(|(name, layers)| (host.path().join(name), name, layers)).collect();
    let mut paths = Vec::new();
    for (path, name, layers) in layouts {
        write_layout(&path, &format!("registry.test/{name}:1"), layers, &config)?;
        paths.push(path);
    }
    let story = Story::start_on(host, &[], &[])?;
    for path in &paths {
        story.node.as_ref().context("the node")?.import(&story.host, path)?;
    }
    let extra = "  volumes:
  - {name: deep, image: {reference: 'registry.test/deep:1', pullPolicy: Never}}
  - {name: flat, image: {reference: 'registry.test/flat:1', pullPolicy: Never}}
";
    let mounts = "    volumeMounts:
    - {name: deep, mountPath: /deep}
    - {name: deep, mountPath: /part, subPath: data}
    - {name: deep, mountPath: /file, subPath: data/link}
    - {name: flat, mountPath: /flat}
";
    let script = "cat /deep/data/a /deep/data/b /part/b /file /flat/data/c
[ -e /deep/data/gone ] || echo whited out
(echo x > /part/b) 2>/dev/null || echo read-only
/deep/tool 2>/dev/null || echo not executable
echo end";
    story.write("image.yaml", &once("image", script, extra, mounts))?;
    let out = "    volumeMounts:\n    - {name: deep, mountPath: /out, subPath: data/out}\n";
    story.write("out.yaml", &once("out", "echo end", extra, out))?;
    let expect = "one\ntwo\ntwo\none\nthree\nwhited out\nread-only\nnot executable\nend\n";
    assert_eq!(story.output("image")?, expect);
    // Its link leads to the image's own /root, which it has not.
    story.pod_until("out", "it cannot start", |pod| pod["status"]["phase"] == "Failed")?;
    Ok(())
}
