//! systemd as the first process of a pod, on a machine with cgroup v2: a guest of user-mode Linux.

use anyhow::Result;
use e2e::uml::Guest;
use e2e::{parts, systemd};
use serde_json::json;

/// As in Kubernetes, the container is privileged: only then can it write to `/sys/fs/cgroup`.
#[test]
#[ignore = "needs root"]
fn a_systemd_image_boots_and_stops_in_good_order() -> Result<()> {
    let guest = Guest::new()?;
    guest.install(&parts::podwright())?;
    guest.install(&parts::tool("crictl"))?;
    systemd::image(guest.path())?;
    let namespaces = json!({ "network": 0, "pid": 1, "ipc": 0 });
    let privileged = json!({ "privileged": true, "namespace_options": namespaces });
    let pod = json!({ "metadata": { "name": "systemd", "namespace": "default", "uid": "u1", "attempt": 0 },
        "log_directory": "/var/log/pods/systemd",
        "linux": { "cgroup_parent": "/kubepods/pod-u1", "security_context": privileged } });
    let container = json!({ "metadata": { "name": "main" }, "image": { "image": systemd::IMAGE }, "log_path": "main.log",
        "mounts": [{ "container_path": "/marks", "host_path": "/var/marks" }],
        "linux": { "resources": { "memory_limit_in_bytes": 512 << 20 }, "security_context": privileged } });
    guest.write("pod.json", &pod.to_string())?;
    guest.write("container.json", &container.to_string())?;
    guest.write("etc/crictl.yaml", "timeout: 60\n")?;
    let output = guest.run(
        "podwright runtime --root /var/root --state /run/pw --listen /run/pw.sock --cni-conf-dir /run/none --cgroup-root /node >/tmp/log 2>&1 &
        trap '[ $? = 0 ] || { cat /tmp/log /var/log/pods/systemd/main.log; crictl exec -s $id systemctl list-jobs; }' EXIT
        export CONTAINER_RUNTIME_ENDPOINT=unix:///run/pw.sock IMAGE_SERVICE_ENDPOINT=unix:///run/pw.sock
        until crictl version >/dev/null 2>&1; do sleep 0.1; done
        podwright image import /systemd.oci --root /var/root --state /run/pw >/dev/null
        mkdir -p /var/log/pods/systemd /var/marks
        pod=$(crictl runp /pod.json)
        id=$(crictl create $pod /container.json /pod.json)
        crictl start $id >/dev/null
        n=0
        until crictl exec -s $id systemctl is-active multi-user.target 2>/dev/null | grep -qx active; do
          sleep 1; n=$((n+1)); [ $n -lt 60 ]
        done
        crictl exec -s $id cat /proc/1/comm | grep .
        crictl exec -s $id systemctl is-active demo.service | grep .
        cat /sys/fs/cgroup/kubepods/pod-u1/*/system.slice/demo.service/memory.max
        crictl stop --timeout 60 $id >/dev/null
        crictl inspect $id | grep -o '\"exitCode\": [0-9]*'
        cat /var/marks/demo
        crictl stopp $pod >/dev/null
        crictl rmp $pod >/dev/null
        find /sys/fs/cgroup/kubepods/pod-u1 -mindepth 1 -type d",
    )?;
    // PID 1 of a namespace that halts is ended by SIGINT (reboot(2)).
    let wanted = "systemd\nactive\n67108864\n\"exitCode\": 130\nstopped in good order\n";
    assert_eq!(output, wanted);
    Ok(())
}
