//! Pods with user namespaces of their own, by CRI. Each story runs on podwright and, as the check that the story is right, on containerd
//! with runc.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, Result};
use cri::v1::{
    ContainerConfig, IdMapping, Mount, NamespaceMode, PodSandboxConfig, StatusRequest, UserNamespace,
};
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{container, create, exec, pod, run_pod, run_to_end, start};

e2e::cri_stories! {
    status_tells_that_user_namespaces_work,
    root_of_a_pod_is_nobody_on_the_host,
    volumes_keep_their_owners_on_disk,
    a_pods_root_has_its_network_and_may_mount,
    sessions_are_in_the_user_namespace,
    a_shared_process_namespace_belongs_to_the_user_namespace,
    mappings_that_make_no_sense_are_refused,
    a_container_asks_for_what_its_pod_has,
}

/// Where the pod's ids begin on the host.
const HOST_ID: u32 = 1 << 17;

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn ids() -> Vec<IdMapping> {
    vec![IdMapping { host_id: HOST_ID, container_id: 0, length: 1 << 16 }]
}

fn own() -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() }
}

/// A pod with a user namespace.
fn mapped_pod(server: &CriServer, name: &str) -> PodSandboxConfig {
    let mut pod = pod(server.host.path(), name);
    // runc wants every directory above a root to be open to the container's root.
    for directory in [server.host.path().to_owned(), server.host.path().join("containerd")] {
        let open = std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711));
        assert!(open.is_ok() || server.implementation == Implementation::Podwright, "{open:?}");
    }
    let security = pod.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
        options.userns_options = Some(own());
    }
    pod
}

/// A container of such a pod.
fn mapped(name: &str, script: &str) -> ContainerConfig {
    let mut config = container(name, &["/bin/sh", "-c", script]);
    if let Some(options) = options_of(&mut config) {
        options.userns_options = Some(own());
    }
    config
}

fn options_of(config: &mut ContainerConfig) -> Option<&mut cri::v1::NamespaceOption> {
    config.linux.as_mut()?.security_context.as_mut()?.namespace_options.as_mut()
}

fn status_tells_that_user_namespaces_work(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let status = runtime.status(StatusRequest::default()).await?.into_inner();
        let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
        let features = default.context("a default handler")?.features.context("features")?;
        assert!(features.user_namespaces);
        Ok(())
    })
}

fn root_of_a_pod_is_nobody_on_the_host(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = mapped_pod(&server, "mapped");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let script = "id -u; tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; \
            stat -c '%u %g' / /bin/busybox /etc/hosts /etc/resolv.conf; \
            touch /made && stat -c %u /made; echo x >> /etc/hosts && echo hosts; cat /etc/resolv.conf | grep -c nameserver; \
            echo x > /dev/shm/f && stat -c %u /dev/shm/f; echo x > /dev/null && echo null; hostname; exec sleep 1000";
        let config = mapped("c", script);
        let id = create(&mut runtime, &pod_id, &pod, &config).await?;
        start(&mut runtime, &id).await?;
        let wanted =
            "0\n 0 131072 65536\n 0 131072 65536\n0 0\n0 0\n0 0\n0 0\n0\nhosts\n1\n0\nnull\nmapped\n";
        e2e::test_host::eventually("it tells", || {
            e2e::requests::log_of(&pod, &config).ok().filter(|text| text.ends_with("mapped\n"))
        })?;
        assert_eq!(e2e::requests::log_of(&pod, &config)?, wanted);
        let pid = server.crictl_json(&["inspect", &id])?["info"]["pid"].to_string();
        assert_eq!(std::fs::metadata(format!("/proc/{pid}"))?.uid(), HOST_ID);
        // Layers are shared with other pods, so they are as they were.
        let other = e2e::requests::pod(server.host.path(), "other");
        let other_id = run_pod(&mut runtime, &other).await?;
        let plain =
            container("c", &["/bin/sh", "-c", "stat -c %u /bin/busybox; test -e /made || echo clean"]);
        let (_, text) = run_to_end(&mut runtime, &other_id, &other, &plain).await?;
        assert_eq!(text, "0\nclean\n");
        Ok(())
    })
}

