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

#[tokio::test]
async fn what_a_directory_s_link_leads_to_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let (dir, ext) = (root.path().join("m"), root.path().join("ext"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&ext).unwrap();
    put(&ext, "l.yaml", &pod("a", "a:1"));
    link("../ext/l.yaml", &dir.join("l.yaml"));
    let mut seen = watch(vec![dir.clone()]).unwrap();
    assert_eq!(image(&seen.borrow_and_update(), "a").as_deref(), Some("a:1"));

    put(&ext, "l.yaml", &pod("a", "a:2"));
    until(&mut seen, |loaded| image(loaded, "a").as_deref() == Some("a:2")).await;
    put(&ext, "new", &pod("a", "a:3"));
    fs::rename(ext.join("new"), ext.join("l.yaml")).unwrap();
    until(&mut seen, |loaded| image(loaded, "a").as_deref() == Some("a:3")).await;

    fs::remove_file(ext.join("l.yaml")).unwrap();
    let gone = until(&mut seen, |loaded| loaded.objects.pods.is_empty()).await;
    assert_eq!(texts(&gone).len(), 1, "{:?}", texts(&gone));
    assert!(texts(&gone)[0].ends_with("m/l.yaml: a link to ../ext/l.yaml, where there is nothing"));
    put(&ext, "l.yaml", &pod("a", "a:4"));
    let back = until(&mut seen, |loaded| image(loaded, "a").as_deref() == Some("a:4")).await;
    assert_eq!(texts(&back), Vec::<String>::new());
}

#[tokio::test]
async fn every_link_on_the_way_may_turn_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    for version in ["1", "2"] {
        let release = root.path().join("releases").join(version);
        fs::create_dir_all(&release).unwrap();
        put(&release, "p.yaml", &pod("p", &format!("p:{version}")));
        put(&release, "q.yaml", &pod("q", &format!("q:{version}")));
    }
    let at = |name: &str| root.path().join(name);
    link("releases/1", &at("current"));
    link("l2", &at("l1.yaml"));
    link("releases/1/q.yaml", &at("l2"));
    let mut seen = watch(vec![at("current/p.yaml"), at("l1.yaml")]).unwrap();
    let images = |loaded: &Loaded| (image(loaded, "p"), image(loaded, "q"));
    assert_eq!(images(&seen.borrow_and_update()), (Some("p:1".into()), Some("q:1".into())));

    turn(&at("current"), "releases/2");
    until(&mut seen, |loaded| images(loaded) == (Some("p:2".into()), Some("q:1".into()))).await;
    turn(&at("l2"), "releases/2/q.yaml");
    until(&mut seen, |loaded| images(loaded) == (Some("p:2".into()), Some("q:2".into()))).await;
    // The new way is followed as the old one was.
    put(&at("releases/2"), "q.yaml", &pod("q", "q:3"));
    until(&mut seen, |loaded| images(loaded) == (Some("p:2".into()), Some("q:3".into()))).await;
    turn(&at("current"), "nowhere");
    until(&mut seen, |loaded| images(loaded) == (None, Some("q:3".into()))).await;
    fs::rename(at("releases/1"), at("nowhere")).unwrap();
    until(&mut seen, |loaded| images(loaded) == (Some("p:1".into()), Some("q:3".into()))).await;
}

#[tokio::test]
async fn a_directory_above_that_goes_and_comes_back_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let (h, k) = (root.path().join("g/h"), root.path().join("g/k"));
    fs::create_dir_all(&h).unwrap();
    fs::create_dir_all(k.join("dir")).unwrap();
    put(&h, "h.yaml", &pod("h", "h:1"));
    put(&k.join("dir"), "k.yaml", &pod("k", "k:1"));
    let mut seen = watch(vec![h.join("h.yaml"), k.join("dir")]).unwrap();
    let images = |loaded: &Loaded| (image(loaded, "h"), image(loaded, "k"));
    assert_eq!(images(&seen.borrow_and_update()), (Some("h:1".into()), Some("k:1".into())));

    let away = root.path().join("away");
    fs::rename(&h, &away).unwrap();
    until(&mut seen, |loaded| images(loaded) == (None, Some("k:1".into()))).await;
    fs::rename(&away, &h).unwrap();
    until(&mut seen, |loaded| images(loaded) == (Some("h:1".into()), Some("k:1".into()))).await;
    put(&h, "h.yaml", &pod("h", "h:2"));
    until(&mut seen, |loaded| images(loaded) == (Some("h:2".into()), Some("k:1".into()))).await;

    // All of it, two levels up, even while somebody stands in it.
    let held = fs::File::open(k.join("dir")).unwrap();
    fs::remove_dir_all(root.path().join("g")).unwrap();
    until(&mut seen, |loaded| images(loaded) == (None, None)).await;
    fs::create_dir_all(k.join("dir")).unwrap();
    put(&k.join("dir"), "k.yaml", &pod("k", "k:3"));
    until(&mut seen, |loaded| images(loaded) == (None, Some("k:3".into()))).await;
    fs::create_dir_all(&h).unwrap();
    put(&h, "h.yaml", &pod("h", "h:3"));
    until(&mut seen, |loaded| images(loaded) == (Some("h:3".into()), Some("k:3".into()))).await;
    drop(held);
}

#[tokio::test]
async fn whether_all_could_be_read_since_the_start_is_told() {
    let incomplete = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "a.yaml", text);
        load(&[dir.path().to_owned()]).incomplete
    };
    assert!(!incomplete(&pod("a", "a:1")));
    assert!(incomplete("a: [\n"));
    assert!(incomplete(&pod("a", "a:1").replace("containers", "contaners")));
    assert!(incomplete(&pod("a", "a:1").replace("kind: Pod", "kind: Pood")));
    assert!(incomplete("metadata: {name: a}\n"));
    // What cannot have been a pod.
    assert!(!incomplete("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"));
    assert!(!incomplete("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"));
    assert!(!incomplete(&map("a", "1").replace("data", "dota")));

    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", "a: [\n");
    let mut seen = watch(vec![dir.path().to_owned()]).unwrap();
    assert!(seen.borrow_and_update().incomplete);
    put(dir.path(), "b.yaml", &pod("b", "b:1"));
    assert!(until(&mut seen, |loaded| loaded.objects.pods.len() == 1).await.incomplete);
    put(dir.path(), "a.yaml", &pod("a", "a:1"));
    assert!(!until(&mut seen, |loaded| loaded.objects.pods.len() == 2).await.incomplete);
    // From now on it is known what each file gave last.
    put(dir.path(), "a.yaml", "a: [\n");
    put(dir.path(), "c.yaml", "c: [\n");
    assert!(!until(&mut seen, |loaded| loaded.problems.len() == 2).await.incomplete);
}

fn link(target: &str, at: &Path) {
    std::os::unix::fs::symlink(target, at).expect("link");
}

/// Lets a link lead elsewhere, as deployments do.
fn turn(at: &Path, target: &str) {
    let new = at.with_extension("new");
    link(target, &new);
    fs::rename(new, at).expect("rename");
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
