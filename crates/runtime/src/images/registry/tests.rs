use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::fixture::{Packing, TarBuilder, TestImage};
use super::super::layout::{self, Descriptor, Index, Platform};
use super::super::{Auth, ImageError, ImageStore, Limits, Progress, Retention};
use server::{Reply, Request, serve};

mod real;
mod resume;
mod server;

#[tokio::test]
async fn a_pulled_image_has_its_tag_and_digest_and_a_second_pull_fetches_no_content() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = image();
    let content = image.clone();
    let server = serve(move |request| registry(&content, request)).await;
    let store = open(temp.path()).await;
    let name = format!("{}/org/app:v1", server.authority);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let id = store.pull(&name, None, move |step| log.lock().expect("log").push(step)).await.expect("pull");
    assert_eq!(id, image.id);
    let pulled = store.get(&name).expect("listed");
    assert_eq!(pulled.repo_tags, std::slice::from_ref(&name));
    assert_eq!(pulled.repo_digests, [format!("{}/org/app@{}", server.authority, image.manifest.digest)]);
    let lower = store.snapshot(&pulled).expect("snapshot").lower;
    assert_eq!(std::fs::read_to_string(lower[0].join("etc/motd")).expect("read"), "hi");
    let steps = std::mem::take(&mut *seen.lock().expect("log"));
    assert!(matches!(&steps[0], Progress::Resolved { layers, .. } if layers.len() == 2), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| matches!(step, Progress::LayerDone { .. })).count(), 2);
    assert_eq!(steps.last(), Some(&Progress::Committing));

    let before = server.requests().len();
    let again = store.pull(&pulled.repo_digests[0], None, |_| ()).await.expect("pull");
    assert_eq!(again, id);
    assert_eq!(
        server.requests()[before..].iter().filter(|request| request.path.contains("/blobs/")).count(),
        0
    );
}

