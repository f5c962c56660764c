//! Images as users bring them: from registries with passwords, from build tools, from files, and off again when the disk fills up.
//! The stories of CRI run on containerd too.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListContainersRequest,
    PullImageRequest, RemoveImageRequest,
};
use e2e::cri_server::{CriServer, Implementation, clients};
use e2e::image::{ImageConfig, Layer, Packing};
use e2e::registry::Registry;
use e2e::requests::{self, run_to_end};
use e2e::story::{Story, web_pod};
use e2e::test_host::{eventually, output_of, program};
use e2e::{Node, TestHost, image};
use tonic::transport::Channel;

e2e::cri_stories! {
    an_image_has_one_id_everywhere,
    removing_an_image_by_one_tag_removes_its_other_tags,
    a_registry_with_a_password_lets_in_who_has_it,
    an_image_built_by_buildah_is_pulled_and_runs,
    every_packing_of_a_layer_and_a_list_of_platforms_is_pulled,
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn an_image_has_one_id_everywhere(server: CriServer) -> Result<()> {
    let registry = Registry::start(&server.host)?;
    registry.push(&server.host, &server.host.path().join("busybox.oci"), "one/id:1")?;
    block_on(async {
        let (mut runtime, mut images) = server.clients().await?;
        let name = registry_name("one/id:1");
        let pulled = pull(&mut images, &name, None).await?;
        let listed = find(&mut images, &name).await?.context("it is there")?;
        assert!(listed.id.starts_with("sha256:"), "{listed:?}");
        assert_eq!(pulled, listed.id);
        let pod = requests::pod(server.host.path(), "one-id");
        let sandbox = requests::run_pod(&mut runtime, &pod).await?;
        let mut container = requests::container("c", &["/bin/sleep", "1000"]);
        container.image.as_mut().context("an image")?.image.clone_from(&pulled);
        let id = requests::create(&mut runtime, &sandbox, &pod, &container).await?;
        assert_eq!(requests::status(&mut runtime, &id).await?.image_id, listed.id);
        let containers = runtime.list_containers(ListContainersRequest::default()).await?.into_inner();
        let ids: Vec<_> = containers.containers.into_iter().map(|container| container.image_id).collect();
        assert_eq!(ids, [listed.id.as_str()]);
        let by_id = find(&mut images, &listed.id).await?.context("found by its id")?;
        assert_eq!(by_id.repo_tags, listed.repo_tags);
        Ok(())
    })
}

fn removing_an_image_by_one_tag_removes_its_other_tags(server: CriServer) -> Result<()> {
    let registry = Registry::start(&server.host)?;
    let layout = server.host.path().join("busybox.oci");
    for tag in ["tags:a", "tags:b"] {
        registry.push(&server.host, &layout, tag)?;
    }
    block_on(async {
        let (_, mut images) = server.clients().await?;
        for tag in ["tags:a", "tags:b"] {
            pull(&mut images, &registry_name(tag), None).await?;
        }
        let image = find(&mut images, &registry_name("tags:a")).await?.context("it is there")?;
        assert!(image.repo_tags.contains(&registry_name("tags:b")), "{:?}", image.repo_tags);
        remove(&mut images, &registry_name("tags:b")).await?;
        for name in [registry_name("tags:a"), image.id] {
            assert!(find(&mut images, &name).await?.is_none(), "{name} is still there");
        }
        remove(&mut images, &registry_name("tags:b")).await.context("removing again is no error")
    })
}

#[test]
#[ignore = "needs root"]
fn the_file_system_of_images_tells_what_they_occupy() -> Result<()> {
    let server = CriServer::start(Implementation::Podwright)?;
    let registry = Registry::start(&server.host)?;
    let layout = server.host.path().join("files.oci");
    let mut layer = Layer::default().directory("files/", 0o755)?;
    for index in 0..100 {
        layer = layer.file(&format!("files/{index}"), 0o644, &vec![index; 20_000])?;
    }
    image::write_layout(&layout, "registry.test/files:1", vec![layer], &ImageConfig::default())?;
    registry.push(&server.host, &layout, "files:1")?;
    block_on(async {
        let (_, mut images) = server.clients().await?;
        let before = usage(&mut images).await?;
        pull(&mut images, &registry_name("files:1"), None).await?;
        let after = usage(&mut images).await?;
        assert_eq!(after.mountpoint, text(&server.host.path().join("root")));
        // 100 files of five blocks each, and what lies around them.
        let (bytes, inodes) = (after.bytes - before.bytes, after.inodes - before.inodes);
        assert!((100 * 20_480..100 * 20_480 + (200 << 10)).contains(&bytes), "{bytes} bytes");
        assert!((101..=112).contains(&inodes), "{inodes} inodes");
        remove(&mut images, &registry_name("files:1")).await?;
        assert_eq!(usage(&mut images).await?, before);
        Ok(())
    })
}

fn a_registry_with_a_password_lets_in_who_has_it(server: CriServer) -> Result<()> {
    let registry = Registry::start_with_password(&server.host)?;
    registry.push(&server.host, &server.host.path().join("busybox.oci"), "secret:1")?;
    let name = registry_name("secret:1");
    block_on(async {
        let (_, mut images) = server.clients().await?;
        let (user, password) = Registry::USER;
        let auth = |password: &str| AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        };
        for wrong in [None, Some(auth("not-it"))] {
            let error = pull(&mut images, &name, wrong).await.expect_err("no password");
            assert!(!format!("{error:?}").contains("not-it"), "{error:?}");
        }
        pull(&mut images, &name, Some(auth(password))).await?;
        Ok(())
    })?;
    let creds = format!("{}:{}", Registry::USER.0, Registry::USER.1);
    server.crictl(&["pull", "--creds", &creds, &name]).map(drop)
}

