//! The last words of a container: the file that it may write, else the end of its log. Upstream: kuberuntime,
//! `terminationMessagePath` and `terminationMessagePolicy`.
//!
//! The file is made before the container, and mounted into it; a pod that sees the host's directories may have put a link
//! in its place or among the logs, so none is followed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;
use rustix::fs::{FileType, Mode, OFlags};

use crate::pod::plan::ObservedState;

/// How much of the file is told: its end.
const MAX_FILE: u64 = 4096;
/// How much of a log is told: its end.
const MAX_LOG: usize = 2048;
const MAX_LINES: usize = 80;

/// Where files of one container lie.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The file for its last words.
    pub(crate) message: PathBuf,
    /// The directory of its pod's logs.
    pub(crate) logs: PathBuf,
    /// Its log, below.
    pub(crate) log: PathBuf,
}

/// What containers leave behind, in the pod's directory.
pub(crate) const CONTAINERS: &str = "containers";

/// Below the pod's directory, as upstream, but by attempt instead of a random name.
pub(crate) fn message_file(pod_directory: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_directory.join(CONTAINERS).join(container).join(attempt.to_string())
}

impl Places {
    /// Makes the file anew and gives its mount; nothing when the container wants none.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn make_message(&self, spec: &v1::Container) -> io::Result<Option<cri::v1::Mount>> {
        let Some(path) = spec.termination_message_path.clone().filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        if let Some(parent) = self.message.parent() {
            host::path::make_directory(parent, 0o750)?;
        }
        match std::fs::remove_file(&self.message) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::create_new(&self.message)?;
        // Whoever the container runs as, and whatever the umask.
        file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
        Ok(Some(cri::v1::Mount {
            container_path: path,
            host_path: self.message.display().to_string(),
            ..Default::default()
        }))
    }

    /// Removes the files of a container that is gone: its last words and its logs, rotated ones too.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.message);
        let (Some(directory), Some(name)) = (self.log.parent(), self.log.file_name()) else { return };
        let Ok(logs) = open_directory(&self.logs) else { return };
        let Ok(directory) = host::path::open_strict(&logs, directory, OFlags::RDONLY | OFlags::DIRECTORY)
        else {
            return;
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&directory) else { return };
        let name = name.to_string_lossy();
        for entry in entries.flatten() {
            let found = entry.file_name().to_string_lossy();
            let rest = found.strip_prefix(&*name);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                let _ = host::path::unlink_at(&directory, &found);
            }
        }
    }
}

