//! What went wrong in other runtimes when containers and sessions were started, each row by its CVE: the property that must
//! hold, on `podwright oci` and, as the check that the story is right, on runc 1.5.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{output_of, text_of};
use serde_json::{Value, json};

e2e::oci_stories! {
    cve_2019_19921_proc_is_a_procfs_or_nothing_runs,
    cve_2019_5736_the_runtime_cannot_be_overwritten_from_inside,
    cve_2021_30465_mount_targets_stay_inside_while_links_are_swapped,
    cve_2021_43784_a_path_of_any_length_unsets_no_namespace,
    cve_2022_29162_nothing_is_inheritable,
    cve_2023_25809_cgroups_are_read_only_inside,
    cve_2023_27561_proc_and_sys_must_not_be_links,
    cve_2024_21626_no_descriptor_of_the_host_is_a_directory_of_a_session,
    cve_2024_45310_nothing_is_made_outside_the_root,
    cve_2025_31133_a_mask_is_made_from_the_hosts_null_device,
    cve_2025_52881_settings_are_written_to_the_real_procfs,
    cve_2026_41579_dev_of_the_image_is_not_followed,
}

/// A running container.
fn started(bundle: Bundle) -> Result<Bundle> {
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    Ok(bundle)
}

fn mounts(bundle: &mut Bundle) -> Result<&mut Vec<Value>> {
    bundle.spec["mounts"].as_array_mut().context("mounts")
}

/// A directory beside the bundle's root in which nothing may appear, and a link text that leads there by any number of steps up.
fn outside(bundle: &Bundle) -> Result<(std::path::PathBuf, String)> {
    let outside = bundle.path().join("outside");
    std::fs::create_dir_all(&outside)?;
    let link = format!("{}{}", "../".repeat(20), outside.display());
    Ok((outside, link))
}

fn assert_empty(directory: &Path) -> Result<()> {
    let found: Vec<_> = std::fs::read_dir(directory)?.flatten().map(|entry| entry.file_name()).collect();
    assert!(found.is_empty(), "outside the root was made: {found:?}");
    Ok(())
}

fn cve_2019_19921_proc_is_a_procfs_or_nothing_runs(runtime: OciRuntime) -> Result<()> {
    // A volume in the place of /proc would take what the runtime writes there: labels, capabilities, sysctls.
    let mut bundle = Bundle::new(runtime, "echo ran")?;
    let fake = bundle.path().join("fake");
    std::fs::create_dir_all(fake.join("self/attr"))?;
    std::fs::write(fake.join("self/attr/exec"), "untouched")?;
    for mount in mounts(&mut bundle)?.iter_mut().filter(|mount| mount["destination"] == "/proc") {
        *mount = json!({ "destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"] });
    }
    let output = bundle.run()?;
    assert!(!output.status.success() && !text_of(&output).contains("ran\n"), "{}", text_of(&output));
    assert_eq!(std::fs::read_to_string(fake.join("self/attr/exec"))?, "untouched");
    Ok(())
}

fn cve_2019_5736_the_runtime_cannot_be_overwritten_from_inside(runtime: OciRuntime) -> Result<()> {
    let binary = match runtime {
        OciRuntime::Podwright => e2e::parts::podwright(),
        OciRuntime::Runc => e2e::parts::tool("runc"),
    };
    let before = std::fs::metadata(&binary)?;
    // The program of the container is whatever the runtime is at that moment; a second process writes to whatever runs.
    let mut bundle = Bundle::new(runtime, "")?;
    bundle.spec["process"]["args"] = json!(["/proc/self/exe", "--version"]);
    bundle.run()?;
    let script = "for pid in /proc/[0-9]*; do (echo overwritten > $pid/exe) 2>/dev/null && echo WRITTEN $pid; done; echo done";
    let bundle = started(Bundle::new(runtime, "exec sleep 1000")?)?;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let racer = ["exec", &bundle.id, "/bin/sh", "-c", script];
        sessions.push(bundle.command(&racer)?.stdout(std::process::Stdio::piped()).spawn()?);
        bundle.command(&["exec", &bundle.id, "/proc/self/exe"])?.output()?;
    }
    for session in sessions {
        let output = session.wait_with_output()?;
        // The session itself may fail: what it writes to is a process of another session on its way into the container.
        assert!(!text_of(&output).contains("WRITTEN"), "{}", text_of(&output));
    }
    let after = std::fs::metadata(&binary)?;
    assert_eq!((before.len(), before.mtime(), before.ino()), (after.len(), after.mtime(), after.ino()));
    Ok(())
}

