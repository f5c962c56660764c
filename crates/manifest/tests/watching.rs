//! Manifests in files that change: what is read, what is kept, what is heard of.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manifest::{Loaded, ObjectKey, load, watch};
use tokio::sync::watch::Receiver;

#[test]
fn the_first_of_two_objects_with_one_name_counts_and_the_other_is_told() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", &format!("{}---\n{}", pod("web", "a:1"), pod("web", "a:2")));
    put(dir.path(), "b.yaml", &pod("web", "a:3"));
    put(dir.path(), "c.yaml", &map("web", "x"));
    let loaded = load(&[dir.path().to_owned()]);
    assert_eq!(image(&loaded, "web").as_deref(), Some("a:1"));
    let problems = texts(&loaded);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].ends_with(
        "a.yaml document 2: field metadata.name: Pod default/web is also in document 1, which counts"
    ));
    assert!(
        problems[1].contains("b.yaml document 1: field metadata.name: Pod default/web is also in /"),
        "{problems:?}"
    );
    assert_eq!(loaded.objects.config_maps.len(), 1, "another kind is another object");
}

#[test]
fn a_directory_gives_its_manifests_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for name in [".hidden.yaml", "x.yaml~", "x.yaml.swp", "#x.yaml#", "notes.txt", "4913"] {
        put(dir.path(), name, "not: [a manifest");
    }
    fs::create_dir(dir.path().join("deeper.yaml")).unwrap();
    put(dir.path(), "a.yml", &pod("a", "a:1"));
    put(dir.path(), "b.json", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}"#);
    let file = dir.path().join("a.yml");
    let loaded = load(&[dir.path().to_owned(), file]);
    assert_eq!(texts(&loaded), Vec::<String>::new(), "a file reached twice is read once");
    assert_eq!((loaded.objects.pods.len(), loaded.objects.config_maps.len()), (1, 1));
}

#[test]
fn files_that_cannot_be_manifests_are_told_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("binary.yaml"), [0xff, 0xfe, 0]).unwrap();
    let huge = fs::File::create(dir.path().join("huge.yaml")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let loaded = load(&[dir.path().to_owned(), PathBuf::from("/dev/zero"), PathBuf::from("/no/such/file")]);
    let problems = texts(&loaded);
    assert_eq!(problems.len(), 4, "{problems:?}");
    for (problem, end) in problems.iter().zip([
        "/dev/zero: cannot be read: it is not a regular file",
        "/no/such/file: cannot be read: No such file or directory (os error 2)",
        "binary.yaml: cannot be read: it is not UTF-8 text",
        "huge.yaml: cannot be read: it is larger than 16 MiB",
    ]) {
        assert!(problem.ends_with(end), "{problem}");
    }
}

#[tokio::test]
async fn a_path_that_does_not_exist_is_an_error_that_names_it() {
    let error = watch(vec!["/no/such/dir".into()]).expect_err("it does not exist");
    assert_eq!(error.to_string(), "read manifests at /no/such/dir");
}

#[tokio::test]
async fn files_added_replaced_and_removed_take_effect() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = watch(vec![dir.path().to_owned()]).unwrap();
    assert_eq!(*seen.borrow_and_update(), Arc::new(Loaded::default()));

    put(dir.path(), "a.yaml", &pod("a", "a:1"));
    let first = until(&mut seen, |loaded| loaded.objects.pods.len() == 1).await;

    // As editors save: written aside, moved over.
    put(dir.path(), ".a.yaml.tmp", &pod("a", "a:2"));
    fs::rename(dir.path().join(".a.yaml.tmp"), dir.path().join("a.yaml")).unwrap();
    let second = until(&mut seen, |loaded| image(loaded, "a").as_deref() == Some("a:2")).await;
    let uid = |loaded: &Loaded| loaded.objects.pods[&key("a")].metadata.uid.clone();
    assert_ne!(uid(&first), uid(&second), "another pod");
    assert!(uid(&first).is_some_and(|uid| uid.len() == 32));

    put(dir.path(), "b.yaml", &pod("b", "a:1"));
    let both = until(&mut seen, |loaded| loaded.objects.pods.len() == 2).await;
    assert!(Arc::ptr_eq(&both.objects.pods[&key("a")], &second.objects.pods[&key("a")]), "untouched");

    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    until(&mut seen, |loaded| loaded.objects.pods.keys().eq([&key("b")])).await;
}