/// What a container that has ended leaves behind as its message.
pub(crate) fn last_words(places: &Places, spec: &v1::Container, state: &ObservedState) -> String {
    let ObservedState::Exited { code, .. } = state else { return String::new() };
    let path = spec.termination_message_path.as_deref().unwrap_or_default();
    if !path.is_empty() {
        match read_end(open_file(&places.message), MAX_FILE) {
            Ok(text) if !text.is_empty() => return String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return format!("Error on reading termination log {}: {error}", places.message.display());
            }
            _ => {}
        }
    }
    let falls_back =
        spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && *code != 0;
    if !falls_back {
        return String::new();
    }
    let log = open_directory(&places.logs)
        .and_then(|logs| host::path::open_strict(&logs, &places.log, OFlags::RDONLY | OFlags::NONBLOCK));
    match read_end(log.map(File::from), MAX_LOG as u64 * 8) {
        Ok(text) => end_of_log(&String::from_utf8_lossy(&text)),
        Err(error) => format!("Error reading termination message from logs: {error}"),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn read_end(file: io::Result<File>, most: u64) -> io::Result<Vec<u8>> {
    let mut file = file?;
    if host::path::file_type(&file)? != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// The content of the last lines of a CRI log. Pure.
fn end_of_log(text: &str) -> String {
    // `2006-01-02T15:04:05.000000000Z stdout F content`; P: the line goes on. The first may lack its beginning.
    let entries = text.lines().filter_map(|line| {
        let mut parts = line.splitn(4, ' ');
        let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let content = parts.next().unwrap_or_default();
        (time.len() > 20 && matches!(tag, "F" | "P")).then_some((tag, content))
    });
    let mut lines = vec![String::new()];
    for (tag, content) in entries {
        if let Some(last) = lines.last_mut() {
            last.push_str(content);
        }
        if tag == "F" {
            if let Some(last) = lines.last_mut() {
                last.push('\n');
            }
            lines.push(String::new());
        }
    }
    lines.retain(|line| !line.is_empty());
    let text: String = lines[lines.len().saturating_sub(MAX_LINES)..].concat();
    let start = text.ceil_char_boundary(text.len().saturating_sub(MAX_LOG));
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::time::BootTime;

    fn places(directory: &Path) -> Places {
        Places {
            message: message_file(directory, "a", 0),
            logs: directory.join("logs"),
            log: "a/0.log".into(),
        }
    }

    fn spec(policy: &str) -> v1::Container {
        v1::Container {
            termination_message_path: Some("/dev/termination-log".into()),
            termination_message_policy: Some(policy.into()),
            ..v1::Container::default()
        }
    }

    fn exited(code: i32) -> ObservedState {
        let (reason, message) = (String::new(), String::new());
        ObservedState::Exited { code, reason, message, started_at: 1, finished_at: 2, ended: BootTime(0) }
    }

    #[test]
    fn the_file_wins_and_the_log_is_told_after_a_failure_where_it_is_asked_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(directory.path());
        let mount = places.make_message(&spec("File")).expect("made").expect("a mount");
        assert_eq!(mount.container_path, "/dev/termination-log");
        let mode = std::fs::metadata(&mount.host_path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        std::fs::create_dir_all(directory.path().join("logs/a")).expect("mkdir");
        let log = "2026-01-01T00:00:00.000000000Z stdout P hel\n2026-01-01T00:00:00.000000000Z stdout F lo\n\
                   2026-01-01T00:00:00.000000000Z stderr F bad\n";
        std::fs::write(directory.path().join("logs/a/0.log"), log).expect("a log");
        for (policy, code, expect) in
            [("File", 1, ""), ("FallbackToLogsOnError", 0, ""), ("FallbackToLogsOnError", 1, "hello\nbad\n")]
        {
            assert_eq!(last_words(&places, &spec(policy), &exited(code)), expect, "{policy} {code}");
        }
        std::fs::write(&mount.host_path, format!("{}end", "x".repeat(5000))).expect("written");
        let words = last_words(&places, &spec("FallbackToLogsOnError"), &exited(1));
        assert_eq!((words.len(), words.ends_with("xend")), (4096, true));
    }

    #[test]
    fn links_in_place_of_files_are_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(directory.path());
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "2026-01-01T00:00:00.000000000Z stdout F secret\n").expect("written");
        places.make_message(&spec("File")).expect("made");
        std::fs::remove_file(&places.message).expect("removed");
        symlink(&secret, &places.message).expect("a link");
        std::fs::create_dir_all(directory.path().join("logs/a")).expect("mkdir");
        symlink(&secret, directory.path().join("logs/a/0.log")).expect("a link");
        for policy in ["File", "FallbackToLogsOnError"] {
            let words = last_words(&places, &spec(policy), &exited(1));
            assert!(!words.contains("secret\n"), "{words}");
        }
        std::fs::remove_file(&places.message).expect("removed");
        let words = last_words(&places, &spec("FallbackToLogsOnError"), &exited(1));
        assert!(words.starts_with("Error reading termination message from logs"), "{words}");
    }

    #[test]
    fn the_end_of_a_long_log_is_told() {
        let entry = |text: &str| format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n");
        let many: String = (0..100).map(|number| entry(&number.to_string())).collect();
        let words = end_of_log(&many);
        assert_eq!((words.lines().count(), words.lines().next()), (80, Some("20")));
        let wide: String = (0..3).map(|_| entry(&"ä".repeat(1000))).collect();
        assert!(end_of_log(&wide).len() <= MAX_LOG);
        assert_eq!(end_of_log("T15:04:05.000000000Z stdout F cut\nrest of a line\n"), "");
    }

    #[test]
    fn logs_go_with_their_container_and_no_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(directory.path());
        let logs = directory.path().join("logs/a");
        std::fs::create_dir_all(&logs).expect("mkdir");
        for name in ["0.log", "0.log.20260101-000000", "0.log.20260101-000000.gz", "1.log", "10.log"] {
            std::fs::write(logs.join(name), "").expect("written");
        }
        places.remove();
        let mut left: Vec<_> =
            std::fs::read_dir(logs).expect("listed").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["1.log", "10.log"]);
    }
}
