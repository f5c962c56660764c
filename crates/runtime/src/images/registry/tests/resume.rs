//! Downloads that break, in this pull or in one before it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::*;

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_broke() {
    for ranges in [Ranges::Served, Ranges::Ignored] {
        let temp = tempfile::tempdir().expect("temp dir");
        let image = image();
        let (content, broken) = (image.clone(), AtomicUsize::new(0));
        let first = image.layers[0].clone();
        let server = serve(move |request| {
            if request.path.ends_with(&first) && broken.fetch_add(1, Ordering::Relaxed) < 2 {
                let Reply::Close(mut bytes) = blob(&content, request, ranges) else {
                    unreachable!("it closes")
                };
                bytes.truncate(bytes.len() - 20);
                return Reply::Close(bytes);
            }
            blob(&content, request, ranges)
        })
        .await;
        let store = open_patient(temp.path(), 2).await;
        let id = store.pull(&format!("{}/app", server.authority), None, |_| ()).await.expect("pull");
        assert_eq!(id, image.id);
        let length = image.blobs[&image.layers[0]].len();
        let asked: Vec<_> = server
            .requests()
            .iter()
            .filter(|request| request.path.ends_with(&image.layers[0]))
            .map(|request| request.header("range"))
            .collect();
        let from = Some(format!("bytes={}-", length - 20));
        assert_eq!(asked, [None, from.clone(), from], "{ranges:?}: the second one broke at once");
    }
}

#[tokio::test]
async fn what_a_killed_agent_downloaded_is_not_fetched_again() {
    let image = image();
    let (layer, other) = (&image.layers[0], &image.layers[1]);
    let whole = &image.blobs[layer];
    let half = whole.len() / 2;
    let mut torn = whole[..half].to_vec();
    torn[half - 100..].fill(0);
    for (left, ranges) in [
        (whole[..half].to_vec(), vec![Some(format!("bytes={half}-"))]),
        (whole.clone(), vec![]),
        // As after a power loss: found out, and fetched from the start.
        (torn, vec![Some(format!("bytes={half}-")), None]),
        ([whole.as_slice(), b"more"].concat(), vec![None]),
    ] {
        let temp = tempfile::tempdir().expect("temp dir");
        let partial = partial(temp.path(), layer);
        fs::create_dir_all(partial.parent().expect("parent")).expect("mkdir");
        fs::write(&partial, &left).expect("write");
        let content = image.clone();
        let server = serve(move |request| blob(&content, request, Ranges::Served)).await;
        let store = open_patient(temp.path(), 0).await;
        store.pull(&format!("{}/app", server.authority), None, |_| ()).await.expect("pull");
        let asked = |digest: &str| {
            let requests = server.requests();
            let blobs = requests.iter().filter(|request| request.path.ends_with(digest));
            blobs.map(|request| request.header("range")).collect::<Vec<_>>()
        };
        assert_eq!((asked(layer), asked(other)), (ranges, vec![None]));
        assert!(!partial.exists());
        let stored = temp.path().join("root/blobs/sha256").join(&layer[7..]);
        assert_eq!(&fs::read(stored).expect("read"), whole);
    }
}

#[tokio::test]
async fn beginnings_of_blobs_are_kept_for_a_day_or_until_an_image_is_removed() {
    let temp = tempfile::tempdir().expect("temp dir");
    let image = image();
    drop(open_patient(temp.path(), 0).await);
    let (young, old, foreign) = (
        partial(temp.path(), &image.layers[0]),
        partial(temp.path(), &image.layers[1]),
        partial(temp.path(), "sha256:x"),
    );
    for path in [&young, &old, &foreign] {
        fs::write(path, "x").expect("write");
    }
    #[expect(clippy::disallowed_methods, reason = "the age of a file")]
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    fs::File::options().write(true).open(&old).expect("open").set_modified(two_days_ago).expect("set");
    let store = open_patient(temp.path(), 0).await;
    assert!(young.exists() && !old.exists() && !foreign.exists());
    image.write_layout(&temp.path().join("layout"), Some("example.org/app:v1"));
    store.import(&temp.path().join("layout"), None, Retention::Collectable, |_| ()).await.expect("import");
    assert!(young.exists());
    store.remove("example.org/app:v1").await.expect("removed");
    assert!(!young.exists(), "who removes images wants the space");
}

#[tokio::test]
async fn two_images_with_a_common_layer_fetch_it_once_at_the_same_time() {
    let temp = tempfile::tempdir().expect("temp dir");
    let common = TarBuilder::default().file("common", &[1; 50_000]).finish();
    let own = |name: &str| (TarBuilder::default().file(name, name.as_bytes()).finish(), Packing::Gzip);
    let images = ["a", "b"].map(|name| TestImage::new(&[(common.clone(), Packing::Gzip), own(name)]));
    let content = images.clone();
    let server = serve(move |request| {
        let of_a = request.path.contains("/v2/a/");
        blob(&content[usize::from(!of_a)], request, Ranges::Served)
    })
    .await;
    let store = open_patient(temp.path(), 0).await;
    let (a, b) = (format!("{}/a", server.authority), format!("{}/b", server.authority));
    let (a, b) = tokio::join!(store.pull(&a, None, |_| ()), store.pull(&b, None, |_| ()));
    assert_eq!([a.expect("a"), b.expect("b")], images.clone().map(|image| image.id));
    let common = &images[0].layers[0];
    assert_eq!(server.requests().iter().filter(|request| request.path.ends_with(common)).count(), 1);
}

#[tokio::test]
async fn an_image_with_the_same_layer_twice_is_pulled() {
    let temp = tempfile::tempdir().expect("temp dir");
    let layer = || (TarBuilder::default().file("x", &[3; 5000]).finish(), Packing::Gzip);
    let image = TestImage::new(&[layer(), layer()]);
    let size = image.blobs.values().map(|blob| blob.len() as u64).sum::<u64>();
    let server = serve(move |request| blob(&image, request, Ranges::Served)).await;
    let store = open_patient(temp.path(), 0).await;
    let id = store.pull(&format!("{}/app", server.authority), None, |_| ()).await.expect("pull");
    let pulled = store.get(&id).expect("there");
    assert_eq!(store.snapshot(&pulled).expect("snapshot").lower.len(), 2);
    assert_eq!(pulled.size, size, "what is stored once counts once");
}

#[derive(Debug, Clone, Copy)]
enum Ranges {
    Served,
    Ignored,
}

/// [`registry`] with ranges, as storage services have them.
fn blob(image: &TestImage, request: &Request, ranges: Ranges) -> Reply {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    let from = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    match (ranges, from, image.blobs.get(name)) {
        (Ranges::Served, Some(from), Some(content)) => {
            let (last, total) = (content.len() - 1, content.len());
            let range = format!("Content-Range: bytes {from}-{last}/{total}\r\n");
            Reply::with("206 Partial Content", &range, &content[from..])
        }
        _ => registry(image, request),
    }
}

fn partial(temp: &Path, digest: &str) -> PathBuf {
    temp.join("root/ingest/partial").join(&digest[7..])
}

async fn open_patient(temp: &Path, retries: u32) -> ImageStore {
    let limits = Limits { retries, retry_pause: Duration::from_millis(1), ..Limits::default() };
    ImageStore::open_with(&temp.join("root"), Path::new("/nonexistent"), limits).await.expect("open")
}
