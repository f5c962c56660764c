//! Stories on a machine with cgroup v2 and every controller in it: a guest of user-mode Linux, booted for each.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::uml::Guest;
use e2e::{image, parts};
use serde_json::{Value, json};

/// A guest with podwright in it.
fn guest() -> Result<Guest> {
    let guest = Guest::new()?;
    guest.install(&parts::podwright())?;
    Ok(guest)
}

/// A bundle named `name` in the guest's /bundles: busybox, running `script` under these limits.
fn add_bundle(guest: &Guest, name: &str, script: &str, resources: Value) -> Result<()> {
    let bundle = Bundle::new(OciRuntime::Podwright, script)?;
    let mut spec = bundle.spec.clone();
    spec["root"]["path"] = json!("/bundles/rootfs");
    spec["linux"]["cgroupsPath"] = json!(format!("/stories/{name}"));
    spec["linux"]["resources"] = resources;
    let directory = guest.path().join("bundles").join(name);
    std::fs::create_dir_all(&directory).context("create a bundle")?;
    std::fs::write(directory.join("config.json"), spec.to_string()).context("write config.json")?;
    let rootfs = guest.path().join("bundles/rootfs");
    if !rootfs.exists() {
        e2e::bundle::busybox_root(&rootfs)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn limits_are_enforced_and_nothing_is_left() -> Result<()> {
    let guest = guest()?;
    let hog = "exec dd if=/dev/zero of=/dev/null bs=100M count=1";
    add_bundle(&guest, "memory", hog, json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } }))?;
    let forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait";
    add_bundle(&guest, "pids", forks, json!({ "pids": { "limit": 5 } }))?;
    let shares = json!({
        "cpu": { "shares": 1024, "quota": 20_000, "period": 50_000 }, "memory": { "reservation": 1 << 20 },
    });
    add_bundle(&guest, "cpu", "exec sleep 1000", shares)?;
    let output = guest.run(
        "cd /bundles
        group=/sys/fs/cgroup/stories
        podwright oci run --keep --bundle memory memory || echo exit code $?
        grep -w oom_kill $group/memory/memory.events
        podwright oci delete memory
        podwright oci run --keep --bundle pids pids 2>&1 | grep -o 'fork: Resource temporarily unavailable' | head -n 1
        grep -q 'max 0' $group/pids/pids.events || echo pids.max was hit
        podwright oci delete pids
        podwright oci run --detach --bundle cpu cpu
        (cd $group/cpu; cat cpu.max cpu.weight memory.low)
        podwright oci delete cpu 2>&1 | grep -o 'that is not stopped'
        podwright oci delete --force cpu
        ls $group | grep -v '\\.' | wc -l",
    )?;
    let wanted = "exit code 137\noom_kill 1\n\
        fork: Resource temporarily unavailable\npids.max was hit\n\
        20000 50000\n100\n1048576\nthat is not stopped\n0\n";
    assert_eq!(output, wanted);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn devices_are_allowed_and_denied_by_a_program_of_the_cgroup() -> Result<()> {
    let guest = guest()?;
    // /dev/null's, the kernel log's and the root disk's numbers; busybox' nodes belong to the container.
    let script = "cd /dev; mknod log c 1 11; mknod zero2 c 1 5; for d in null zero2 log; do (: <$d) 2>/dev/null && echo -n $d,; (: >$d) 2>/dev/null && echo -n $d; echo; done";
    let kernel_log = |allow: bool, access: &str| json!({ "allow": allow, "type": "c", "major": 1, "minor": 11, "access": access });
    let all = json!({ "allow": true, "access": "rwm" });
    let rules = [
        ("none", json!([])),
        ("read", json!([kernel_log(true, "rw"), kernel_log(false, "w")])),
        ("both", json!([kernel_log(true, "r"), kernel_log(true, "w")])),
        ("write", json!([all, kernel_log(false, "r")])),
        ("all", json!([all])),
    ];
    for (name, rules) in &rules {
        add_bundle(&guest, name, script, json!({ "devices": rules }))?;
        let config = guest.path().join("bundles").join(name).join("config.json");
        let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(&config)?)?;
        let able = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
        spec["process"]["capabilities"] = json!({ "bounding": able, "effective": able, "permitted": able });
        std::fs::write(&config, spec.to_string())?;
    }
    let output = guest.run(
        "cd /bundles
        for name in none read both write all; do podwright oci run --bundle $name $name | tail -n 1; done",
    )?;
    assert_eq!(output, "\nlog,\nlog,log\nlog\nlog,log\n");
    Ok(())
}

/// Two processes, of which one wants more memory than both may have: where a container dies as a whole, nothing comes after it.
const GREEDY: &str = "sleep 1000 & dd if=/dev/zero of=/dev/null bs=100M count=1";

