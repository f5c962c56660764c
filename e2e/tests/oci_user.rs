//! User namespaces by runc's command line. Each story runs on `podwright oci` and, as the check that the story is right, on
//! runc 1.5.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{output_of, program, text_of};
use serde_json::json;

e2e::oci_stories! {
    root_inside_is_nobody_outside,
    devices_mounts_and_limits_are_there,
    a_session_joins_the_user_namespace,
    mappings_are_needed,
    mounts_show_other_ids_than_on_disk,
    a_user_namespace_is_joined_by_path,
}

/// Where ids of the container begin on the host.
const HOST_ID: u32 = 100_000;

/// A bundle with a user namespace, whose root belongs to its root.
fn mapped(runtime: OciRuntime, script: &str) -> Result<Bundle> {
    use std::os::unix::fs::PermissionsExt;
    let mut bundle = Bundle::new(runtime, script)?;
    // runc wants every directory above the root to be open to the container's root.
    std::fs::set_permissions(bundle.path(), std::fs::Permissions::from_mode(0o755))?;
    output_of(program("chown").args(["-hR", "100000:100000"]).arg(bundle.rootfs()))?;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": HOST_ID, "size": 65_536 }]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    Ok(bundle)
}

fn root_inside_is_nobody_outside(runtime: OciRuntime) -> Result<()> {
    let mut bundle = mapped(
        runtime,
        "id -u; id -g; cat /proc/self/uid_map | tr -s ' '; touch /made; stat -c %u /made; exec sleep 1000",
    )?;
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    e2e::test_host::eventually("it tells", || {
        (bundle.output() == "0\n0\n 0 100000 65536\n0\n").then_some(())
    })?;
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(bundle.rootfs().join("made"))?.uid(), HOST_ID);
    let pid = bundle.state()?["pid"].to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uids = format!("Uid:\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}");
    assert!(status.lines().any(|line| line == uids), "{status}");
    Ok(())
}

fn devices_mounts_and_limits_are_there(runtime: OciRuntime) -> Result<()> {
    let script = "cd /dev; stat -c '%n %t:%T' null zero full random urandom tty; echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1; \
        cat /data/f; (echo x > /data/g) 2>/dev/null || echo refused; hostname; cat /proc/sys/net/ipv4/ip_default_ttl; ls /sys/class/net; \
        grep -c . /proc/timer_list; mknod /tmp/n c 1 3 2>/dev/null && echo MADE; mount -t tmpfs t /tmp 2>/dev/null && echo MOUNTED; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let mut bundle = mapped(runtime, script)?;
    let data = bundle.path().join("data");
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("f"), "from outside\n")?;
    let mounts = bundle.spec["mounts"].as_array_mut().context("mounts")?;
    mounts
        .push(json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro"] }));
    bundle.spec["hostname"] = json!("mapped");
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
    bundle.spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } });
    let output = bundle.run()?;
    let wanted = "null 1:3\nzero 1:5\nfull 1:7\nrandom 1:8\nurandom 1:9\ntty 5:0\n 00 00\nfrom outside\nrefused\nmapped\n77\nlo\n0\n67108864\n";
    assert_eq!(text_of(&output), wanted);
    Ok(())
}

fn a_session_joins_the_user_namespace(runtime: OciRuntime) -> Result<()> {
    let bundle = mapped(runtime, "exec sleep 1000")?;
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    let script = "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user";
    let text = output_of(&mut bundle.command(&["exec", &bundle.id, "/bin/sh", "-c", script])?)?;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "0" && lines[1] == lines[2], "{text}");
    assert_ne!(lines[1], std::fs::read_link("/proc/self/ns/user")?.display().to_string());
    Ok(())
}

fn mappings_are_needed(runtime: OciRuntime) -> Result<()> {
    let mut bundle = mapped(runtime, "true")?;
    bundle.spec["linux"]["uidMappings"] = json!([]);
    bundle.spec["linux"]["gidMappings"] = json!([]);
    let output = bundle.run()?;
    assert!(!output.status.success() && text_of(&output).contains("mapping"), "{}", text_of(&output));
    Ok(())
}

/// By mappings of their own, also without a user namespace; by those of the container.
fn mounts_show_other_ids_than_on_disk(runtime: OciRuntime) -> Result<()> {
    let script = "stat -c '%u %g' /data/f; touch /data/made && stat -c %u /data/made";
    let data = |bundle: &Bundle| -> Result<std::path::PathBuf> {
        let data = bundle.path().join("data");
        std::fs::create_dir(&data)?;
        std::fs::write(data.join("f"), "")?;
        std::os::unix::fs::chown(data.join("f"), Some(3), Some(4))?;
        Ok(data)
    };
    use std::os::unix::fs::MetadataExt;
    let mut bundle = Bundle::new(runtime, script)?;
    let source = data(&bundle)?;
    let map = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 1000 }]);
    bundle.spec["mounts"].as_array_mut().context("mounts")?.push(json!({
        "destination": "/data", "type": "bind", "source": source, "options": ["rbind"],
        "uidMappings": map(5000), "gidMappings": map(6000),
    }));
    // The container's root is nobody that the mount knows.
    assert_eq!(text_of(&bundle.run()?).lines().next(), Some("5003 6004"));
    let mut bundle = mapped(runtime, script)?;
    let source = data(&bundle)?;
    bundle.spec["mounts"].as_array_mut().context("mounts")?.push(json!({
        "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "idmap"],
    }));
    assert_eq!(text_of(&bundle.run()?), "3 4\n0\n");
    assert_eq!(std::fs::metadata(bundle.path().join("data/made"))?.uid(), 0);
    Ok(())
}

fn a_user_namespace_is_joined_by_path(runtime: OciRuntime) -> Result<()> {
    let first = mapped(runtime, "exec sleep 1000")?;
    first.create()?;
    output_of(&mut first.command(&["start", &first.id])?)?;
    let pid = first.state()?["pid"].to_string();
    let script = "id -u; readlink /proc/self/ns/user; readlink /proc/self/ns/net; ls /sys/class/net; echo x > /dev/null";
    let mut second = mapped(runtime, script)?;
    for namespace in second.spec["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        for (kind, file) in [("user", "user"), ("network", "net")] {
            if namespace["type"] == kind {
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        }
    }
    let linux = second.spec["linux"].as_object_mut().context("linux")?;
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    let text = text_of(&second.run()?);
    let link = |file: &str| std::fs::read_link(format!("/proc/{pid}/ns/{file}"));
    let wanted = format!("0\n{}\n{}\nlo\n", link("user")?.display(), link("net")?.display());
    assert_eq!(text, wanted);
    Ok(())
}
