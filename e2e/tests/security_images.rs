//! Images of an enemy, each story named after the attack. What unpacking alone decides is tested beside it, in the runtime crate.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use e2e::cri_server::clients;
use e2e::image::{self, ImageConfig, Layer};
use e2e::registry::Registry;
use e2e::requests::{self, run_to_end};
use e2e::test_host::{output_of, text_of};
use e2e::{Node, TestHost};

const HOSTILE: &str = "registry.test/hostile:1";

/// Runs `look` in a container of a busybox image with this configuration; gives its log and what the runtime says about it.
fn look_into(config: ImageConfig, look: &str) -> Result<(String, cri::v1::ContainerStatus)> {
    let host = TestHost::new()?;
    let layout = host.path().join("hostile.oci");
    image::write_layout(&layout, HOSTILE, vec![image::busybox_layer()?], &config)?;
    let node = Node::runtime(&host)?;
    node.import(&host, &layout)?;
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (mut runtime, _) = clients(&node.socket).await?;
        let pod = requests::pod(host.path(), "hostile");
        let sandbox = requests::run_pod(&mut runtime, &pod).await?;
        let mut container = requests::container("c", &["/bin/sh", "-c", look]);
        container.image.as_mut().context("an image")?.image = HOSTILE.to_owned();
        let (status, _) = run_to_end(&mut runtime, &sandbox, &pod, &container).await?;
        Ok((requests::log_of(&pod, &container)?, status))
    });
    node.reset(&host);
    outcome
}