#[test]
#[ignore = "needs root"]
fn a_pull_without_a_login_uses_the_one_that_the_node_has() -> Result<()> {
    let server = CriServer::start(Implementation::Podwright)?;
    let registry = Registry::start_with_password(&server.host)?;
    registry.push(&server.host, &server.host.path().join("busybox.oci"), "secret:1")?;
    let name = registry_name("secret:1");
    let error = format!("{:#}", server.crictl(&["pull", &name]).expect_err("no login"));
    assert!(error.contains("denies access to 127.0.0.1:5000/secret:1: 401"), "{error}");

    // As after a `docker login` of root: in force at once.
    let file = server.host.path().join("root/kubelet/config.json");
    std::fs::create_dir_all(file.parent().context("a directory")?)?;
    let (user, password) = Registry::USER;
    let auths = |registry: &str| {
        serde_json::json!({ "auths": { registry: { "username": user, "password": password } } }).to_string()
    };
    std::fs::write(&file, auths("other.example"))?;
    server.crictl(&["pull", &name]).expect_err("a login at another registry");
    std::fs::write(&file, auths(Registry::ADDRESS))?;
    server.crictl(&["pull", &name])?;
    // The one with the longest name is tried first, then the others.
    let wrong = serde_json::json!({ "username": user, "password": "not-it" });
    let mut both: serde_json::Value = serde_json::from_str(&auths(Registry::ADDRESS))?;
    both["auths"][format!("{}/secret", Registry::ADDRESS)] = wrong;
    std::fs::write(&file, both.to_string())?;
    server.crictl(&["pull", &name])?;

    // What the request brings wins.
    let error = format!("{:#}", server.crictl(&["pull", "--creds", "pod:not-it", &name]).expect_err("wrong"));
    assert!(error.contains("denies access to 127.0.0.1:5000/secret:1: 401"), "{error}");
    assert!(!error.contains(password), "{error}");
    Ok(())
}

fn an_image_built_by_buildah_is_pulled_and_runs(server: CriServer) -> Result<()> {
    let registry = Registry::start(&server.host)?;
    registry.push(&server.host, &server.host.path().join("busybox.oci"), "base:1")?;
    let context = server.host.path().join("context");
    std::fs::create_dir(&context)?;
    std::fs::write(context.join("hello"), "from a Dockerfile\n")?;
    let text = format!(
        "FROM {}\nCOPY hello /greeting\nRUN chmod 600 /greeting && mkdir /made && ln -s /greeting /made/link && rm /etc/not-executable\n\
         ENV WHO=buildah\nWORKDIR /made\nUSER 33:100\nSTOPSIGNAL SIGQUIT\nUSER 0\nENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"cat link; echo $WHO $PWD; ls /etc/not-executable 2>&1\"]\n",
        registry_name("base:1")
    );
    std::fs::write(context.join("Dockerfile"), text)?;
    let storage = server.host.path().join("buildah");
    let buildah = |arguments: &[&str]| {
        let mut command = server.host.command("buildah");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        output_of(&mut command)
    };
    let context = context.display().to_string();
    // Docker's types, which OCI's only resemble.
    buildah(&[
        "bud",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--tls-verify=false",
        "-t",
        "built",
        &context,
    ])?;
    let to = format!("docker://{}", registry_name("built:1"));
    buildah(&["push", "--tls-verify=false", "built", &to])?;
    buildah(&["rmi", "-af"])?;
    block_on(async {
        let (mut runtime, mut images) = server.clients().await?;
        pull(&mut images, &registry_name("built:1"), None).await?;
        let pod = requests::pod(server.host.path(), "built");
        let sandbox = requests::run_pod(&mut runtime, &pod).await?;
        let mut container = requests::container("c", &[]);
        container.image.as_mut().context("an image")?.image = registry_name("built:1");
        let ended = run_to_end(&mut runtime, &sandbox, &pod, &container).await?;
        let log = requests::log_of(&pod, &container)?;
        assert!(log.starts_with("from a Dockerfile\nbuildah /made\n"), "{log}");
        assert!(
            log.contains("No such file") && ended.0.exit_code != 0,
            "what a later layer removed is gone: {log}"
        );
        Ok(())
    })
}

