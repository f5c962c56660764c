use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::fixture::{Packing, TarBuilder, TestImage};
use super::*;

#[tokio::test]
async fn an_imported_layout_is_listed_unpacked_and_found_again_after_reopening() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = two_layers();
    image.write_layout(&temp.path().join("layout"), Some("example.org/app:v1"));
    let store = open(temp.path()).await;
    let imported = store
        .import(&temp.path().join("layout"), None, Retention::Collectable, |_| ())
        .await
        .expect("import");
    assert_eq!(imported[0].id, image.id);
    assert_eq!(imported[0].repo_tags, ["example.org/app:v1"]);
    let lower = store.snapshot(&imported[0]).expect("snapshot").lower;
    assert_eq!(fs::read_to_string(lower[1].join("bin/hello")).expect("read"), "hello");
    assert_eq!(fs::read_to_string(lower[0].join("etc/motd")).expect("read"), "hi");
    assert!(store.usage().used_bytes > 0);
    drop(store);

    let store = open(temp.path()).await;
    let short = image.id.trim_start_matches("sha256:")[..12].to_owned();
    for name in ["example.org/app:v1", &image.id, &short] {
        assert_eq!(store.get(name).expect(name).id, image.id);
    }
    assert!(store.get("example.org/app").is_none());
    assert_eq!(store.snapshot(&store.list()[0]).expect("snapshot").lower, lower);
}

#[tokio::test]
async fn every_compression_and_a_tar_of_the_layout_import_the_same() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let temp = tempfile::tempdir().expect("temp dir");
        let image = TestImage::new(&[(TarBuilder::default().file("a", &[7; 300_000]).finish(), packing)]);
        image.write_layout(&temp.path().join("layout"), None);
        let mut archive = tar::Builder::new(fs::File::create(temp.path().join("image.tar")).expect("create"));
        archive.append_dir_all(".", temp.path().join("layout")).expect("tar");
        archive.finish().expect("tar");
        let store = open(temp.path()).await;
        let unnamed = store
            .import(&temp.path().join("image.tar"), None, Retention::Collectable, |_| ())
            .await
            .expect_err("no name");
        assert!(unnamed.to_string().contains("--name"), "{unnamed}");
        let images = store
            .import(&temp.path().join("image.tar"), Some("app"), Retention::Collectable, |_| ())
            .await
            .expect("import");
        assert_eq!(images[0].repo_tags, ["docker.io/library/app:latest"]);
        let lower = store.snapshot(&images[0]).expect("snapshot").lower;
        assert_eq!(fs::read(lower[0].join("a")).expect("read"), [7; 300_000]);
        assert_nothing_comes_in(temp.path());
    }
}

#[tokio::test]
async fn removing_one_tag_removes_the_image_and_frees_what_nothing_shares() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (one, two) = (two_layers(), TestImage::new(&[(first_layer(), Packing::Gzip)]));
    one.write_layout(&temp.path().join("one"), None);
    two.write_layout(&temp.path().join("two"), None);
    let store = open(temp.path()).await;
    for name in ["one:a", "one:b"] {
        store
            .import(&temp.path().join("one"), Some(name), Retention::Collectable, |_| ())
            .await
            .expect("import");
    }
    store
        .import(&temp.path().join("two"), Some("two"), Retention::Collectable, |_| ())
        .await
        .expect("import");
    assert_eq!(store.get("one:a").expect("there").repo_tags.len(), 2);
    let lower = store.snapshot(&store.get("one:a").expect("there")).expect("snapshot").lower;
    assert!(store.remove("one:b").await.expect("remove"));
    assert!(store.get("one:a").is_none() && store.get(&one.id).is_none());
    assert!(!lower[0].exists(), "its own layer is gone");
    assert!(lower[1].exists(), "the shared layer stays");
    assert!(!store.remove("one:b").await.expect("idempotent"));
    assert!(store.remove(&two.id).await.expect("remove"));
    assert_eq!(store.usage().used_bytes, 0);
    assert_eq!(fs::read_dir(temp.path().join("root/blobs/sha256")).expect("list").count(), 0);
}

#[tokio::test]
async fn what_the_store_says_that_it_occupies_is_what_is_on_the_disk() {
    let temp = tempfile::tempdir().expect("temp dir");
    let layer = TarBuilder::default()
        .directory("bin/")
        .file("bin/a", &[1; 300_001])
        .file("bin/empty", b"")
        .hard_link("bin/b", "bin/a")
        .symlink("bin/c", "a")
        .symlink("bin/long", &"l".repeat(90))
        .directory("bin/")
        .file("implied/x", &[2; 5000]);
    let image = TestImage::new(&[(layer.finish(), Packing::Plain), (first_layer(), Packing::Zstd)]);
    image.write_layout(&temp.path().join("layout"), Some("example.org/app:v1"));
    let store = open(temp.path()).await;
    store.import(&temp.path().join("layout"), None, Retention::Collectable, |_| ()).await.expect("import");
    let (mut bytes, mut inodes) = (0, std::collections::BTreeSet::new());
    let mut todo = vec![temp.path().join("root/blobs/sha256"), temp.path().join("root/snapshots")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).expect("list") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            if inodes.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    let usage = store.usage();
    assert_eq!(usage.inodes, inodes.len() as u64);
    assert!(usage.used_bytes.abs_diff(bytes) < 64 << 10, "{} and {bytes}", usage.used_bytes);
}

