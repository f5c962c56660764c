//! Specs and what becomes of them.

use serde_json::{Value, json};

use super::*;

#[test]
fn a_minimal_spec_becomes_a_plan_with_what_it_says() {
    let plan = plan(json!({
        "hostname": "h",
        "process": {
            "args": ["/bin/true"], "env": ["A=b"], "cwd": "/w", "noNewPrivileges": true, "oomScoreAdj": 5,
            "user": { "uid": 7, "gid": 8, "umask": 0o22, "additionalGids": [9] },
            "capabilities": { "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
                "inheritable": ["CAP_KILL"], "ambient": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }],
        },
    }))
    .unwrap();
    let process = plan.process;
    assert_eq!(
        (process.uid, process.gid, process.umask, process.additional_gids),
        (7, 8, Some(0o22), vec![9])
    );
    assert_eq!(process.rlimits, [(libc::RLIMIT_NOFILE, 1, 2)]);
    assert_eq!(process.capabilities.effective, 1 << 5);
    assert_eq!(process.capabilities.ambient, 0, "what is not permitted cannot be ambient");
    assert_eq!(plan.hostname.as_deref(), Some("h"));
    assert_eq!(plan.cgroup.unwrap().path, "/c");
}

#[test]
fn a_plan_survives_the_way_to_the_supervisor() {
    let plan = plan(json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" }, "maskedPaths": ["/proc/kcore"] } })).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<LaunchPlan>(&text).unwrap(), plan);
}

#[test]
fn what_is_not_done_is_refused_by_the_name_of_the_field() {
    let table = [
        ("process.apparmorProfile", json!({ "process": { "apparmorProfile": "p" } })),
        ("process.selinuxLabel", json!({ "process": { "selinuxLabel": "l" } })),
        ("hooks", json!({ "hooks": { "poststart": [{ "path": "/bin/true" }] } })),
        ("linux.mountLabel", json!({ "linux": { "mountLabel": "l" } })),
        (
            "linux.resources.blockIO.leafWeight",
            json!({ "linux": { "resources": { "blockIO": { "leafWeight": 10 } } } }),
        ),
        ("linux.resources.memory.kernel", json!({ "linux": { "resources": { "memory": { "kernel": 1 } } } })),
        (
            "linux.resources.rdma",
            json!({ "linux": { "resources": { "rdma": { "mlx5_1": { "hcaHandles": 3 } } } } }),
        ),
        ("linux.seccomp", json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } } })),
        (
            "mounts[0].options",
            json!({ "mounts": [{ "destination": "/x", "type": "proc", "options": ["tmpcopyup"] }] }),
        ),
        ("linux.cgroupsPath", json!({ "linux": { "cgroupsPath": "system.slice:runc:x" } })),
    ];
    for (field, patch) in table {
        let error = plan(patch).unwrap_err();
        assert!(
            matches!(&error, PlanError::Unsupported { field: found, .. } if found == field),
            "{field}: {error}"
        );
    }
}

#[test]
fn clocks_belong_to_a_new_time_namespace() {
    let with = |namespaces: Value, offsets: Value| {
        plan(json!({ "linux": { "namespaces": namespaces, "timeOffsets": offsets } }))
    };
    let offsets = json!({ "monotonic": { "secs": -3, "nanosecs": 4 }, "boottime": {} });
    let planned = with(json!([{ "type": "mount" }, { "type": "time" }]), offsets.clone()).unwrap();
    let clocks: Vec<_> =
        planned.clocks.iter().map(|c| (c.clock.as_str(), c.seconds, c.nanoseconds)).collect();
    assert_eq!(clocks, [("boottime", 0, 0), ("monotonic", -3, 4)]);
    for (namespaces, offsets) in [
        (json!([{ "type": "mount" }]), offsets.clone()),
        (json!([{ "type": "mount" }, { "type": "time", "path": "/t" }]), offsets),
        (json!([{ "type": "mount" }, { "type": "time" }]), json!({ "realtime": {} })),
    ] {
        let error = with(namespaces, offsets).unwrap_err();
        assert!(
            matches!(&error, PlanError::Invalid { field, .. } if field == "linux.timeOffsets"),
            "{error}"
        );
    }
}