fn cve_2021_30465_mount_targets_stay_inside_while_links_are_swapped(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let (outside, link) = outside(&bundle)?;
    let shared = bundle.path().join("shared");
    std::fs::create_dir_all(shared.join("directory"))?;
    symlink(link, shared.join("link"))?;
    mounts(&mut bundle)?.extend([
        json!({ "destination": "/shared", "type": "bind", "source": shared, "options": ["rbind"] }),
        json!({ "destination": "/shared/directory/made", "type": "tmpfs", "source": "tmpfs" }),
    ]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (one, other) = (shared.join("directory"), shared.join("link"));
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags);
            }
        });
        let outcome = (0..30).try_for_each(|_| {
            bundle.run()?;
            assert_empty(&outside)
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome
    })
}

fn cve_2021_43784_a_path_of_any_length_unsets_no_namespace(runtime: OciRuntime) -> Result<()> {
    // Lengths around 2^16, where a length in 16 bits wraps, and what follows would be read as further settings.
    for length in [5000, 65_530, 65_536, 70_000, 131_100] {
        let mut bundle = Bundle::new(runtime, "echo ran")?;
        let path = format!("{}proc/self/ns/net", "/".repeat(length));
        let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
            namespace["path"] = json!(path);
        }
        let output = bundle.run()?;
        let text = text_of(&output);
        assert!(!output.status.success() && !text.contains("ran\n"), "{length}: {text}");
    }
    Ok(())
}

fn cve_2022_29162_nothing_is_inheritable(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "grep CapInh /proc/self/status; exec sleep 1000")?;
    bundle.spec["process"]["capabilities"]["inheritable"] = json!([]);
    let bundle = started(bundle)?;
    let show = ["exec", "--cap", "CAP_CHOWN", &bundle.id, "grep", "CapInh", "/proc/self/status"];
    assert_eq!(output_of(&mut bundle.command(&show)?)?, "CapInh:\t0000000000000000\n");
    e2e::test_host::eventually("it tells", || {
        (bundle.output() == "CapInh:\t0000000000000000\n").then_some(())
    })
}

fn cve_2023_25809_cgroups_are_read_only_inside(runtime: OciRuntime) -> Result<()> {
    let script = "for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name tasks -o -name release_agent -o -name memory.limit_in_bytes); do \
        (echo 0 > $f) 2>/dev/null && echo WRITTEN $f; done; for d in /sys/fs/cgroup/*; do mkdir $d/new 2>/dev/null && echo MADE $d; done; echo done";
    let output = Bundle::new(runtime, script)?.run()?;
    assert_eq!(text_of(&output).trim(), "done");
    Ok(())
}

fn cve_2023_27561_proc_and_sys_must_not_be_links(runtime: OciRuntime) -> Result<()> {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new(runtime, "echo ran")?;
        std::fs::remove_dir(bundle.rootfs().join(name))?;
        std::fs::create_dir(bundle.rootfs().join("elsewhere"))?;
        symlink("/elsewhere", bundle.rootfs().join(name))?;
        let output = bundle.run()?;
        assert!(
            !output.status.success() && !text_of(&output).contains("ran"),
            "{name}: {}",
            text_of(&output)
        );
    }
    Ok(())
}

fn cve_2024_21626_no_descriptor_of_the_host_is_a_directory_of_a_session(runtime: OciRuntime) -> Result<()> {
    let bundle = started(Bundle::new(runtime, "exec sleep 1000")?)?;
    let look = "cat ../../../../../../../etc/hostname && echo ESCAPED; ls -d ../../../../../../../work && echo ESCAPED; true";
    for descriptor in 3..20 {
        let cwd = format!("/proc/self/fd/{descriptor}");
        let output = bundle.command(&["exec", "--cwd", &cwd, &bundle.id, "/bin/sh", "-c", look])?.output()?;
        assert!(!text_of(&output).contains("ESCAPED"), "descriptor {descriptor}: {}", text_of(&output));
        assert!(!output.status.success(), "descriptor {descriptor}: {}", text_of(&output));
    }
    let list = ["exec", &bundle.id, "ls", "/proc/self/fd"];
    // The fourth is the directory that ls itself reads.
    assert_eq!(output_of(&mut bundle.command(&list)?)?, "0\n1\n2\n3\n");
    Ok(())
}

