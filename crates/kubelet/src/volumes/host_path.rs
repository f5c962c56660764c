//! `hostPath.type`, with upstream's sentences.

use std::fs::FileType;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1;

use host::path::make_directory;

/// Checks the path, or makes what is to be made.
///
/// # Errors
/// What is wrong with the path.
pub(super) fn check(source: &v1::HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = path.metadata().map(|metadata| metadata.file_type());
    let is = |check: &dyn Fn(&FileType) -> bool| kind.as_ref().is_ok_and(check);
    let told = |error: io::Error| format!("make {}: {error}", source.path);
    let (fits, wanted) = match source.type_.as_deref().unwrap_or_default() {
        "" => return Ok(()),
        "DirectoryOrCreate" if kind.is_err() => return make_directory(path, 0o755).map_err(told),
        "FileOrCreate" if kind.is_err() => return make_file(path).map_err(told),
        "Directory" | "DirectoryOrCreate" => (is(&FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(&FileType::is_file), "file"),
        "Socket" => (is(&FileType::is_socket), "socket file"),
        "CharDevice" => (is(&FileType::is_char_device), "character device"),
        "BlockDevice" => (is(&FileType::is_block_device), "block device"),
        other => return Err(format!("hostPath type {other:?} is not known")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {wanted}", source.path)) }
}

fn make_file(path: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_checked_and_two_are_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::create_dir(at("d")).expect("made");
        std::fs::write(at("f"), "").expect("made");
        let _socket = std::os::unix::net::UnixListener::bind(at("s")).expect("bound");
        for (path, kind, expect) in [
            (at("d"), "Directory", None),
            (at("d"), "DirectoryOrCreate", None),
            (at("new/d"), "DirectoryOrCreate", None),
            (at("f"), "File", None),
            (at("new/f"), "FileOrCreate", None),
            (at("s"), "Socket", None),
            ("/dev/null".into(), "CharDevice", None),
            (at("none"), "", None),
            (at("none"), "Directory", Some("is not a directory")),
            (at("d"), "File", Some("is not a file")),
            (at("f"), "DirectoryOrCreate", Some("is not a directory")),
            (at("d"), "FileOrCreate", Some("is not a file")),
            (at("f"), "Socket", Some("is not a socket file")),
            ("/dev/null".into(), "BlockDevice", Some("is not a block device")),
            (at("f"), "CharDevice", Some("is not a character device")),
            (at("none/f"), "FileOrCreate", Some("No such file")),
        ] {
            let checked = check(&v1::HostPathVolumeSource { path: path.clone(), type_: Some(kind.into()) });
            match (&checked, expect) {
                (Ok(()), None) => {}
                (Err(message), Some(expect)) => assert!(message.contains(expect), "{message}"),
                _ => panic!("{path} {kind}: {checked:?}"),
            }
        }
        assert!(Path::new(&at("new/d")).is_dir() && Path::new(&at("new/f")).is_file());
    }
}
