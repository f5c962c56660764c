//! The OCI core by runc's command line. Each story runs on `podwright oci` and, as the check that the story is right, on
//! runc 1.5.

use anyhow::{Context, Result};
use e2e::bundle::{Bundle, OciRuntime};
use e2e::test_host::{eventually, output_of, text_of};
use serde_json::{Value, json};

e2e::oci_stories! {
    run_gives_the_exit_code_and_output,
    run_tells_of_a_signal_as_128_plus_its_number,
    create_waits_for_start,
    kill_and_delete_follow_the_states,
    delete_refuses_a_running_container,
    an_unknown_container_is_an_error,
    an_id_is_used_once,
    a_bundle_without_config_is_an_error,
    a_missing_program_is_named,
    a_program_that_is_not_executable_is_named,
    namespaces_are_the_containers_own,
    capabilities_and_no_new_privileges_are_as_asked,
    limits_reach_the_cgroup,
    masked_paths_are_empty_and_readonly_paths_refuse_writes,
    the_root_is_readonly_when_asked,
    dev_has_the_default_devices,
    other_devices_are_denied_whether_the_spec_says_so_or_not,
    the_last_rule_about_a_device_wins,
    device_rules_that_no_cgroup_could_hold_are_refused,
    binds_and_tmpfs_are_mounted,
    user_groups_and_umask_are_as_asked,
    rlimits_are_set,
    a_seccomp_filter_gives_its_errno,
    a_memory_hog_is_killed,
    a_working_directory_that_leaks_is_refused,
    mount_targets_do_not_follow_links_out_of_the_root,
    nothing_is_inherited_but_stdio,
}

/// Runs the script to its end and gives what it wrote; fails on another code than 0.
fn stdout_of(bundle: &Bundle) -> Result<String> {
    let output = bundle.run()?;
    anyhow::ensure!(output.status.success(), "{}: {}", output.status, text_of(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run_gives_the_exit_code_and_output(runtime: OciRuntime) -> Result<()> {
    let output = Bundle::new(runtime, "echo out; echo err >&2; exit 7")?.run()?;
    assert_eq!(output.status.code(), Some(7), "{}", text_of(&output));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    Ok(())
}

fn run_tells_of_a_signal_as_128_plus_its_number(runtime: OciRuntime) -> Result<()> {
    let output = Bundle::new(runtime, "sh -c 'kill -9 $$'; exit $?")?.run()?;
    assert_eq!(output.status.code(), Some(137), "{}", text_of(&output));
    Ok(())
}

fn create_waits_for_start(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "echo started; sleep 1000")?;
    bundle.create()?;
    let state = bundle.state()?;
    assert_eq!(state["status"], "created", "{state}");
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["bundle"], bundle.path().display().to_string());
    assert_eq!(state["rootfs"], bundle.rootfs().display().to_string());
    let pid = std::fs::read_to_string(bundle.path().join("pid"))?;
    assert_eq!(state["pid"].to_string(), pid.trim());
    assert_eq!(bundle.output(), "");
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    eventually("it has started", || (bundle.output() == "started\n").then_some(()))?;
    assert_eq!(bundle.state()?["status"], "running");
    Ok(())
}

fn kill_and_delete_follow_the_states(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "trap 'exit 0' TERM; echo up; while :; do sleep 1; done")?;
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    eventually("it has started", || (bundle.output() == "up\n").then_some(()))?;
    output_of(&mut bundle.command(&["kill", &bundle.id, "TERM"])?)?;
    eventually("it is stopped", || (bundle.state().ok()?["status"] == "stopped").then_some(()))?;
    let killed = bundle.command(&["kill", &bundle.id, "KILL"])?.output()?;
    assert!(
        !killed.status.success() && text_of(&killed).contains("container not running"),
        "{}",
        text_of(&killed)
    );
    output_of(&mut bundle.command(&["delete", &bundle.id])?)?;
    bundle.state().expect_err("it is gone");
    Ok(())
}