fn volumes_keep_their_owners_on_disk(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = mapped_pod(&server, "volumes");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let volume = server.host.path().join("volume");
        std::fs::create_dir(&volume)?;
        std::fs::write(volume.join("root-only"), "of root\n")?;
        std::fs::set_permissions(volume.join("root-only"), std::fs::Permissions::from_mode(0o600))?;
        let plain = server.host.path().join("plain");
        std::fs::create_dir(&plain)?;
        std::fs::write(plain.join("root-only"), "secret\n")?;
        std::fs::set_permissions(plain.join("root-only"), std::fs::Permissions::from_mode(0o600))?;
        let script = "cat /v/root-only; touch /v/made; mkdir /v/d; chown 7:8 /v/d; stat -c '%u %g' /v/made /v/d; \
            cat /p/root-only 2>/dev/null || echo closed; touch /p/x 2>/dev/null || echo refused; stat -c %u /p/root-only";
        let mut config = mapped("c", script);
        let mount = |host: &std::path::Path, at: &str, maps: Vec<IdMapping>| Mount {
            host_path: host.display().to_string(),
            container_path: at.into(),
            uid_mappings: maps.clone(),
            gid_mappings: maps,
            ..Default::default()
        };
        config.mounts = vec![mount(&volume, "/v", ids()), mount(&plain, "/p", vec![])];
        let (status, text) = run_to_end(&mut runtime, &pod_id, &pod, &config).await?;
        assert_eq!(text, "of root\n0 0\n7 8\nclosed\nrefused\n65534\n", "{status:?}");
        let owner = |path: &str| std::fs::metadata(volume.join(path)).map(|file| (file.uid(), file.gid()));
        assert_eq!((owner("made")?, owner("d")?), ((0, 0), (7, 8)));
        Ok(())
    })
}

fn a_pods_root_has_its_network_and_may_mount(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut pod = mapped_pod(&server, "network");
        if let Some(linux) = &mut pod.linux {
            linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "1024".into());
            linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        }
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let script = "nc -l -p 80 & until grep -q ':0050 ' /proc/net/tcp /proc/net/tcp6; do :; done; echo bound; \
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
            ip link set lo down && ip link set lo up && echo up; \
            mount -t tmpfs t /tmp && echo tmpfs; hostname other && hostname; mkdir /p; mount -t proc p /p && ls /p/self > /dev/null && echo proc; \
            mknod /tmp/n c 1 3 2>/dev/null || echo no-nodes; ls /sys/class/net | tr '\\n' ' '";
        let mut config = mapped("c", script);
        let security =
            config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).context("one")?;
        security.capabilities = Some(cri::v1::Capability {
            add_capabilities: vec!["SYS_ADMIN".into(), "NET_ADMIN".into()],
            ..Default::default()
        });
        security.masked_paths = Vec::new();
        security.readonly_paths = Vec::new();
        let masked = "/proc/acpi";
        security.masked_paths.push(masked.into());
        security.readonly_paths.push(masked.into());
        let (_, text) = run_to_end(&mut runtime, &pod_id, &pod, &config).await?;
        let wanted = "bound\n1024\n1\nup\ntmpfs\nother\nproc\nno-nodes\neth0 lo ";
        assert_eq!(text.trim_end(), wanted.trim_end());
        Ok(())
    })
}

fn sessions_are_in_the_user_namespace(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = mapped_pod(&server, "session");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let mut config = mapped("c", "exec sleep 1000");
        if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
            resources.oom_score_adj = 100;
        }
        let id = create(&mut runtime, &pod_id, &pod, &config).await?;
        start(&mut runtime, &id).await?;
        let script = "id -u; cmp /proc/self/uid_map /proc/1/uid_map && echo same; echo x > /dev/stdout; cat /proc/self/oom_score_adj";
        let answer = exec(&mut runtime, &id, &["/bin/sh", "-c", script]).await?;
        let text =
            String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
        assert_eq!(text, "0\nsame\nx\n100\n");
        let mut crictl = server.crictl_command(&["exec", "-i", &id, "sh", "-c", "cat; id -u"]);
        let file = server.host.path().join("input");
        std::fs::write(&file, "from outside\n")?;
        crictl.stdin(std::fs::File::open(&file)?);
        assert_eq!(e2e::test_host::output_of(&mut crictl)?, "from outside\n0\n");
        Ok(())
    })
}

