//! A node whose clock is set while pods run: only a machine of its own, a guest of user-mode Linux, can have that.

use anyhow::Result;
use e2e::uml::Guest;
use e2e::{image, parts};

fn pod(name: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: told, hostPath: {{path: /told}}}}]
  containers:
  - name: main
    image: {}
    command: [sh, -c, '{script}']
    volumeMounts: [{{name: told, mountPath: /told}}]
{more}",
        image::BUSYBOX
    )
}

/// Ten hours on, then two days back: a probed container is not restarted, probes and a crash loop's back-off go on, pods start.
#[test]
#[ignore = "needs root"]
fn a_clock_that_jumps_restarts_nothing_and_stops_nothing() -> Result<()> {
    let guest = Guest::new()?;
    guest.install(&parts::podwright())?;
    image::busybox(guest.path())?;
    let probe = "    livenessProbe: {exec: {command: [sh, -c, 'echo x >> /told/probes']}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
";
    for directory in ["pods", "told"] {
        std::fs::create_dir(guest.path().join(directory))?;
    }
    guest.write("pods/probed.yaml", &pod("probed", "echo x >> /told/starts; exec sleep 100000", probe))?;
    guest.write("pods/crashes.yaml", &pod("crashes", "echo x >> /told/crashes; exit 1", ""))?;
    guest.write("late.yaml", &pod("late", "echo x >> /told/late; exec sleep 100000", ""))?;
    let output = guest.run(
        "paths='--root /var/root --state /run/pw --listen /run/pw.sock --cni-conf-dir /run/none --cgroup-root /node'
        podwright image import /busybox.oci $paths >/dev/null
        # hostfs loses watches of its directories.
        cp -r /pods /run/pods
        podwright run -f /run/pods $paths >/tmp/log 2>&1 &
        trap '[ $? = 0 ] || { podwright status $paths; cat /tmp/log; }' EXIT
        count() { cat /told/$1 2>/dev/null | wc -l; }
        more() { wanted=$(($(count $1) + $2)); until [ $(count $1) -ge $wanted ]; do sleep 0.2; done; }
        jump() { date -s @$(($(date +%s) + $1)) >/dev/null; }
        # The first restart comes at once, the next one after ten seconds.
        until [ $(count crashes) -ge 2 ]; do sleep 0.2; done
        more probes 2
        jump 36000
        more probes 3
        jump -172800
        more probes 3
        more crashes 1
        # The container ends before the clock is set, and is looked at after.
        jump 7200
        more crashes 1
        cp /late.yaml /run/pods/late.yaml
        more late 1
        more probes 1
        echo started $(count starts) times",
    )?;
    assert_eq!(output, "started 1 times\n");
    Ok(())
}