fn delete_refuses_a_running_container(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "sleep 1000")?;
    bundle.create()?;
    output_of(&mut bundle.command(&["start", &bundle.id])?)?;
    let refused = bundle.command(&["delete", &bundle.id])?.output()?;
    assert!(!refused.status.success(), "{}", text_of(&refused));
    assert!(text_of(&refused).contains("cannot delete container"), "{}", text_of(&refused));
    output_of(&mut bundle.command(&["delete", "--force", &bundle.id])?)?;
    bundle.state().expect_err("it is gone");
    output_of(&mut bundle.command(&["delete", "--force", &bundle.id])?)
        .context("forced, it may be gone already")?;
    Ok(())
}

fn an_unknown_container_is_an_error(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "true")?;
    for arguments in
        [vec!["state", "nobody"], vec!["start", "nobody"], vec!["kill", "nobody"], vec!["delete", "nobody"]]
    {
        let output = bundle.command(&arguments)?.output()?;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text_of(&output));
        assert!(text_of(&output).contains("container does not exist"), "{arguments:?}: {}", text_of(&output));
    }
    Ok(())
}

fn an_id_is_used_once(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "sleep 1000")?;
    bundle.create()?;
    let second = bundle.run()?;
    assert!(!second.status.success() && text_of(&second).contains("already exists"), "{}", text_of(&second));
    assert_eq!(bundle.state()?["status"], "created", "the first one is untouched");
    Ok(())
}

fn a_bundle_without_config_is_an_error(runtime: OciRuntime) -> Result<()> {
    let bundle = Bundle::new(runtime, "true")?;
    let output = bundle.command(&["run", "--bundle", "/nonexistent", "nobody"])?.output()?;
    assert!(!output.status.success());
    assert!(
        text_of(&output).contains("/nonexistent") || text_of(&output).contains("config.json"),
        "{}",
        text_of(&output)
    );
    Ok(())
}

fn a_missing_program_is_named(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "")?;
    for (program, why) in
        [("no-such-program", "executable file not found in $PATH"), ("/no/such", "no such file or directory")]
    {
        bundle.spec["process"]["args"] = json!([program]);
        let output = bundle.run()?;
        assert!(!output.status.success());
        let text = text_of(&output);
        assert!(text.contains(&format!("exec: \"{program}\": ")) || text.contains(program), "{text}");
        assert!(text.contains(why), "{text}");
        bundle.state().expect_err("nothing is left of it");
    }
    Ok(())
}

fn a_program_that_is_not_executable_is_named(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "")?;
    bundle.spec["process"]["args"] = json!(["/etc/not-executable"]);
    let output = bundle.run()?;
    assert!(!output.status.success());
    assert!(
        text_of(&output).contains("/etc/not-executable") && text_of(&output).contains("permission denied"),
        "{}",
        text_of(&output)
    );
    Ok(())
}

fn namespaces_are_the_containers_own(runtime: OciRuntime) -> Result<()> {
    let script = "for n in net mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done; echo $$; hostname; ls /proc | grep -c '^[0-9]'";
    let mut bundle = Bundle::new(runtime, script)?;
    bundle.spec["hostname"] = json!("inside");
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let text = stdout_of(&bundle)?;
    let lines: Vec<&str> = text.lines().collect();
    for (line, name) in lines.iter().zip(["net", "mnt", "pid", "ipc", "uts", "cgroup"]) {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
        assert!(line.starts_with(name), "{text}");
        assert_ne!(*line, ours.to_string_lossy(), "{name} is shared");
    }
    assert_eq!(&lines[6..8], ["1", "inside"], "{text}");
    assert!(lines[8].parse::<u32>()? <= 4, "only its own processes: {text}");
    Ok(())
}