#[test]
#[ignore = "needs root"]
fn cve_2022_23648_a_volume_path_brings_nothing_of_the_host() -> Result<()> {
    let secret = tempfile::Builder::new().prefix("pw-secret-").tempdir_in("/var/tmp")?;
    std::fs::write(secret.path().join("host-only"), "secret")?;
    let path = format!("/../../../../../../../../..{}", secret.path().display());
    let config = ImageConfig { volumes: vec![path, "/etc/../../..".to_owned()], ..image::busybox_config() };
    let (log, _) = look_into(config, "find / -name host-only 2>/dev/null; echo looked")?;
    assert_eq!(log, "looked\n");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2024_40635_a_user_beyond_31_bits_does_not_become_root() -> Result<()> {
    for user in ["4294967296", "2147483648:0", "-1", "18446744073709551616:0"] {
        let config = ImageConfig { user: user.to_owned(), ..image::busybox_config() };
        let error = look_into(config, "id -u").err().with_context(|| format!("USER {user} was taken"))?;
        assert!(!format!("{error:?}").contains("panicked"), "{error:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2026_53488_labels_of_an_image_control_nothing() -> Result<()> {
    let keys = [
        "io.kubernetes.cri-o.Devices",
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
        "io.containerd.runc.v2.group",
        "io.kubernetes.pod.uid",
        "run.oci.handler",
        "org.systemd.property.DevicePolicy",
        "podwright.built-in",
    ];
    let labels = keys.iter().map(|key| ((*key).to_owned(), "/dev/sda".to_owned())).collect();
    let look = "grep CapEff /proc/self/status; ls /dev";
    let (expect, plain) = look_into(image::busybox_config(), look)?;
    let (log, status) = look_into(ImageConfig { labels, ..image::busybox_config() }, look)?;
    assert_eq!(log, expect);
    assert_eq!((status.labels, status.annotations), (plain.labels, plain.annotations));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2024_25621_what_lies_on_disk_is_closed_to_other_users() -> Result<()> {
    let host = TestHost::new()?;
    let layout = image::busybox(host.path())?;
    let node = Node::runtime(&host)?;
    node.import(&host, &layout)?;
    for directory in ["blobs", "snapshots", "ingest"] {
        let mode = std::fs::metadata(host.path().join("root").join(directory))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{directory}");
    }
    node.reset(&host);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn ten_gigabytes_of_zeros_do_not_fill_the_disk_and_leave_nothing() -> Result<()> {
    let host = TestHost::new()?;
    let root = host.path().join("root");
    std::fs::create_dir(&root)?;
    let path = root.display().to_string();
    host.run("mount", &["-t", "tmpfs", "-o", "size=200m", "tmpfs", &path])?;
    let node = Node::runtime(&host)?;
    let used = || {
        host.run("du", &["-s", &path])
            .map(|text| text.split_whitespace().next().unwrap_or_default().to_owned())
    };
    let before = used()?;

    // One frame of zeros, again and again: less than a megabyte becomes ten gigabytes.
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros")?;
    header.set_size(10 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let mut layer = zstd::encode_all(header.as_bytes().as_slice(), 3)?;
    let frame = zstd::encode_all(vec![0; 64 << 20].as_slice(), 3)?;
    for _ in 0..161 {
        layer.write_all(&frame)?;
    }
    assert!(layer.len() < 1 << 20, "{} bytes", layer.len());
    let layout = host.path().join("bomb.oci");
    let blobs = vec![(layer, image::Packing::Plain)];
    image::write_layout_of_tars(&layout, HOSTILE, blobs, &ImageConfig::default())?;
    let refused = node.command(&host, &["image", "import", &layout.display().to_string()]).output()?;
    let told = text_of(&refused);
    assert!(!refused.status.success() && told.contains("no space left for images"), "{told}");
    assert_eq!(used()?, before, "nothing of it is left");

    // And the node goes on.
    let layout = image::busybox(host.path())?;
    node.import(&host, &layout)?;
    node.reset(&host);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_password_is_in_no_log_and_no_file() -> Result<()> {
    let host = TestHost::new()?;
    let registry = Registry::start_with_password(&host)?;
    let layout = image::busybox(host.path())?;
    registry.push(&host, &layout, "secret:1")?;
    let manifests = host.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let node = Node::run_with(&host, &manifests, &["--log-level", "trace"])?;
    let (user, password) = Registry::USER;
    let name = format!("{}/secret:1", Registry::ADDRESS);
    let endpoint = format!("unix://{}", node.socket.display());
    let mut crictl = host.command(e2e::parts::tool("crictl"));
    let creds = format!("{user}:{password}");
    output_of(crictl.args(["--runtime-endpoint", &endpoint, "pull", "--creds", &creds, &name]))?;
    let log = node.log();
    assert!(log.contains("secret:1") && log.contains("TRACE"), "it was logged at all");
    let encoded = "cG9kOnMzY3IzdC13MHJk";
    for secret in [password, encoded] {
        assert!(
            !log.contains(secret),
            "{}",
            log.lines().find(|line| line.contains(secret)).unwrap_or_default()
        );
        for directory in ["root", "state"] {
            let path = host.path().join(directory).display().to_string();
            let found = host.command("grep").args(["-rIl", secret, &path]).output()?;
            assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        }
    }
    node.reset(&host);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_layer_that_replaces_dev_and_etc_by_links_is_harmless() -> Result<()> {
    let host = TestHost::new()?;
    let victim = host.path().join("victim");
    std::fs::create_dir(&victim)?;
    let target = victim.display().to_string();
    let layer = image::busybox_layer()?
        .symlink("dev", &target)?
        .symlink("proc", &target)?
        .symlink("escape", &target)?
        .file("escape/written", 0o4755, b"evil")?
        .file("../../../../../../tmp/pw-climbed", 0o644, b"evil")?;
    let layout = host.path().join("hostile.oci");
    image::write_layout(&layout, HOSTILE, vec![Layer::default(), layer], &image::busybox_config())?;
    let node = Node::runtime(&host)?;
    let imported = node.import(&host, &layout);
    assert_eq!(std::fs::read_dir(&victim)?.count(), 0, "{imported:?}");
    assert!(!std::path::Path::new("/tmp/pw-climbed").exists());
    node.reset(&host);
    Ok(())
}