#[tokio::test]
async fn an_archive_of_docker_save_gives_the_image_its_own_id_and_names() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = two_layers();
    let [first, second] = [&image.layers[0], &image.layers[1]];
    let listed = serde_json::json!([{
        "Config": format!("{}.json", &image.id[7..]),
        "RepoTags": ["app:v1", "example.org/other:2"],
        "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    let archive = TarBuilder::default()
        .file(&format!("{}.json", &image.id[7..]), &image.blobs[&image.id])
        .directory("one/")
        .file("one/VERSION", b"1.0")
        .file("one/layer.tar", &image.blobs[first])
        .file("shared.tar", &image.blobs[second])
        .symlink("two/layer.tar", "../shared.tar")
        .file("etc/passwd", b"nothing of an image")
        .file("manifest.json", listed.to_string().as_bytes())
        .finish();
    for (name, packing) in
        [("a.tar", Packing::Plain), ("a.tar.gz", Packing::Gzip), ("a.tar.zst", Packing::Zstd)]
    {
        let path = temp.path().join(name);
        fs::write(&path, packing.pack(&archive)).expect("write");
        let store = open(&temp.path().join(format!("{name}.root"))).await;
        let images = store.import(&path, None, Retention::Pinned, |_| ()).await.expect(name);
        assert_eq!((images.len(), &images[0].id, images[0].pinned), (1, &image.id, true));
        assert_eq!(images[0].repo_tags, ["docker.io/library/app:v1", "example.org/other:2"]);
        let lower = store.snapshot(&images[0]).expect("snapshot").lower;
        assert_eq!(fs::read_to_string(lower[0].join("etc/motd")).expect("read"), "hi");
        assert_nothing_comes_in(&temp.path().join(format!("{name}.root")));
        drop(store);
        let store = open(&temp.path().join(format!("{name}.root"))).await;
        assert!(store.list()[0].pinned, "remembered");
    }
    let xz = temp.path().join("a.tar.xz");
    fs::write(&xz, b"\xfd7zXZ\0...").expect("write");
    let store = open(temp.path()).await;
    let error = store.import(&xz, None, Retention::Collectable, |_| ()).await.expect_err("xz").to_string();
    assert!(error.contains("xz -d"), "{error}");
}

#[tokio::test]
async fn cve_2023_25153_a_document_of_any_size_is_not_read_into_memory() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = two_layers();
    let store = open(temp.path()).await;
    let huge = vec![b' '; 5 << 20];
    for document in ["index.json", "manifest.json"] {
        let path = temp.path().join(format!("{document}.tar"));
        fs::write(&path, TarBuilder::default().file(document, &huge).finish()).expect("write");
        let error = store.import(&path, None, Retention::Collectable, |_| ()).await.expect_err(document);
        assert!(matches!(error, ImageError::TooLarge { .. }), "{document}: {error}");
    }
    // The configuration by its descriptor, and by what lies there.
    let layout = temp.path().join("layout");
    image.write_layout(&layout, Some("example.org/app:v1"));
    fs::write(layout.join("blobs/sha256").join(&image.id[7..]), &huge).expect("write");
    let error = store.import(&layout, None, Retention::Collectable, |_| ()).await.expect_err("config");
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    assert_nothing_comes_in(temp.path());
}

#[tokio::test]
async fn layers_in_use_outlive_their_image_until_nobody_holds_them() {
    let temp = tempfile::tempdir().expect("temp dir");
    two_layers().write_layout(&temp.path().join("layout"), None);
    let store = open(temp.path()).await;
    let image = store
        .import(&temp.path().join("layout"), Some("app"), Retention::Collectable, |_| ())
        .await
        .expect("import")
        .remove(0);
    let Snapshot { lower, hold } = store.snapshot(&image).expect("snapshot");
    store.remove("app").await.expect("remove");
    assert!(store.list().is_empty() && lower.iter().all(|path| path.exists()));
    // As after a restart: held by what the container's record says.
    let again = store.hold(&lower);
    drop(hold);
    store.collect().await.expect("collect");
    assert!(lower.iter().all(|path| path.exists()));
    drop(again);
    store.collect().await.expect("collect");
    assert!(lower.iter().all(|path| !path.exists()));
    // And what was deleted can come again.
    let image = store
        .import(&temp.path().join("layout"), Some("app"), Retention::Collectable, |_| ())
        .await
        .expect("import")
        .remove(0);
    assert_eq!(store.snapshot(&image).expect("snapshot").lower, lower);
    assert!(lower.iter().all(|path| path.exists()));
}

#[tokio::test]
async fn a_damaged_layout_is_refused_and_leaves_nothing() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = two_layers();
    let layout = temp.path().join("layout");
    let store = open(temp.path()).await;
    let layer = layout.join("blobs/sha256").join(&image.layers[0][7..]);
    for damage in ["changed", "shorter", "longer", "missing"] {
        image.write_layout(&layout, Some("example.org/app:v1"));
        let mut bytes = fs::read(&layer).expect("read");
        match damage {
            "changed" => *bytes.last_mut().expect("not empty") ^= 1,
            "shorter" => bytes.truncate(bytes.len() / 2),
            _ => bytes.push(0),
        }
        fs::write(&layer, bytes).expect("write");
        if damage == "missing" {
            fs::remove_file(&layer).expect("remove");
        }
        let error = store.import(&layout, None, Retention::Collectable, |_| ()).await.expect_err(damage);
        match damage {
            "missing" => assert!(matches!(error, ImageError::Malformed { .. }), "{error}"),
            _ => assert!(matches!(error, ImageError::DigestMismatch { .. }), "{damage}: {error}"),
        }
        assert!(store.list().is_empty());
        assert_nothing_comes_in(temp.path());
    }
}