fn capabilities_and_no_new_privileges_are_as_asked(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")?;
    let kill = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": kill, "effective": kill, "permitted": kill });
    bundle.spec["process"]["noNewPrivileges"] = json!(true);
    let set = format!("{:016x}", 1u64 << 5 | 1u64 << 10);
    let none = "0".repeat(16);
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{none}\nNoNewPrivs:\t1\n"
    );
    assert_eq!(stdout_of(&bundle)?, wanted);
    Ok(())
}

fn limits_reach_the_cgroup(runtime: OciRuntime) -> Result<()> {
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares pids/pids.max 2>/dev/null || cat memory.max cpu.max pids.max";
    let mut bundle = Bundle::new(runtime, script)?;
    bundle.spec["linux"]["resources"] = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": { "limit": 33_554_432 }, "cpu": { "shares": 256, "quota": 20_000, "period": 50_000 }, "pids": { "limit": 12 },
    });
    let text = stdout_of(&bundle)?;
    assert!(text == "33554432\n20000\n50000\n256\n12\n" || text == "33554432\n20000 50000\n12\n", "{text}");
    Ok(())
}

fn masked_paths_are_empty_and_readonly_paths_refuse_writes(runtime: OciRuntime) -> Result<()> {
    let script = "cat /proc/timer_list /proc/keys | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w; \
        for f in /proc/sys/kernel/domainname /proc/sysrq-trigger; do (echo x > $f) 2>/dev/null && echo WRITTEN $f; done; \
        mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo WRITTEN cgroup; echo done";
    assert_eq!(stdout_of(&Bundle::new(runtime, script)?)?, "0\n0\ndone\n");
    Ok(())
}

fn the_root_is_readonly_when_asked(runtime: OciRuntime) -> Result<()> {
    for (readonly, wanted) in [(true, "refused\n"), (false, "written\n")] {
        let mut bundle = Bundle::new(runtime, "(echo x > /new) 2>/dev/null && echo written || echo refused")?;
        bundle.spec["root"]["readonly"] = json!(readonly);
        assert_eq!(stdout_of(&bundle)?, wanted);
        assert_eq!(bundle.rootfs().join("new").exists(), !readonly);
    }
    Ok(())
}

fn dev_has_the_default_devices(runtime: OciRuntime) -> Result<()> {
    let script = "ls /dev | grep -vE '^(core|console)$' | sort | tr '\\n' ' '; echo; stat -c '%n %a %t:%T %u:%g' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
        readlink /dev/fd /dev/stdin; readlink /dev/ptmx; echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1; \
        mknod /dev/sda b 8 0 2>/dev/null && head -c 1 /dev/sda 2>&1 | grep -o 'not permitted'; stat -fc %T /dev /dev/shm /dev/pts";
    let text = stdout_of(&Bundle::new(runtime, script)?)?;
    assert!(
        text.starts_with("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n"),
        "{text}"
    );
    for line in ["/dev/null 666 1:3 0:0", "/dev/tty 666 5:0 0:0", "/dev/urandom 666 1:9 0:0", " 00 00"] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
    Ok(())
}

/// Opens character devices by nodes of its own making: /dev/null's, /dev/fuse's, /dev/net/tun's and the machine's console's.
const OPEN_DEVICES: &str = "cd /tmp; for d in 1:3 10:229 10:200 5:1; do n=n$d; mknod $n c ${d%:*} ${d#*:}; \
    ( : <$n ) 2>error && echo $d opened || echo $d $(grep -o 'not permitted' error); done";
const DEFAULTS_ONLY: &str = "1:3 opened\n10:229 not permitted\n10:200 opened\n5:1 not permitted\n";

/// A container that may make device nodes, with these rules for their use.
fn with_devices(runtime: OciRuntime, script: &str, resources: &Value) -> Result<Bundle> {
    let mut bundle = Bundle::new(runtime, script)?;
    let able = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    bundle.spec["process"]["capabilities"] =
        json!({ "bounding": able, "effective": able, "permitted": able });
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["linux"]["resources"] = resources.clone();
    Ok(bundle)
}