fn a_shared_process_namespace_belongs_to_the_user_namespace(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let mut pod = mapped_pod(&server, "shared");
        let security = pod.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
            options.pid = NamespaceMode::Pod.into();
        }
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let mut first = mapped("first", "exec sleep 1000");
        let mut second =
            mapped("second", "ps -o comm | grep -c sleep; tr -s ' ' < /proc/1/uid_map; stat -c %u /proc/1");
        for config in [&mut first, &mut second] {
            options_of(config).context("options")?.pid = NamespaceMode::Pod.into();
        }
        let id = create(&mut runtime, &pod_id, &pod, &first).await?;
        start(&mut runtime, &id).await?;
        let (_, text) = run_to_end(&mut runtime, &pod_id, &pod, &second).await?;
        let mut lines = text.lines();
        assert_eq!((lines.next(), lines.next()), (Some("1"), Some(" 0 131072 65536")), "{text}");
        assert!(lines.next().is_some_and(|owner| owner == "65535" || owner == "0"), "{text}");
        let answer = exec(&mut runtime, &id, &["id", "-u"]).await?;
        assert_eq!(answer.stdout, b"0\n");
        Ok(())
    })
}

fn mappings_that_make_no_sense_are_refused(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let map = |container_id, host_id| IdMapping { host_id, container_id, length: 65_536 };
        let bad = [
            ("two", NamespaceMode::Pod, vec![map(0, 1000), map(0, 2000)], "mapping"),
            ("none", NamespaceMode::Pod, vec![], "mapping"),
            ("node", NamespaceMode::Node, ids(), "mapping"),
            ("container", NamespaceMode::Container, vec![], "mode"),
        ];
        for (name, mode, maps, reason) in bad {
            let mut pod = mapped_pod(&server, name);
            let security = pod.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
            if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
                options.userns_options =
                    Some(UserNamespace { mode: mode.into(), uids: maps.clone(), gids: maps });
            }
            let error = format!("{:#}", run_pod(&mut runtime, &pod).await.expect_err(name));
            assert!(error.contains(reason), "{name}: {error}");
        }
        assert_eq!(server.crictl(&["pods", "-q"])?, "");
        Ok(())
    })
}

fn a_container_asks_for_what_its_pod_has(server: CriServer) -> Result<()> {
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = mapped_pod(&server, "differs");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let config = container("c", &["true"]);
        let error = create(&mut runtime, &pod_id, &pod, &config).await.expect_err("another user namespace");
        let error = format!("{error:#}");
        assert!(error.contains("user namespace config for sandbox is different from container"), "{error}");
        Ok(())
    })
}

/// As a kubelet sees it after our agent has crashed: nothing of the pod has changed, and more can be started in it.
#[test]
#[ignore = "needs root"]
fn a_pod_with_a_user_namespace_outlives_the_agent() -> Result<()> {
    let mut server = CriServer::start(Implementation::Podwright)?;
    let (pod, pod_id, id) = block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let pod = mapped_pod(&server, "survivor");
        let pod_id = run_pod(&mut runtime, &pod).await?;
        let id = create(&mut runtime, &pod_id, &pod, &mapped("c", "exec sleep 1000")).await?;
        start(&mut runtime, &id).await?;
        Ok((pod, pod_id, id))
    })?;
    server.crash_and_restart()?;
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let answer = exec(&mut runtime, &id, &["cat", "/proc/self/uid_map"]).await?;
        assert!(String::from_utf8_lossy(&answer.stdout).contains("131072"), "{answer:?}");
        let (_, text) =
            run_to_end(&mut runtime, &pod_id, &pod, &mapped("late", "tr -s ' ' < /proc/self/uid_map"))
                .await?;
        assert_eq!(text, " 0 131072 65536\n");
        Ok(())
    })
}