#[test]
fn schedulers_and_priorities_are_planned_or_refused() {
    let process = |field: &str, value: Value| plan(json!({ "process": { field: value } })).map(|p| p.process);
    let deadline = json!({ "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3, "flags": ["SCHED_FLAG_RECLAIM"] });
    let planned = process("scheduler", deadline).unwrap().scheduling.unwrap();
    assert_eq!((planned.policy, planned.flags), (6, 2));
    assert_eq!((planned.runtime, planned.deadline, planned.period), (1, 2, 3));
    let idle = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 7 });
    assert_eq!(process("ioPriority", idle).unwrap().io_priority, Some((3, 7)));
    for (field, value) in [
        ("scheduler", json!({ "policy": "SCHED_OTHER", "nice": -21 })),
        ("scheduler", json!({ "policy": "SCHED_RR", "priority": -1 })),
        ("scheduler", json!({ "policy": "SCHED_IDLE", "priority": 1 })),
        ("scheduler", json!({ "policy": "SCHED_FIFO", "period": 1 })),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 8 })),
    ] {
        let error = process(field, value.clone()).unwrap_err();
        assert!(matches!(error, PlanError::Invalid { .. }), "{value}: {error}");
    }
}

#[test]
fn flags_of_schedulers_are_spelled_as_the_spec_has_them() {
    let flags = ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"];
    let scheduler = json!({ "policy": "SCHED_DEADLINE", "flags": flags });
    let config = json!({ "ociVersion": "1.2.0", "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "scheduler": scheduler } });
    let spec = parse_spec(config.to_string().as_bytes()).unwrap().spec;
    let scheduler = spec.process().as_ref().unwrap().scheduler().clone().unwrap();
    assert_eq!(priority::plan_scheduling(&scheduler).unwrap().flags, 7);
    let error = parse_spec(br#"{ "ociVersion": 3 }"#).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn limits_of_both_versions_are_planned() {
    let resources = json!({
        "blockIO": {
            "weight": 500, "weightDevice": [{ "major": 8, "minor": 0, "weight": 20 }],
            "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1000 }],
        },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 4194304 }],
        "network": { "classID": 7, "priorities": [{ "name": "eth0", "priority": 2 }] },
        "memory": { "swappiness": 10, "disableOOMKiller": true },
    });
    let limits = plan(json!({ "linux": { "resources": resources } })).unwrap().cgroup.unwrap().limits;
    assert_eq!(
        (limits.io.weight, limits.io.device_weights.len(), limits.io.throttles.len()),
        (Some(500), 1, 1)
    );
    assert_eq!(limits.hugepages["2MB"], 4 << 20);
    let files: Vec<(&str, &str)> =
        limits.v1_only.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let wanted = [
        ("memory.oom_control", "1"),
        ("memory.swappiness", "10"),
        ("net_cls.classid", "7"),
        ("net_prio.ifpriomap", "eth0 2\n"),
    ];
    assert_eq!(files, wanted);
}

#[test]
fn ids_of_a_user_namespace_are_planned_and_needed() {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let own = json!([{ "type": "mount" }, { "type": "pid" }, { "type": "user" }]);
    let planned =
        plan(json!({ "linux": { "namespaces": own, "uidMappings": map, "gidMappings": map } })).unwrap();
    let wanted = IdMap { container: 0, host: 100_000, size: 65_536 };
    assert_eq!(planned.user, Some(UserPlan { uid: vec![wanted], gid: vec![wanted] }));
    let joined = json!([{ "type": "mount" }, { "type": "user", "path": "/proc/1/ns/user" }]);
    let planned = plan(json!({ "linux": { "namespaces": joined } })).unwrap();
    assert_eq!(planned.own_namespaces().len(), 2);
    assert_eq!(planned.user, Some(UserPlan::default()));
}

#[test]
fn mounts_show_ids_by_mappings_or_as_the_container_does() {
    let map = json!([{ "containerID": 0, "hostID": 7, "size": 9 }]);
    let own = UserPlan {
        uid: vec![IdMap { container: 0, host: 7, size: 9 }],
        gid: vec![IdMap { container: 0, host: 7, size: 9 }],
    };
    let of_container = UserPlan::default();
    let mount = |extra: Value| {
        let mut mount = json!({ "destination": "/m", "type": "bind", "source": "/s", "options": ["rbind"] });
        merge(&mut mount, extra);
        json!([{ "type": "mount" }, { "type": "user", "path": "/n" }])
            .as_array()
            .map(|namespaces| plan(json!({ "mounts": [mount], "linux": { "namespaces": namespaces } })))
            .unwrap()
            .map(|plan| plan.mounts[0].ids.clone())
    };
    let maps = json!({ "uidMappings": map, "gidMappings": map });
    for (extra, expect) in [
        (json!({}), Ok(None)),
        (maps.clone(), Ok(Some((&own, false)))),
        (json!({ "options": ["rbind", "idmap"] }), Ok(Some((&of_container, false)))),
        (json!({ "options": ["rbind", "ridmap"] }), Ok(Some((&of_container, true)))),
        (json!({ "uidMappings": map }), Err("must have both uid and gid mappings")),
        (json!({ "type": "tmpfs", "options": ["idmap"] }), Err("only supported for bind-mounts")),
    ] {
        let planned = mount(extra.clone());
        match expect {
            Ok(expect) => {
                let expect = expect.map(|(ids, recursive)| MountIds { ids: ids.clone(), recursive });
                assert_eq!(planned, Ok(expect), "{extra}");
            }
            Err(reason) => assert!(planned.unwrap_err().to_string().contains(reason), "{extra}"),
        }
    }
    let alone = json!({ "mounts": [{ "destination": "/m", "type": "bind", "source": "/s", "options": ["rbind", "idmap"] }] });
    let error = plan(alone).unwrap_err().to_string();
    assert!(error.contains("mounts[0].uidMappings"), "{error}");
}

/// A plan whose root has these layers.
pub(crate) fn overlay(lower: &[&str]) -> LaunchPlan {
    let rootfs = Rootfs::Overlay {
        lower: lower.iter().map(PathBuf::from).collect(),
        upper: "/u".into(),
        work: "/w".into(),
    };
    plan_launch(&spec(json!({})), &LaunchOptions { rootfs, ..options() }).unwrap()
}

#[test]
fn values_that_nobody_could_carry_out_are_named() {
    let table = [
        (
            "linux.uidMappings",
            json!({ "linux": { "namespaces": [{ "type": "mount" }, { "type": "user" }] } }),
        ),
        (
            "linux.uidMappings",
            json!({ "linux": { "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }] } }),
        ),
        ("linux.resources.blockIO", json!({ "linux": { "resources": { "blockIO": { "weight": 5 } } } })),
        (
            "linux.resources.hugepageLimits",
            json!({ "linux": { "resources": { "hugepageLimits": [{ "pageSize": "../2MB", "limit": 1 }] } } }),
        ),
        ("process.args", json!({ "process": { "args": [] } })),
        ("process.cwd", json!({ "process": { "cwd": "relative" } })),
        ("process.user.uid", json!({ "process": { "user": { "uid": 4_294_967_295_u32, "gid": 0 } } })),
        (
            "linux.namespaces",
            json!({ "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "pid" }] } }),
        ),
        ("linux.sysctl", json!({ "linux": { "sysctl": { "kernel.core_pattern": "|/x" } } })),
        ("linux.sysctl", json!({ "linux": { "sysctl": { "net.ipv4.ip_forward": "1\nx" } } })),
        ("linux.sysctl", json!({ "linux": { "sysctl": { "net/../kernel/core_pattern": "1" } } })),
        ("linux.rootfsPropagation", json!({ "linux": { "rootfsPropagation": "sideways" } })),
        ("mounts[0].destination", json!({ "mounts": [{ "destination": "/a/../b", "type": "tmpfs" }] })),
    ];
    for (field, patch) in table {
        let error = plan(patch).unwrap_err();
        assert!(
            matches!(&error, PlanError::Invalid { field: found, .. } if found == field),
            "{field}: {error}"
        );
    }
}

#[test]
fn sysctl_names_go_with_dots_or_slashes() {
    let sysctls = |name: &str| plan(json!({ "linux": { "sysctl": { name: "1" } } })).unwrap().sysctls;
    for name in ["net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"] {
        assert_eq!(sysctls(name), [("net/ipv4/conf/eth0.1/rp_filter".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn inherited_namespaces_are_neither_made_nor_joined() {
    let spec = spec(json!({ "hostname": "h", "linux": { "namespaces": [
        { "type": "mount" }, { "type": "pid" }, { "type": "network", "path": "/proc/1/ns/net" },
        { "type": "uts", "path": "/proc/1/ns/uts" }, { "type": "ipc", "path": "/proc/1/ns/ipc" }] } }));
    let inherit = InheritedNamespaces { net: true, ipc: false, uts: true, pid: false };
    let plan = plan_launch(&spec, &LaunchOptions { inherit, ..options() }).unwrap();
    assert_eq!(plan.new_namespaces, [Namespace::Mnt, Namespace::Pid]);
    assert_eq!(plan.join_namespaces, [(Namespace::Ipc, PathBuf::from("/proc/1/ns/ipc"))]);
    assert_eq!(plan.hostname, None, "whoever owns the namespace has set it");
}

#[test]
fn a_terminal_is_planned_with_its_size_and_a_size_alone_means_nothing() {
    let terminal = |process: Value| plan(json!({ "process": process })).map(|plan| plan.process.terminal);
    let size = json!({ "height": 24, "width": 80 });
    let planned = terminal(json!({ "terminal": true, "consoleSize": size })).unwrap().unwrap();
    assert_eq!(planned.size, Some(TerminalSize { rows: 24, columns: 80 }));
    assert_eq!(terminal(json!({ "terminal": true })), Ok(Some(TerminalPlan::default())));
    assert_eq!(terminal(json!({ "consoleSize": size })), Ok(None));
    let too_large =
        terminal(json!({ "terminal": true, "consoleSize": { "height": 1, "width": 65536 } })).unwrap_err();
    assert!(too_large.to_string().contains("process.consoleSize"), "{too_large}");
}

#[test]
fn mount_options_become_attributes() {
    let mounts = |options: Value| {
        plan(json!({ "mounts": [{ "destination": "/x", "type": "bind", "source": "/s", "options": options }] })).unwrap().mounts
    };
    let ro = &mounts(json!(["rbind", "ro", "nosuid", "noatime", "rslave"]))[0];
    assert_eq!(ro.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOATIME);
    assert_eq!(ro.clear, libc::MOUNT_ATTR__ATIME);
    assert_eq!((ro.propagation, ro.propagation_recursive), (libc::MS_SLAVE, true));
    let undone = &mounts(json!(["bind", "ro", "rw", "rro"]))[0];
    assert_eq!((undone.set, undone.clear), (0, libc::MOUNT_ATTR_RDONLY));
    assert_eq!(undone.set_recursive, libc::MOUNT_ATTR_RDONLY);
    assert_eq!(undone.kind, MountKind::Bind { source: "/s".into(), recursive: false });
}

#[test]
fn an_overlay_of_lower_layers_alone_is_an_image() {
    let kind = |options: Value| {
        plan(json!({ "mounts": [{ "destination": "/x", "type": "overlay", "options": options }] }))
            .unwrap()
            .mounts[0]
            .kind
            .clone()
    };
    let image = kind(json!(["ro", "lowerdir+=/2", "lowerdir+=/1", "x-podwright-sub-path=a"]));
    assert_eq!(
        image,
        MountKind::Layers { lower: vec!["/2".into(), "/1".into()], sub_path: Some("a".into()) }
    );
    for written in [json!(["lowerdir+=/1", "upperdir=/u", "workdir=/w"]), json!(["lowerdir=/2:/1"])] {
        assert!(matches!(kind(written), MountKind::New { .. }));
    }
}

#[test]
fn an_unknown_capability_is_left_out_and_named() {
    let sets = json!({ "bounding": ["CAP_KILL", "CAP_FLY"], "effective": ["CAP_FLY", "CAP_CHOWN"], "ambient": ["CAP_DIG"] });
    let mut config: Value = serde_json::to_value(spec(json!({}))).unwrap();
    config["process"]["capabilities"] = sets;
    let parsed = parse_spec(config.to_string().as_bytes()).unwrap();
    assert_eq!(parsed.unknown_capabilities, ["CAP_DIG", "CAP_FLY"]);
    let sets = plan_launch(&parsed.spec, &options()).unwrap().process.capabilities;
    assert_eq!((sets.bounding, sets.ambient), (1 << 5, 0));
    config["process"]["capabilities"]["bounding"] = json!([5]);
    parse_spec(config.to_string().as_bytes()).unwrap_err();
}

#[test]
fn a_filter_is_installed_with_the_flags_of_its_profile_wherever_it_comes_from() {
    let (log, allow) = (libc::SECCOMP_FILTER_FLAG_LOG as u32, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
    let tsync = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
    for (given, expect) in [
        (json!({}), allow),
        (json!({ "flags": [] }), 0),
        (json!({ "flags": ["SECCOMP_FILTER_FLAG_LOG"] }), log),
        (json!({ "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"] }), allow | tsync),
    ] {
        let mut seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        merge(&mut seccomp, given.clone());
        let spec = spec(json!({ "linux": { "seccomp": seccomp } }));
        for file in [None, Some(PathBuf::from("/f.bpf"))] {
            let options = LaunchOptions { seccomp: file, ..options() };
            let flags = match plan_launch(&spec, &options).unwrap().process.seccomp.unwrap() {
                SeccompPlan::File { flags, .. } | SeccompPlan::Inline { flags, .. } => flags,
            };
            assert_eq!(flags, expect, "{given}");
        }
    }
    let waits =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] });
    let error = plan(json!({ "linux": { "seccomp": waits } })).unwrap_err().to_string();
    assert!(error.contains("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"), "{error}");
}

#[test]
fn a_container_has_the_default_devices_and_what_it_asks_for_and_no_other() {
    let all_but = json!([{ "allow": true, "access": "rwm" }, { "allow": false, "type": "b", "major": 8, "access": "rwm" }]);
    let resources = [
        Value::Null,
        json!({}),
        json!({ "devices": [] }),
        json!({ "devices": [{ "allow": false, "access": "rwm" }] }),
        json!({ "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }] }),
    ];
    for resources in resources {
        let rules = device_rules(resources.clone()).unwrap();
        assert!(!rules[0].allow && rules[1..].iter().all(|rule| rule.allow), "{resources}");
        for (numbers, expect) in [
            ((Some(1), Some(3)), true),
            ((Some(10), Some(200)), true),
            ((Some(136), None), true),
            // The machine's console is no terminal of the container.
            ((Some(5), Some(1)), false),
            ((Some(10), Some(229)), resources["devices"][0]["major"] == 10),
        ] {
            let found = rules.iter().any(|rule| (rule.major, rule.minor) == numbers);
            assert_eq!(found, expect, "{resources} {numbers:?}");
        }
    }
    let all = device_rules(json!({ "devices": [{ "allow": true, "access": "rwm" }] })).unwrap();
    assert!(all.len() == 1 && all[0].allow);
    let rules = device_rules(json!({ "devices": all_but })).unwrap();
    assert!(rules.len() == 2 && rules[0].allow && rules[1].major == Some(8));
}

#[test]
fn device_rules_that_say_something_else_than_cgroups_can_do_are_refused() {
    for rule in [
        json!({ "allow": true, "type": "c", "major": 1, "minor": 3 }),
        json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "" }),
        json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "x" }),
        json!({ "allow": true, "access": "rrr" }),
        json!({ "allow": true, "major": 1, "access": "rwm" }),
    ] {
        device_rules(json!({ "devices": [rule] })).unwrap_err();
    }
    let part = json!([
        { "allow": true, "type": "c", "major": 10, "access": "rw" },
        { "allow": false, "type": "c", "major": 10, "minor": 229, "access": "w" },
    ]);
    let error = device_rules(json!({ "devices": part })).unwrap_err().to_string();
    assert!(error.contains("linux.resources.devices") && error.contains("c 10:229 w"), "{error}");
}

fn device_rules(resources: Value) -> Result<Vec<host::cgroup::DeviceRule>, PlanError> {
    plan(json!({ "linux": { "resources": resources } }))
        .map(|plan| plan.cgroup.unwrap().limits.devices.unwrap())
}

fn plan(patch: Value) -> Result<LaunchPlan, PlanError> {
    plan_launch(&spec(patch), &options())
}

fn options() -> LaunchOptions {
    LaunchOptions {
        rootfs: Rootfs::Directory("/r".into()),
        cgroup: None,
        seccomp: None,
        inherit: InheritedNamespaces::default(),
        bundle: "/bundle".into(),
        hooks_for: None,
    }
}

/// A complete spec, changed by the patch.
fn spec(patch: Value) -> Spec {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "args": ["/bin/true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "linux": { "cgroupsPath": "/c", "namespaces": [
            { "type": "mount" }, { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }] },
    });
    merge(&mut spec, patch);
    serde_json::from_value(spec).unwrap()
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}