fn other_devices_are_denied_whether_the_spec_says_so_or_not(runtime: OciRuntime) -> Result<()> {
    for resources in [
        Value::Null,
        json!({}),
        json!({ "devices": [] }),
        json!({ "devices": [{ "allow": false, "access": "rwm" }] }),
        json!({ "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 1, "access": "rwm" }] }),
    ] {
        let text = stdout_of(&with_devices(runtime, OPEN_DEVICES, &resources)?)?;
        assert_eq!(text, DEFAULTS_ONLY, "{resources}");
    }
    let allowed =
        json!({ "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }] });
    let text = stdout_of(&with_devices(runtime, OPEN_DEVICES, &allowed)?)?;
    assert!(text.contains("10:229 opened\n") && text.contains("5:1 not permitted"), "{text}");
    let all = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    let text = stdout_of(&with_devices(runtime, OPEN_DEVICES, &all)?)?;
    assert!(!text.contains("not permitted"), "{text}");
    Ok(())
}

fn the_last_rule_about_a_device_wins(runtime: OciRuntime) -> Result<()> {
    let rule = |allow: bool, access: &str| json!({ "allow": allow, "type": "c", "major": 10, "minor": 229, "access": access });
    let script = "mknod /tmp/fuse c 10 229; for way in '<' '>'; do sh -c \": $way/tmp/fuse\" 2>/dev/null && echo -n \"$way\"; done; true";
    for (rules, ways) in [
        (vec![rule(true, "rw"), rule(false, "w")], "<"),
        (vec![rule(false, "rw"), rule(true, "rw")], "<>"),
        (vec![rule(true, "r"), rule(true, "w")], "<>"),
        (vec![rule(true, "rw"), json!({ "allow": false, "access": "rwm" })], ""),
        (vec![json!({ "allow": true, "access": "rwm" }), rule(false, "w")], "<"),
        (vec![json!({ "allow": true, "access": "rwm" }), rule(false, "rw"), rule(true, "w")], ">"),
    ] {
        let text = stdout_of(&with_devices(runtime, script, &json!({ "devices": rules }))?)?;
        assert_eq!(text, ways, "{rules:?}");
    }
    Ok(())
}

fn device_rules_that_no_cgroup_could_hold_are_refused(runtime: OciRuntime) -> Result<()> {
    for rules in [
        json!([{ "allow": true, "type": "c", "major": 10, "minor": 229 }]),
        json!([{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "x" }]),
        json!([
            { "allow": true, "type": "c", "major": 10, "access": "rw" },
            { "allow": false, "type": "c", "major": 10, "minor": 229, "access": "w" },
        ]),
    ] {
        let output = with_devices(runtime, "echo ran", &json!({ "devices": rules }))?.run()?;
        assert!(!output.status.success() && output.stdout.is_empty(), "{rules}: {}", text_of(&output));
    }
    Ok(())
}

fn binds_and_tmpfs_are_mounted(runtime: OciRuntime) -> Result<()> {
    let script = "cat /data/f; (echo x > /data/g) 2>/dev/null || echo refused; cat /one; df -k /scratch | tail -1 | awk '{print $2}'; \
        (echo > /scratch/a) && echo ok; grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6";
    let mut bundle = Bundle::new(runtime, script)?;
    let data = bundle.path().join("data");
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("f"), "from outside\n")?;
    let mounts = bundle.spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro", "nosuid", "nodev"] }));
    mounts.push(
        json!({ "destination": "/one", "type": "bind", "source": data.join("f"), "options": ["bind"] }),
    );
    mounts.push(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1777"] }));
    bundle.spec["root"]["readonly"] = json!(false);
    let text = stdout_of(&bundle)?;
    assert!(text.starts_with("from outside\nrefused\nfrom outside\n64\nok\nro,nosuid,nodev"), "{text}");
    Ok(())
}

fn user_groups_and_umask_are_as_asked(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(
        runtime,
        "id -u; id -g; id -G; umask; pwd; echo $HOME $WHO; grep ^CapEff /proc/self/status",
    )?;
    bundle.spec["process"]["user"] =
        json!({ "uid": 1000, "gid": 2000, "additionalGids": [3000, 50000], "umask": 0o027 });
    bundle.spec["process"]["cwd"] = json!("/tmp");
    bundle.spec["process"]["env"] = json!(["PATH=/bin", "WHO=me", "HOME=/tmp"]);
    let text = stdout_of(&bundle)?;
    assert_eq!(text, "1000\n2000\n2000 3000 50000\n0027\n/tmp\n/tmp me\nCapEff:\t0000000000000000\n");
    Ok(())
}

fn rlimits_are_set(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "ulimit -Sn; ulimit -Hn; ulimit -c")?;
    bundle.spec["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ]);
    assert_eq!(stdout_of(&bundle)?, "512\n1024\n0\n");
    Ok(())
}

fn a_seccomp_filter_gives_its_errno(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(
        runtime,
        "grep ^Seccomp: /proc/self/status; mkdir /tmp/a 2>&1; chmod 777 /tmp 2>&1; echo still",
    )?;
    bundle.spec["root"]["readonly"] = json!(false);
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
            { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO" },
            { "names": ["no_such_call"], "action": "SCMP_ACT_ERRNO" },
        ],
    });
    let text = stdout_of(&bundle)?;
    assert_eq!(
        text,
        "Seccomp:\t2\nmkdir: can't create directory '/tmp/a': Operation not supported\nchmod: /tmp: Operation not permitted\nstill\n"
    );
    Ok(())
}

fn a_memory_hog_is_killed(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "")?;
    bundle.spec["process"]["args"] = json!(["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]);
    bundle.spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } });
    let output = bundle.run()?;
    assert_eq!(output.status.code(), Some(137), "{}", text_of(&output));
    Ok(())
}