#[tokio::test]
async fn leftovers_of_a_killed_agent_are_deleted_and_an_open_store_is_locked() {
    let temp = tempfile::tempdir().expect("temp dir");
    fs::create_dir_all(temp.path().join("root/ingest/new-x/0/fs/deep")).expect("mkdir");
    let store = open(temp.path()).await;
    assert_nothing_comes_in(temp.path());
    let second = ImageStore::open(&temp.path().join("root"), Path::new("/nonexistent")).await;
    assert!(matches!(second.err(), Some(ImageError::InUse { .. })));
    drop(store);
}

#[tokio::test]
async fn an_image_whose_layer_vanished_is_left_out_and_can_be_imported_again() {
    let temp = tempfile::tempdir().expect("temp dir");
    let layout = temp.path().join("layout");
    two_layers().write_layout(&layout, Some("example.org/app:v1"));
    let store = open(temp.path()).await;
    let image = store.import(&layout, None, Retention::Collectable, |_| ()).await.expect("import").remove(0);
    let lower = store.snapshot(&image).expect("snapshot").lower;
    drop(store);
    fs::remove_dir_all(lower[0].parent().expect("parent")).expect("remove");
    let store = open(temp.path()).await;
    assert!(store.list().is_empty());
    store.import(&layout, None, Retention::Collectable, |_| ()).await.expect("import");
    assert!(lower[0].join("etc/motd").exists() && store.list().len() == 1);
}

#[tokio::test]
async fn a_built_in_image_is_made_once_and_again_when_its_content_changes() {
    let temp = tempfile::tempdir().expect("temp dir");
    let store = open(temp.path()).await;
    let binary = temp.path().join("binary");
    fs::write(&binary, vec![1; 1_000_000]).expect("write");
    let files = || {
        let file = |path: &str, mode, content| BuiltInFile { path: path.to_owned(), mode, content };
        vec![
            file("/bin/app", 0o755, BuiltInContent::HostFile(binary.clone())),
            file("/etc/hostname", 0o644, BuiltInContent::Bytes(b"x".to_vec())),
            file("/tmp", 0o1777, BuiltInContent::Directory),
            file("/bin/sh", 0o777, BuiltInContent::Symlink("app".to_owned())),
        ]
    };
    let mut config = ImageConfig::default();
    config.set_entrypoint(Some(vec!["/bin/app".to_owned()]));
    let name = "podwright.local/demo:1";
    let image = store.import_built_in(name, files(), config.clone()).await.expect("built");
    assert_eq!(
        image.config.config().as_ref().and_then(|c| c.entrypoint().clone()),
        Some(vec!["/bin/app".to_owned()])
    );
    let lower = store.snapshot(&image).expect("snapshot").lower;
    assert_eq!(fs::read(lower[0].join("bin/sh")).expect("read").len(), 1_000_000);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(lower[0].join("tmp")).expect("stat").permissions().mode() & 0o7777, 0o1777);
    let again = store.import_built_in(name, files(), config.clone()).await.expect("built");
    assert!(Arc::ptr_eq(&image, &again), "nothing was done");
    fs::write(&binary, b"new").expect("write");
    let new = store.import_built_in(name, files(), config).await.expect("built");
    assert_ne!(new.id, image.id);
    assert_nothing_comes_in(temp.path());
}

async fn open(temp: &Path) -> ImageStore {
    ImageStore::open(&temp.join("root"), Path::new("/nonexistent")).await.expect("open")
}

fn first_layer() -> Vec<u8> {
    TarBuilder::default().directory("bin/").file("bin/hello", b"hello").finish()
}

fn two_layers() -> TestImage {
    let second = TarBuilder::default().directory("etc/").file("etc/motd", b"hi").finish();
    TestImage::new(&[(first_layer(), Packing::Gzip), (second, Packing::Zstd)])
}

fn assert_nothing_comes_in(temp: &Path) {
    let names = fs::read_dir(temp.join("root/ingest")).expect("list");
    let names: Vec<_> = names.map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names, ["partial"]);
}
