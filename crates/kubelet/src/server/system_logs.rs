//! `/logs/`: the machine's own logs, as files and lists of files. Upstream: kubelet.go, an HTTP file server of `/var/log`.
//!
//! The kernel resolves each path below the directory: what a link would lead out of it is not there (CVE-2017-1002102 and the
//! escape by a pod that mounts `/var/log`). Only regular files are read.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::stream;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::pieces::{self, blocking};
use super::query::decode;
use super::respond::{self, Answer, text};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// What lies at a path.
enum Found {
    File(File),
    /// The names in a directory, with a slash behind those of directories.
    Names(Vec<String>),
}

/// Answers for a path below `directory`, as it was sent.
pub(super) async fn answer(directory: &Path, path: &str) -> Answer {
    let (directory, path) = (directory.to_owned(), decode(path));
    match blocking(move || find(&directory, &path)).await {
        Ok(Found::File(file)) => respond::stream(stream_of(file)),
        Ok(Found::Names(names)) => respond::with(StatusCode::OK, HTML, listing(&names)),
        Err(error) => refusal(&error),
    }
}

/// Whatever is not to be had is not there.
fn refusal(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::PermissionDenied => text(StatusCode::FORBIDDEN, "403 Forbidden\n"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn find(directory: &Path, path: &str) -> io::Result<Found> {
    let root =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = path.trim_matches('/');
    let path = if path.is_empty() { "." } else { path };
    let found = host::path::open_beneath(&root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK)?;
    match host::path::file_type(&found)? {
        FileType::RegularFile => Ok(Found::File(File::from(found))),
        FileType::Directory => {
            let mut names: Vec<String> = Dir::read_from(&found)?
                .flatten()
                .filter_map(|entry| {
                    let name = entry.file_name().to_str().ok()?;
                    let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
                    (!matches!(name, "." | "..")).then(|| format!("{name}{slash}"))
                })
                .collect();
            names.sort();
            Ok(Found::Names(names))
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// A page of links: pure. Whoever may write to the directory chooses the names.
fn listing(names: &[String]) -> String {
    let line = |name: &String| {
        let link: String = name.bytes().map(in_url).collect();
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("<a href=\"./{link}\">{shown}</a>\n")
    };
    format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{}</pre>\n",
        names.iter().map(line).collect::<String>()
    )
}

fn in_url(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    }
}

/// The file as it is when it is read: one that grows ends where it ended at the start.
fn stream_of(file: File) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let end = file.metadata().map_or(0, |metadata| metadata.len());
    stream::try_unfold((Arc::new(file), 0), move |(file, offset)| async move {
        let piece = pieces::read(&file, offset, end).await?;
        let next = offset + u64::try_from(piece.len()).unwrap_or(0);
        Ok((!piece.is_empty()).then_some((piece, (file, next))))
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::super::pieces::PIECE;
    use super::*;

    async fn get(directory: &Path, path: &str) -> (u16, String) {
        let answer = answer(directory, path).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn files_are_told_and_directories_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path();
        std::fs::create_dir_all(logs.join("pods/a")).unwrap();
        std::fs::write(logs.join("big"), vec![b'x'; 3 * PIECE + 1]).unwrap();
        std::fs::write(logs.join("a <b>&c"), "odd\n").unwrap();
        std::os::unix::fs::symlink("big", logs.join("near")).unwrap();
        assert_eq!(get(logs, "big").await, (200, "x".repeat(3 * PIECE + 1)));
        assert_eq!(get(logs, "near").await.1.len(), 3 * PIECE + 1, "a link that stays is followed");
        assert_eq!(get(logs, "a%20%3Cb%3E%26c").await, (200, "odd\n".to_owned()));
        let (code, page) = get(logs, "").await;
        assert_eq!(code, 200);
        for line in ["<a href=\"./pods/\">pods/</a>", "<a href=\"./a%20%3Cb%3E%26c\">a &lt;b&gt;&amp;c</a>"] {
            assert!(page.contains(line), "{page}");
        }
        assert!(get(logs, "pods/").await.1.contains("./a/"));
        assert_eq!(get(logs, "none").await, (404, "404 page not found\n".to_owned()));
    }

    #[tokio::test]
    async fn nothing_leads_out_of_the_directory_and_only_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("log");
        std::fs::create_dir(&logs).unwrap();
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        for (target, name) in [
            ("/etc/passwd", "absolute"),
            ("../secret", "relative"),
            ("/", "root"),
            ("/proc/self/root", "magic"),
        ] {
            std::os::unix::fs::symlink(target, logs.join(name)).unwrap();
        }
        rustix::fs::mknodat(rustix::fs::CWD, logs.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in [
            "absolute",
            "relative",
            "root/etc/passwd",
            "magic/etc/passwd",
            "../secret",
            "..%2Fsecret",
            "%2e%2e/secret",
            "/etc/passwd",
            "fifo",
            "a%00b",
        ] {
            assert_eq!(get(&logs, path).await.0, 404, "{path}");
        }
    }
}