/// runc CVE-2024-21626: a working directory that is a descriptor of the host.
fn a_working_directory_that_leaks_is_refused(runtime: OciRuntime) -> Result<()> {
    for descriptor in 3..24 {
        let mut bundle = Bundle::new(runtime, "cat ../../../../../../etc/hostname && echo ESCAPED; true")?;
        bundle.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{descriptor}"));
        let output = bundle.run()?;
        let text = text_of(&output);
        assert!(!text.contains("ESCAPED"), "descriptor {descriptor}: {text}");
        assert!(!output.status.success(), "descriptor {descriptor}: {text}");
    }
    Ok(())
}

/// runc CVE-2021-30465 and its kin: the image's own links as mount targets.
fn mount_targets_do_not_follow_links_out_of_the_root(runtime: OciRuntime) -> Result<()> {
    let mut bundle = Bundle::new(runtime, "true")?;
    let outside = bundle.path().join("outside");
    std::fs::create_dir(&outside)?;
    std::os::unix::fs::symlink(&outside, bundle.rootfs().join("link"))?;
    std::os::unix::fs::symlink(
        "../../../../../../../../../../../../".to_owned() + outside.to_str().context("UTF-8")?,
        bundle.rootfs().join("dots"),
    )?;
    let mounts = bundle.spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/link/made", "type": "tmpfs", "source": "tmpfs" }));
    mounts.push(json!({ "destination": "/dots/made", "type": "tmpfs", "source": "tmpfs" }));
    let _ = bundle.run()?;
    assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "something was made outside the root");
    Ok(())
}

fn nothing_is_inherited_but_stdio(runtime: OciRuntime) -> Result<()> {
    let text = stdout_of(&Bundle::new(runtime, "ls /proc/self/fd | tr '\\n' ' '")?)?;
    // The fourth is the directory that ls itself reads.
    assert_eq!(text.trim(), "0 1 2 3");
    Ok(())
}
