//! What other users of the machine find in a node's directories, also those who know every name.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::TestHost;
use e2e::story::Story;

const OBJECTS: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {key: of config}
---
apiVersion: v1
kind: Secret
metadata: {name: words}
stringData: {key: of secret}
";

/// A pod with every kind of volume that has files; `more` are fields of the spec, indented by two.
fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
{more}  terminationGracePeriodSeconds: 1
  volumes:
  - {{name: empty, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory}}}}
  - {{name: config, configMap: {{name: words}}}}
  - {{name: secret, secret: {{secretName: words}}}}
  containers:
  - name: c
    image: IMAGE
    command: [/bin/sh, -c, 'umask 0; echo x > /empty/made; echo x > /memory/made; echo x > /made; exec sleep 10000']
    env: [{{name: WORD, valueFrom: {{secretKeyRef: {{name: words, key: key}}}}}}]
    volumeMounts:
    - {{name: empty, mountPath: /empty}}
    - {{name: empty, mountPath: /part, subPath: part}}
    - {{name: memory, mountPath: /memory}}
    - {{name: config, mountPath: /config}}
    - {{name: secret, mountPath: /secret}}
"
    )
}

/// What `nobody` may read or write of all that there is below; a directory by whose name one only passes is neither.
fn open_to_others(host: &TestHost, directories: &[&Path]) -> Result<Vec<String>> {
    let look = "for f; do if [ -r \"$f\" ] || [ -w \"$f\" ]; then echo \"$f\"; fi; done";
    let directories: Vec<_> = directories.iter().map(|one| one.display().to_string()).collect();
    let script = format!(
        "find {} -print0 | setpriv --reuid=65534 --regid=65534 --clear-groups xargs -0 sh -c '{look}' look",
        directories.join(" ")
    );
    Ok(host.run("sh", &["-c", &script])?.lines().map(str::to_owned).collect())
}

fn mode(path: &Path) -> Result<u32> {
    let found = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(found.permissions().mode() & 0o7777)
}

#[test]
#[ignore = "needs root"]
fn cve_2024_25621_other_users_get_at_nothing_of_a_node() -> Result<()> {
    let host = TestHost::new()?;
    // Whoever looks must not be kept out by the test's own directory.
    std::fs::set_permissions(host.path(), std::fs::Permissions::from_mode(0o755))?;
    let (plain, mapped) = (pod("plain", ""), pod("mapped", "  hostUsers: false\n"));
    let files = [("objects.yaml", OBJECTS), ("plain.yaml", &plain), ("mapped.yaml", &mapped)];
    let story = Story::start_on(host, &files, &[])?;
    let plain = story.ready("plain")?;
    story.ready("mapped")?;
    let (root, state) = (story.host.path().join("root"), story.host.path().join("state"));
    let open = open_to_others(&story.host, &[&root, &state])?;
    ensure!(open.is_empty(), "open to everybody:\n{open:#?}");
    let uid = plain["metadata"]["uid"].as_str().context("a uid")?;
    let of_pod = format!("kubelet/pods/{uid}");
    for (path, expect) in [
        ("", 0o700),
        ("snapshots", 0o700),
        ("blobs", 0o700),
        ("containers", 0o700),
        ("ingest", 0o700),
        ("cni/cache", 0o700),
        ("kubelet", 0o750),
        ("kubelet/pods", 0o750),
        (of_pod.as_str(), 0o750),
        (&format!("{of_pod}/volumes"), 0o750),
        (&format!("{of_pod}/volumes/kubernetes.io~empty-dir"), 0o750),
        // The pod's own, whoever it runs as.
        (&format!("{of_pod}/volumes/kubernetes.io~empty-dir/empty"), 0o777),
        ("logs/pods", 0o750),
    ] {
        let found = mode(&root.join(path))?;
        ensure!(found == expect, "<root>/{path} has the mode {found:o}, not {expect:o}");
    }
    ensure!(
        mode(&state)? == 0o700
            && mode(&state.join("sandboxes"))? == 0o700
            && mode(&state.join("kubelet"))? == 0o700
    );
    Ok(())
}