#[test]
#[ignore = "needs root"]
fn a_pod_lives_and_ends() -> Result<()> {
    let guest = guest()?;
    guest.install(&parts::tool("crictl"))?;
    image::busybox(guest.path())?;
    let pod = json!({ "metadata": { "name": "web", "namespace": "default", "uid": "u1", "attempt": 0 }, "log_directory": "/var/log/pods/web",
        "linux": { "cgroup_parent": "/kubepods/pod-u1" } });
    let container = json!({ "metadata": { "name": "main" }, "image": { "image": image::BUSYBOX }, "log_path": "main.log",
        "command": ["/bin/sh", "-c", "echo hello from $(hostname); trap 'exit 3' TERM; while :; do sleep 1; done"],
        "linux": { "resources": { "memory_limit_in_bytes": 32 << 20, "cpu_quota": 50_000, "cpu_period": 100_000, "cpu_shares": 512 } } });
    let greedy = json!({ "metadata": { "name": "greedy" }, "image": { "image": image::BUSYBOX }, "log_path": "greedy.log",
        "command": ["/bin/sh", "-c", format!("{GREEDY}; echo survived; sleep 1000")],
        "linux": { "resources": { "memory_limit_in_bytes": 16 << 20, "unified": { "memory.oom.group": "1" } } } });
    guest.write("pod.json", &pod.to_string())?;
    guest.write("container.json", &container.to_string())?;
    guest.write("greedy.json", &greedy.to_string())?;
    std::fs::create_dir(guest.path().join("told"))?;
    let limit = "    resources: {limits: {memory: 16Mi}}\n  restartPolicy: Never\n";
    let script = format!("{GREEDY}; echo x >> /told/survived; sleep 1000");
    guest.write("greedy.yaml", &manifest("greedy", &script, limit))?;
    guest.write("etc/crictl.yaml", "timeout: 60\n")?;
    let output = guest.run(
        "paths='--root /var/root --state /run/pw --listen /run/pw.sock --cni-conf-dir /run/none --cgroup-root /node'
        podwright runtime $paths >/tmp/log 2>&1 &
        trap '[ $? = 0 ] || cat /tmp/log' EXIT
        export CONTAINER_RUNTIME_ENDPOINT=unix:///run/pw.sock IMAGE_SERVICE_ENDPOINT=unix:///run/pw.sock
        until crictl version >/dev/null 2>&1; do sleep 0.1; done
        podwright image import /busybox.oci $paths >/dev/null
        mkdir -p /var/log/pods/web
        pod=$(crictl runp /pod.json)
        id=$(crictl create $pod /container.json /pod.json)
        crictl start $id >/dev/null
        crictl exec -s $id sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max' | grep .
        crictl exec -s $id ip -4 -o address show dev eth0 | grep -o 10.85.0.2/16
        crictl stop --timeout 20 $id >/dev/null
        crictl inspect $id | grep -o '\"exitCode\": 3'
        cut -d' ' -f2- /var/log/pods/web/main.log
        id=$(crictl create $pod /greedy.json /pod.json)
        crictl start $id >/dev/null
        until crictl inspect $id | grep -q CONTAINER_EXITED || grep -q survived /var/log/pods/web/greedy.log; do sleep 0.1; done
        crictl inspect $id | grep -oE '\"(exitCode|reason)\": [^,]*'
        grep survived /var/log/pods/web/greedy.log || true
        crictl stopp $pod >/dev/null
        crictl rmp $pod >/dev/null
        find /sys/fs/cgroup/kubepods/pod-u1 /sys/fs/cgroup/node -mindepth 1 -type d
        ip link | grep -c veth || true
        # The same of a pod of our kubelet.
        kill $!; wait $! || true
        podwright run -f /greedy.yaml $paths >/tmp/log 2>&1 &
        until [ -e /told/survived ] || podwright status -o json $paths 2>/dev/null | grep OOMKilled >/tmp/status; do sleep 0.2; done
        grep -o OOMKilled /tmp/status | head -n 1",
    )?;
    let wanted = "33554432\n50000 100000\n10.85.0.2/16\n\"exitCode\": 3\nstdout F hello from guest\n\
        \"exitCode\": 137\n\"reason\": \"OOMKilled\"\n\
        /sys/fs/cgroup/node/supervisors\n0\nOOMKilled\n";
    assert_eq!(output, wanted);
    Ok(())
}

fn manifest(name: &str, script: &str, more: &str) -> String {
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

/// Only a machine of its own can have its clock set. Ten hours on, then two days back: a probed container is not restarted, probes and a crash loop's back-off go on, pods start.
#[test]
#[ignore = "needs root"]
fn a_clock_that_jumps_restarts_nothing_and_stops_nothing() -> Result<()> {
    let guest = guest()?;
    image::busybox(guest.path())?;
    // On a busy machine a guest is slow; the jumps are longer than any patience.
    let probe = "    livenessProbe: {exec: {command: [sh, -c, 'echo x >> /told/probes']}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1}
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
";
    for directory in ["pods", "told"] {
        std::fs::create_dir(guest.path().join(directory))?;
    }
    guest
        .write("pods/probed.yaml", &manifest("probed", "echo x >> /told/starts; exec sleep 100000", probe))?;
    guest.write("pods/crashes.yaml", &manifest("crashes", "echo x >> /told/crashes; exit 1", ""))?;
    guest.write("late.yaml", &manifest("late", "echo x >> /told/late; exec sleep 100000", ""))?;
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
        cp /late.yaml /run/pods/late.yaml
        more late 1
        more probes 1
        echo started $(count starts) times",
    )?;
    assert_eq!(output, "started 1 times\n");
    Ok(())
}