#[tokio::test]
async fn pulls_of_one_image_at_the_same_time_fetch_it_once() {
    let temp = tempfile::tempdir().expect("temp dir");
    let content = image();
    let server = serve(move |request| registry(&content, request)).await;
    let store = open(temp.path()).await;
    let name = format!("{}/app", server.authority);
    let (a, b, c) = tokio::join!(
        store.pull(&name, None, |_| ()),
        store.pull(&name, None, |_| ()),
        store.pull(&name, None, |_| ())
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(server.requests().iter().filter(|request| request.path.contains("/blobs/")).count(), 3);
}

#[tokio::test]
async fn a_token_is_fetched_with_the_credentials_and_shown_to_the_registry_only() {
    let temp = tempfile::tempdir().expect("temp dir");
    let content = image();
    let storage_content = content.clone();
    let storage = serve(move |request| registry(&storage_content, request)).await;
    let elsewhere = storage.authority.clone();
    let server = serve(move |request| {
        let authorization = request.header("authorization");
        if request.path.starts_with("/token") {
            assert!(request.path.contains("scope=repository%3Aapp%3Apull"), "{}", request.path);
            return match authorization.as_deref() {
                Some("Basic dTpw") => Reply::ok("application/json", b"{\"token\":\"t0k3n\"}"),
                _ => Reply::status("401 Unauthorized", "{\"details\":\"incorrect username or password\"}"),
            };
        }
        if authorization.as_deref() != Some("Bearer t0k3n") {
            let realm = format!("http://{}/token", request.header("host").expect("host"));
            let header = format!(
                "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:app:pull\"\r\n"
            );
            return Reply::with("401 Unauthorized", &header, b"");
        }
        if request.path.contains("/blobs/") {
            return Reply::with(
                "307 Temporary Redirect",
                &format!("Location: http://{elsewhere}{}\r\n", request.path),
                b"",
            );
        }
        registry(&content, request)
    })
    .await;
    let store = open(temp.path()).await;
    let name = format!("{}/app", server.authority);
    for wrong in [None, Some(auth("u", "wrong"))] {
        let error = store.pull(&name, wrong, |_| ()).await.expect_err("denied");
        assert!(matches!(error, ImageError::AuthDenied { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let elsewhere = Auth { server_address: "other.example".to_owned(), ..auth("u", "p") };
    assert!(
        store.pull(&name, Some(elsewhere), |_| ()).await.is_err(),
        "credentials for another server are not sent"
    );
    store.pull(&name, Some(auth("u", "p")), |_| ()).await.expect("pull");
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn basic_registry_and_identity_tokens_are_used() {
    let content = image();
    for (given, expect) in [
        (Auth { auth: "dTpw".to_owned(), ..Auth::default() }, "Basic dTpw"),
        (Auth { registry_token: "reg".to_owned(), ..Auth::default() }, "Bearer reg"),
        (Auth { identity_token: "id".to_owned(), ..Auth::default() }, "Bearer new"),
    ] {
        let temp = tempfile::tempdir().expect("temp dir");
        let content = content.clone();
        let server = serve(move |request| {
            if request.path == "/token" {
                assert!(request.method == "POST" && request.body.contains("refresh_token=id"), "{request:?}");
                return Reply::ok("application/json", b"{\"access_token\":\"new\"}");
            }
            if request.header("authorization").as_deref() == Some(expect) {
                return registry(&content, request);
            }
            let challenge = if expect.starts_with("Basic") {
                "Basic realm=\"x\"".to_owned()
            } else {
                format!("Bearer realm=\"http://{}/token\"", request.header("host").expect("host"))
            };
            Reply::with("401 Unauthorized", &format!("WWW-Authenticate: {challenge}\r\n"), b"")
        })
        .await;
        let store = open(temp.path()).await;
        store.pull(&format!("{}/app", server.authority), Some(given), |_| ()).await.expect(expect);
    }
}

#[tokio::test]
async fn the_entry_of_an_index_for_this_machine_is_pulled() {
    let temp = tempfile::tempdir().expect("temp dir");
    let mut content = image();
    let own = Descriptor { platform: Some(layout::host_platform()), ..content.manifest.clone() };
    let foreign = Platform { architecture: "s390x".to_owned(), os: "linux".to_owned(), variant: None };
    let other = Descriptor { platform: Some(foreign), ..Descriptor::of(layout::OCI_MANIFEST, b"other") };
    let mut index = Index { schema_version: 2, media_type: None, manifests: vec![other, own] };
    content.serve_index(&index);
    let digest = content.manifest.digest.clone();
    index.manifests.pop();
    let mut only_foreign = content.clone();
    only_foreign.serve_index(&index);
    let server = serve(move |request| match request.path.contains("/foreign/") {
        true => registry(&only_foreign, request),
        false => registry(&content, request),
    })
    .await;
    let store = open(temp.path()).await;
    let id = store.pull(&format!("{}/app", server.authority), None, |_| ()).await.expect("pull");
    assert!(
        store.get(&id).expect("there").repo_digests[0].ends_with(&digest),
        "the digest of the index, as others show"
    );
    let error = store
        .pull(&format!("{}/foreign/app", server.authority), None, |_| ())
        .await
        .expect_err("no platform");
    assert!(
        matches!(&error, ImageError::NoMatchingPlatform { available, .. } if available == "linux/s390x"),
        "{error}"
    );
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_when_they_fail() {
    let temp = tempfile::tempdir().expect("temp dir");
    let content = image();
    let empty = serve(|_| Reply::status("404 Not Found", "")).await;
    let mirror = serve(move |request| registry(&content, request)).await;
    let directory = temp.path().join("certs.d/registry.invalid");
    std::fs::create_dir_all(&directory).expect("mkdir");
    let toml = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\".header]\nx-key = \"k\"\n[host.\"http://{}/prefix\"]\n",
        empty.authority, empty.authority, mirror.authority
    );
    std::fs::write(directory.join("hosts.toml"), toml).expect("write");
    let store =
        ImageStore::open(&temp.path().join("root"), &temp.path().join("certs.d")).await.expect("open");
    store.pull("registry.invalid/app", None, |_| ()).await.expect("pull");
    assert!(store.get("registry.invalid/app:latest").is_some(), "named after the registry, not the mirror");
    assert_eq!(empty.requests()[0].header("x-key").as_deref(), Some("k"));
    let asked = &mirror.requests()[0];
    assert!(asked.path.starts_with("/prefix/v2/app/manifests/latest?ns=registry.invalid"), "{}", asked.path);
    let error = store.pull("registry.invalid/app:none", None, |_| ()).await;
    assert!(error.is_ok(), "the mirror has any tag");
}

#[tokio::test]
async fn a_mirrors_answer_counts_more_than_a_registry_out_of_reach() {
    let temp = tempfile::tempdir().expect("temp dir");
    let mirror = serve(|_| Reply::status("404 Not Found", "")).await;
    let directory = temp.path().join("certs.d/registry.invalid");
    std::fs::create_dir_all(&directory).expect("mkdir");
    let toml = format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n", mirror.authority);
    std::fs::write(directory.join("hosts.toml"), toml).expect("write");
    let store =
        ImageStore::open(&temp.path().join("root"), &temp.path().join("certs.d")).await.expect("open");
    let error = store.pull("registry.invalid/app", None, |_| ()).await.expect_err("nobody has it");
    assert!(matches!(&error, ImageError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_a_registry_cannot_or_will_not_give_is_told_apart() {
    let temp = tempfile::tempdir().expect("temp dir");
    let server = serve(|request| match request.path.split('/').nth(2) {
        Some("missing") => Reply::status("404 Not Found", r#"{"errors":[{"message":"manifest unknown"}]}"#),
        Some("broken") => Reply::status("503 Service Unavailable", "come back later"),
        Some("secret") => Reply::status("403 Forbidden", ""),
        Some("old") => Reply::ok("application/json", br#"{"schemaVersion":1}"#),
        Some("circle") => Reply::with("302 Found", &format!("Location: {}\r\n", request.path), b""),
        Some("big") => Reply::ok("application/json", &vec![b' '; 5 << 20]),
        _ => Reply::ok("text/html", b"<html>"),
    })
    .await;
    let store = open(temp.path()).await;
    let pull = async |name: &str| {
        store.pull(&format!("{}/{name}", server.authority), None, |_| ()).await.expect_err(name)
    };
    assert!(
        matches!(pull("missing").await, ImageError::NotFound { detail, .. } if detail.contains("manifest unknown"))
    );
    let unavailable = pull("broken").await.to_string();
    assert!(unavailable.contains("503") && unavailable.contains("come back later"), "{unavailable}");
    assert!(matches!(pull("secret").await, ImageError::AuthDenied { .. }));
    assert!(matches!(pull("old").await, ImageError::Unsupported { .. }));
    assert!(matches!(pull("circle").await, ImageError::RegistryUnavailable { .. }));
    assert!(matches!(pull("big").await, ImageError::TooLarge { .. }));
    assert!(matches!(pull("html").await, ImageError::Malformed { .. }));
    let error = store.pull("127.0.0.1:1/app", None, |_| ()).await.expect_err("refused");
    assert!(
        matches!(&error, ImageError::RegistryUnavailable { detail, .. } if detail.contains("refused")),
        "{error}"
    );
    assert!(matches!(store.pull("UPPER", None, |_| ()).await, Err(ImageError::InvalidReference { .. })));
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused_and_only_what_may_be_good_is_kept() {
    let temp = tempfile::tempdir().expect("temp dir");
    let limits = Limits {
        stall: Duration::from_millis(300),
        retries: 1,
        retry_pause: Duration::from_millis(1),
        ..Limits::default()
    };
    let store = ImageStore::open_with(&temp.path().join("root"), Path::new("/nonexistent"), limits)
        .await
        .expect("open");
    for kind in ["changed", "truncated", "short", "endless", "stalled", "garbage"] {
        let content = match kind {
            "garbage" => TestImage::new(&[(vec![0x1f, 0x8b, 8, 0, 1, 2, 3], Packing::Plain)]),
            _ => image(),
        };
        let first = content.layers[0].clone();
        let bad = first.clone();
        let server = serve(move |request| {
            let blob = &content.blobs[&first];
            let head =
                |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            if !request.path.ends_with(&first) {
                return registry(&content, request);
            }
            match kind {
                "changed" => {
                    let mut wrong = blob.clone();
                    wrong[blob.len() / 2] ^= 0x10;
                    Reply::ok("application/octet-stream", &wrong)
                }
                "truncated" => Reply::Close([head(blob.len()), blob[..10].to_vec()].concat()),
                "short" => Reply::ok("application/octet-stream", &blob[..blob.len() - 1]),
                "endless" => {
                    Reply::ok("application/octet-stream", &[blob.clone(), vec![0; 1 << 20]].concat())
                }
                "stalled" => Reply::Hang([head(blob.len()), blob[..10].to_vec()].concat()),
                _ => registry(&content, request),
            }
        })
        .await;
        let error = store.pull(&format!("{}/app", server.authority), None, |_| ()).await.expect_err(kind);
        let expected = match kind {
            "truncated" => matches!(error, ImageError::RegistryUnavailable { .. }),
            "stalled" => matches!(error, ImageError::Stalled { .. }),
            "garbage" => matches!(error, ImageError::CorruptLayer { .. }),
            _ => matches!(error, ImageError::DigestMismatch { .. }),
        };
        assert!(expected, "{kind}: {error}");
        assert!(store.list().is_empty() && store.usage().used_bytes == 0);
        assert_eq!(std::fs::read_dir(temp.path().join("root/ingest")).expect("list").count(), 1, "{kind}");
        let kept = std::fs::read(temp.path().join("root/ingest/partial").join(&bad[7..])).ok();
        let good = matches!(kind, "truncated" | "stalled").then_some(10);
        assert_eq!(kept.map(|bytes| bytes.len()), good, "{kind}");
    }
}

#[tokio::test]
async fn a_cancelled_pull_can_be_repeated() {
    let temp = tempfile::tempdir().expect("temp dir");
    let content = image();
    let first = content.layers[0].clone();
    let tries = AtomicUsize::new(0);
    let (reached, mut hanging) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |request| {
        if request.path.ends_with(&first) && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            reached.send(()).expect("test waits");
            return Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx".to_vec());
        }
        registry(&content, request)
    })
    .await;
    let store = open(temp.path()).await;
    let name = format!("{}/app", server.authority);
    tokio::select! {
        result = store.pull(&name, None, |_| ()) => panic!("ended: {result:?}"),
        _ = hanging.recv() => {}
    }
    store.pull(&name, None, |_| ()).await.expect("pull");
    assert_eq!(store.list().len(), 1);
}

fn image() -> TestImage {
    let first = TarBuilder::default().directory("bin/").file("bin/hello", &[b'x'; 10_000]).finish();
    let second = TarBuilder::default().directory("etc/").file("etc/motd", b"hi").finish();
    TestImage::new(&[(first, Packing::Gzip), (second, Packing::Zstd)])
}

/// A registry that has one image under every name and tag.
fn registry(image: &TestImage, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let digest =
        if path.contains("/manifests/") && !name.contains(':') { &image.manifest.digest } else { name };
    match image.blobs.get(digest) {
        Some(content) if path.contains("/manifests/") => Reply::ok(layout::OCI_MANIFEST, content),
        Some(content) => Reply::ok("application/octet-stream", content),
        None => Reply::status("404 Not Found", ""),
    }
}

fn auth(user: &str, password: &str) -> Auth {
    Auth { username: user.to_owned(), password: password.to_owned(), ..Auth::default() }
}

async fn open(temp: &Path) -> ImageStore {
    ImageStore::open(&temp.join("root"), Path::new("/nonexistent")).await.expect("open")
}

impl TestImage {
    /// Puts `index` in front of what it serves.
    fn serve_index(&mut self, index: &Index) {
        let content = serde_json::to_vec(index).expect("json");
        self.manifest = Descriptor::of(layout::OCI_INDEX, &content);
        self.blobs.insert(self.manifest.digest.clone(), content);
    }
}