#[tokio::test]
async fn a_broken_document_keeps_the_last_good_version_of_its_object_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.yaml");
    put(
        dir.path(),
        "all.yaml",
        &format!("{}---\n{}---\n{}", pod("a", "a:1"), map("m", "1"), pod("z", "a:1")),
    );
    let mut seen = watch(vec![file]).unwrap();
    assert_eq!(seen.borrow_and_update().objects.pods.len(), 2);

    // The object is known, so only it is kept; z has been removed on purpose.
    let broken = pod("a", "a:2").replace("containers", "contaners");
    put(dir.path(), "all.yaml", &format!("{broken}---\n{}", map("m", "2")));
    let kept = until(&mut seen, |loaded| !loaded.problems.is_empty()).await;
    assert_eq!(image(&kept, "a").as_deref(), Some("a:1"));
    assert_eq!(kept.objects.pods.len(), 1);
    let data = kept.objects.config_maps[&key("m")].data.clone().unwrap();
    assert_eq!(data["k"], "2");
    assert!(
        texts(&kept)
            .iter()
            .any(|text| text.ends_with("all.yaml document 1: field spec.contaners: unknown field"))
    );

    // It cannot be told whose text this was: all that the file gave stays.
    put(dir.path(), "all.yaml", "a: [\n---\nb: }\n");
    let kept =
        until(&mut seen, |loaded| loaded.problems.len() == 2 && loaded.problems[0].field.is_none()).await;
    assert_eq!((kept.objects.pods.len(), kept.objects.config_maps.len()), (1, 1));

    put(dir.path(), "all.yaml", &pod("a", "a:2"));
    let good = until(&mut seen, |loaded| loaded.problems.is_empty()).await;
    assert_eq!((image(&good, "a").as_deref(), good.objects.config_maps.len()), (Some("a:2"), 0));
}

#[tokio::test]
async fn a_mounted_config_map_and_a_directory_that_comes_back_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("manifests");
    let version = |name: &str, image: &str| {
        fs::create_dir_all(dir.join(name)).unwrap();
        put(&dir.join(name), "a.yaml", &pod("a", image));
    };
    version("..1", "a:1");
    std::os::unix::fs::symlink("..1", dir.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
    let mut seen = watch(vec![dir.clone()]).unwrap();
    assert_eq!(image(&seen.borrow_and_update(), "a").as_deref(), Some("a:1"));

    version("..2", "a:2");
    std::os::unix::fs::symlink("..2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    until(&mut seen, |loaded| image(loaded, "a").as_deref() == Some("a:2")).await;

    fs::rename(&dir, root.path().join("away")).unwrap();
    let gone = until(&mut seen, |loaded| loaded.objects.pods.is_empty()).await;
    assert!(texts(&gone)[0].ends_with("manifests: cannot be read: No such file or directory (os error 2)"));

    fs::create_dir(&dir).unwrap();
    until(&mut seen, |loaded| loaded.problems.is_empty()).await;
    put(&dir, "b.yaml", &pod("b", "b:1"));
    until(&mut seen, |loaded| loaded.objects.pods.contains_key(&key("b"))).await;
}

/// Waits for what events bring; a state that never comes hangs, and the test runner says where.
async fn until(seen: &mut Receiver<Arc<Loaded>>, is_it: impl Fn(&Loaded) -> bool) -> Arc<Loaded> {
    Arc::clone(&*seen.wait_for(|loaded| is_it(loaded)).await.expect("the watcher lives"))
}

fn put(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("write");
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers: [{{name: c, image: '{image}'}}]\n"
    )
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: '{value}'}}\n")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn image(loaded: &Loaded, name: &str) -> Option<String> {
    loaded.objects.pods.get(&key(name))?.spec.as_ref()?.containers[0].image.clone()
}

fn texts(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}