fn cve_2024_45310_nothing_is_made_outside_the_root(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let (outside, link) = outside(&bundle)?;
    let source = bundle.path().join("file");
    std::fs::write(&source, "x")?;
    symlink(&link, bundle.rootfs().join("up"))?;
    symlink(format!("{link}/dangling"), bundle.rootfs().join("dangling"))?;
    mounts(&mut bundle)?.extend([
        json!({ "destination": "/up/file", "type": "bind", "source": source, "options": ["bind"] }),
        json!({ "destination": "/up/a/b/c", "type": "tmpfs", "source": "tmpfs" }),
        json!({ "destination": "/dangling", "type": "bind", "source": source, "options": ["bind"] }),
    ]);
    bundle.run()?;
    assert_empty(&outside)
}

fn cve_2025_31133_a_mask_is_made_from_the_hosts_null_device(runtime: OciRuntime) -> Result<()> {
    // /dev/null of the image, and of a volume that another container can change, leads to what the mask should hide.
    let mut bundle = Bundle::new(
        runtime,
        "wc -c < /proc/timer_list; (echo x > /proc/sysrq-trigger) 2>/dev/null && echo WRITTEN; cat /secret; echo done",
    )?;
    bundle.spec["root"]["readonly"] = json!(false);
    std::fs::write(bundle.rootfs().join("secret"), "")?;
    let dev = bundle.path().join("dev");
    std::fs::create_dir(&dev)?;
    symlink("/proc/sysrq-trigger", dev.join("null"))?;
    bundle.spec["linux"]["maskedPaths"] = json!(["/proc/timer_list", "/proc/kcore", "/secret"]);
    for mount in mounts(&mut bundle)?.iter_mut().filter(|mount| mount["destination"] == "/dev") {
        *mount = json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["bind"] });
    }
    let output = bundle.run()?;
    let text = text_of(&output);
    assert!(!text.contains("WRITTEN"), "{text}");
    // Refused, or masked all the same.
    assert!(!output.status.success() || text.contains("0\ndone"), "{text}");
    Ok(())
}

fn cve_2025_52881_settings_are_written_to_the_real_procfs(runtime: OciRuntime) -> Result<()> {
    // The image puts its own tree where the runtime would write sysctls and attributes.
    let mut bundle =
        Bundle::new(runtime, "cat /proc/sys/net/ipv4/ip_default_ttl; mount | grep -c ' /proc '")?;
    let fake = bundle.path().join("fake");
    std::fs::create_dir_all(fake.join("sys/net/ipv4"))?;
    std::fs::create_dir_all(fake.join("self/attr"))?;
    std::fs::write(fake.join("sys/net/ipv4/ip_default_ttl"), "1\n")?;
    bundle.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
    let output = bundle.run()?;
    assert_eq!(text_of(&output), "77\n1\n");
    // A mount over procfs before the settings are written must not take them.
    mounts(&mut bundle)?.push(json!({ "destination": "/proc/sys", "type": "bind", "source": fake.join("sys"), "options": ["bind"] }));
    let output = bundle.run()?;
    let untouched = std::fs::read_to_string(fake.join("sys/net/ipv4/ip_default_ttl"))?;
    assert_eq!(untouched, "1\n", "{}", text_of(&output));
    Ok(())
}

fn cve_2026_41579_dev_of_the_image_is_not_followed(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let (outside, link) = outside(&bundle)?;
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["linux"]["devices"] = json!([{ "path": "/dev/story", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0 }]);
    std::fs::remove_dir(bundle.rootfs().join("dev"))?;
    symlink(&link, bundle.rootfs().join("dev"))?;
    bundle.run()?;
    assert_empty(&outside)?;
    // Without a mount on /dev the nodes go where the link leads inside the root, or the container is refused.
    mounts(&mut bundle)?
        .retain(|mount| !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev")));
    bundle.run()?;
    assert_empty(&outside)?;
    let null = std::fs::metadata("/dev/null")?;
    assert!(null.file_type().is_char_device() && null.permissions().mode() & 0o777 == 0o666);
    Ok(())
}