fn every_packing_of_a_layer_and_a_list_of_platforms_is_pulled(server: CriServer) -> Result<()> {
    let registry = Registry::start(&server.host)?;
    let layout = server.host.path().join("packed.oci");
    let mut layers = vec![(image::busybox_layer()?.finish()?, Packing::Gzip)];
    for (name, packing) in [("plain", Packing::Plain), ("gzip", Packing::Gzip), ("zstd", Packing::Zstd)] {
        let layer = Layer::default().file(name, 0o644, format!("{name}\n").as_bytes())?;
        layers.push((layer.finish()?, packing));
    }
    image::write_layout_of_tars(&layout, "registry.test/packed:1", layers, &image::busybox_config())?;
    image::put_index_before(&layout)?;
    registry.push(&server.host, &layout, "packed:1")?;
    block_on(async {
        let (mut runtime, mut images) = server.clients().await?;
        pull(&mut images, &registry_name("packed:1"), None).await?;
        let pod = requests::pod(server.host.path(), "packed");
        let sandbox = requests::run_pod(&mut runtime, &pod).await?;
        let mut container = requests::container("c", &["/bin/cat", "/plain", "/gzip", "/zstd"]);
        container.image.as_mut().context("an image")?.image = registry_name("packed:1");
        run_to_end(&mut runtime, &sandbox, &pod, &container).await?;
        assert_eq!(requests::log_of(&pod, &container)?, "plain\ngzip\nzstd\n");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn an_archive_of_docker_save_is_imported_compressed_or_not() -> Result<()> {
    let host = TestHost::new()?;
    let layout = image::busybox(host.path())?;
    let archive = host.path().join("busybox.tar");
    let from = format!("oci:{}", layout.display());
    let to = format!("docker-archive:{}:saved.example/busybox:1", archive.display());
    host.run("skopeo", &["--insecure-policy", "copy", &from, &to])?;
    output_of(program("gzip").arg("-k").arg(&archive))?;
    let node = Node::runtime(&host)?;
    for (path, name) in
        [(&archive, None), (&host.path().join("busybox.tar.gz"), Some("again.example/busybox:2"))]
    {
        let path = path.display().to_string();
        let mut arguments = vec!["image", "import", &path];
        arguments.extend(name.into_iter().flat_map(|name| ["--name", name]));
        let told = output_of(&mut node.command(&host, &arguments))?;
        assert!(told.contains(name.unwrap_or("saved.example/busybox:1")), "{told}");
    }
    block_on(async {
        let (_, mut images) = clients(&node.socket).await?;
        let image = find(&mut images, "saved.example/busybox:1").await?.context("it is there")?;
        assert_eq!(image.repo_tags, ["again.example/busybox:2", "saved.example/busybox:1"]);
        Ok(())
    })?;
    node.reset(&host);
    Ok(())
}

/// It has the node's files before it can be asked.
#[test]
#[ignore = "needs root"]
fn orders_wait_for_an_agent_that_starts() -> Result<()> {
    let host = TestHost::new()?;
    let mut node = Node::runtime(&host)?;
    node.crash();
    let lock = node.state().join("agent.lock").display().to_string();
    let _starting = host.spawn("starting", host.command("flock").args([&lock, "sleep", "2"]))?;
    eventually("the files are taken", || host.run("flock", &["-n", &lock, "true"]).err())?;
    // By a process that lives.
    std::fs::write(&lock, "1\n")?;
    output_of(&mut node.command(&host, &["image", "ls"]))?;
    node.restart(&host)?;
    node.reset(&host);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pull_cut_off_by_kill_9_goes_on_where_it_was() -> Result<()> {
    let host = TestHost::new()?;
    let registry = Registry::start(&host)?;
    let layout = host.path().join("big.oci");
    let mut noise = vec![0; 24 << 20];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
    let layer = Layer::default().file("noise", 0o644, &noise)?.finish()?;
    let layers = vec![(layer, Packing::Plain)];
    image::write_layout_of_tars(&layout, "registry.test/big:1", layers, &ImageConfig::default())?;
    registry.push(&host, &layout, "big:1")?;
    let mut node = Node::runtime(&host)?;
    let name = registry_name("big:1");
    let beginnings = host.path().join("root/ingest/partial");

    // Slow enough to be caught in the middle.
    host.run(
        "tc",
        &["qdisc", "add", "dev", "lo", "root", "tbf", "rate", "40mbit", "burst", "256k", "latency", "1s"],
    )?;
    let mut pulling = node.command(&host, &["image", "pull", &name]).spawn()?;
    let partial = eventually("a part of the layer is there", || {
        let files = std::fs::read_dir(&beginnings).ok()?.flatten().map(|entry| entry.path());
        files.into_iter().find(|path| std::fs::metadata(path).is_ok_and(|meta| meta.len() > 1 << 20))
    })?;
    node.crash();
    pulling.wait()?;
    host.run("tc", &["qdisc", "del", "dev", "lo", "root"])?;
    let before = std::fs::metadata(&partial)?;
    assert!(before.len() < 24 << 20, "it was caught in the middle");
    node.restart(&host)?;
    output_of(&mut node.command(&host, &["image", "pull", &name]))?;
    let after = std::fs::metadata(
        host.path().join("root/blobs/sha256").join(partial.file_name().context("a digest")?),
    )?;
    assert_eq!(after.ino(), before.ino(), "the file was continued, not written anew");
    assert!(!partial.exists());
    let listed = std::fs::read_dir(host.path().join("root/ingest"))?.count();
    assert_eq!(listed, 1, "nothing but the empty directory of partial blobs");
    node.reset(&host);
    Ok(())
}

/// What a machine without a registry has; a file that is wrong is told of, and stops neither the others nor the node.
#[test]
#[ignore = "needs root"]
fn archives_beside_the_node_are_there_before_the_first_pod() -> Result<()> {
    let host = TestHost::new()?;
    let layout = image::busybox(host.path())?;
    let images = host.path().join("root/images");
    std::fs::create_dir_all(&images)?;
    let archive = images.join("b.tar.gz").display().to_string();
    output_of(program("tar").args(["-C", &layout.display().to_string(), "-czf", &archive, "."]))?;
    std::fs::write(images.join("a.tar"), "no archive")?;
    std::fs::write(images.join("README"), "")?;
    let mut node = Node::runtime(&host)?;
    let list = |node: &Node| {
        eventually("the image is there", || {
            let listed = output_of(&mut node.command(&host, &["image", "ls"])).ok()?;
            listed.contains("registry.test/busybox").then_some(listed)
        })
    };
    let listed = list(&node)?;
    let log = node.log();
    for expect in ["a.tar", "images were not imported", "README", "no archive of images", "imported images"] {
        assert!(log.contains(expect), "{expect}: {log}");
    }
    // As after an upgrade: the same again changes nothing.
    node.crash();
    node.restart(&host)?;
    assert_eq!(list(&node)?, listed);
    node.reset(&host);
    assert!(images.join("b.tar.gz").exists(), "the files are the user's");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_longest_unused_images_go_when_the_disk_fills_up() -> Result<()> {
    let host = TestHost::new()?;
    let root = host.path().join("root");
    std::fs::create_dir(&root)?;
    host.run("mount", &["-t", "tmpfs", "-o", "size=512m", "tmpfs", &text(&root)])?;
    let mut story = Story::start_on(host, &[], &[])?;
    let layout = story.host.path().join("used.oci");
    image::write_layout(
        &layout,
        "registry.test/used:1",
        vec![image::busybox_layer()?],
        &ImageConfig::default(),
    )?;
    output_of(
        &mut story
            .node
            .as_ref()
            .context("a node")?
            .command(&story.host, &["image", "import", &text(&layout)]),
    )?;
    story.write("pod.yaml", &web_pod("user", "").replace("IMAGE", "registry.test/used:1"))?;
    story.ready("user")?;
    for (name, flags) in [("unused", [].as_slice()), ("pinned", ["--pin"].as_slice())] {
        let layout = story.host.path().join(name);
        let layer = Layer::default().file("content", 0o644, &vec![b'x'; 30 << 20])?.finish()?;
        let tagged = format!("registry.test/{name}:1");
        let layers = vec![
            (layer, Packing::Plain),
            (Layer::default().file(name, 0o644, b"")?.finish()?, Packing::Plain),
        ];
        // Of the pinned one's 60 MB everything is shared but a file: removing it would free nothing.
        image::write_layout_of_tars(&layout, &tagged, layers, &ImageConfig::default())?;
        let path = text(&layout);
        let arguments = [["image", "import", &path].as_slice(), flags].concat();
        output_of(&mut story.node.as_ref().context("a node")?.command(&story.host, &arguments))?;
    }
    let images = |story: &Story| -> Result<String> {
        output_of(&mut story.node.as_ref().context("a node")?.command(&story.host, &["image", "ls"]))
    };
    let fill = |story: &Story, free_percent: u64| -> Result<()> {
        let script = format!(
            "free=$(stat -f -c %f {root}); size=$(stat -f -c %b {root}); n=$(( (free - size * {free_percent} / 100) * $(stat -f -c %S {root}) )); \
             old=$(stat -c %s {root}/filler 2>/dev/null || echo 0); fallocate -l $(( old + n )) {root}/filler",
            root = root.display()
        );
        story.host.run("sh", &["-c", &script]).map(drop)
    };

    // Below the threshold nothing goes. Each start begins with a round.
    fill(&story, 20)?;
    story.node().crash();
    story.restart()?;
    story.ready("user")?;
    assert!(images(&story)?.contains("registry.test/unused"));

    // Above it, what nobody uses goes; that frees too little here, and is told.
    fill(&story, 10)?;
    story.node().crash();
    story.restart()?;
    let failed = eventually("the round is over", || {
        let status = story.status().ok()?;
        let mut items = status["items"].as_array()?.iter();
        items.find(|item| item["kind"] == "Event" && item["reason"] == "FreeDiskSpaceFailed").cloned()
    })?;
    assert_eq!(failed["involvedObject"]["kind"], "Node", "{failed}");
    assert!(
        failed["message"].as_str().is_some_and(|message| message.contains("bytes eligible to free")),
        "{failed}"
    );
    let left = images(&story)?;
    assert!(!left.contains("registry.test/unused"), "{left}");
    for kept in ["registry.test/pinned", "registry.test/used"] {
        assert!(left.contains(kept), "{left}");
    }
    story.ready("user").map(drop)
}

fn registry_name(repository: &str) -> String {
    format!("{}/{repository}", Registry::ADDRESS)
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() })
}

async fn pull(
    images: &mut ImageServiceClient<Channel>,
    name: &str,
    auth: Option<AuthConfig>,
) -> Result<String> {
    let request = PullImageRequest { image: spec(name), auth, sandbox_config: None };
    Ok(images.pull_image(request).await.context("PullImage")?.into_inner().image_ref)
}

async fn find(images: &mut ImageServiceClient<Channel>, name: &str) -> Result<Option<Image>> {
    let request = ImageStatusRequest { image: spec(name), verbose: false };
    Ok(images.image_status(request).await.context("ImageStatus")?.into_inner().image)
}

async fn remove(images: &mut ImageServiceClient<Channel>, name: &str) -> Result<()> {
    images.remove_image(RemoveImageRequest { image: spec(name) }).await.context("RemoveImage").map(drop)
}

#[derive(Debug, PartialEq, Eq)]
struct Usage {
    mountpoint: String,
    bytes: u64,
    inodes: u64,
}

async fn usage(images: &mut ImageServiceClient<Channel>) -> Result<Usage> {
    let info = images.image_fs_info(ImageFsInfoRequest {}).await.context("ImageFsInfo")?.into_inner();
    let one = info.image_filesystems.into_iter().next().context("a file system")?;
    Ok(Usage {
        mountpoint: one.fs_id.context("an id")?.mountpoint,
        bytes: one.used_bytes.context("bytes")?.value,
        inodes: one.inodes_used.context("inodes")?.value,
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
