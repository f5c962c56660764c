//! Variables from a file that another container left in an emptyDir (`valueFrom.fileKeyRef`): a part of the shell's syntax
//! in which every value is in single quotes. Upstream: pkg/kubelet/util/env.
//!
//! The file is a container's: links stay inside the volume, and only a regular file of bounded length is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use k8s_openapi::api::core::v1;
use rustix::fs::{FileType, Mode, OFlags};

use crate::volumes::Volumes;

/// Nobody needs more for variables.
const MAX: u64 = 1 << 20;

/// What the files say, by volume and path; or why they cannot be read.
pub(crate) type Texts = BTreeMap<(String, String), Result<String, String>>;

/// Reads every file that the container's variables name.
pub(crate) fn read_all(volumes: &Volumes, uid: &str, container: &v1::Container) -> Texts {
    let all = container.env.iter().flatten();
    let named = all.filter_map(|variable| variable.value_from.as_ref()?.file_key_ref.as_ref());
    let read = |file: &v1::FileKeySelector| {
        let directory = volumes.empty_dir(uid, &file.volume_name);
        let text = read_file(&directory, Path::new(&file.path)).map_err(|error| error.to_string());
        ((file.volume_name.clone(), file.path.clone()), text)
    };
    named.map(read).collect()
}

fn read_file(directory: &Path, path: &Path) -> io::Result<String> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let root =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let file = File::from(host::path::open_in_root(&root, path, OFlags::RDONLY | OFlags::NONBLOCK)?);
    if host::path::file_type(&file)? != FileType::RegularFile {
        return Err(invalid("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(invalid("it is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8"))
}

/// The value of the first variable of that name; none also for an empty one. Pure.
///
/// # Errors
/// What is wrong before it, by line, but not what stands there: it may be a secret.
pub(crate) fn find(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let fault = |why: &str| format!("line {number}: {why}");
        let line = line.trim_start_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| fault("there is no ="))?;
        if name.is_empty() {
            return Err(fault("there is no name before ="));
        }
        if name.ends_with(BLANK) {
            return Err(fault("there is white space before ="));
        }
        // To a shell, what follows the blank is a command.
        let value = if value.starts_with(BLANK) {
            String::new()
        } else {
            let quoted =
                value.strip_prefix('\'').ok_or_else(|| fault("the value is not in single quotes"))?;
            let rest = lines.by_ref().map(|(_, line)| line);
            unquote(quoted, rest).map_err(fault)?
        };
        if name == key {
            return Ok(Some(value).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

const BLANK: [char; 2] = [' ', '\t'];

/// What stands before the closing quote, which may come lines later; after it only a comment may.
fn unquote<'a>(first: &'a str, rest: impl Iterator<Item = &'a str>) -> Result<String, &'static str> {
    let mut value = String::new();
    for line in std::iter::once(first).chain(rest) {
        let Some((inside, after)) = line.split_once('\'') else {
            value += line;
            value.push('\n');
            continue;
        };
        let after = after.trim_start_matches(BLANK);
        let is_over = after.is_empty() || after.starts_with('#');
        return if is_over { Ok(value + inside) } else { Err("something follows the closing quote") };
    }
    Err("the quote is not closed")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn values_are_what_stands_in_quotes() {
        let text = "# comment\n\n  A='one'\n\tB='two # 2' # a comment\nC='three\nlines\n#'\nD= 'x'\nE=''\nA='again'\nF='$A \\n'\r\n";
        for (key, expect) in [
            ("A", Some("one")),
            ("B", Some("two # 2")),
            ("C", Some("three\nlines\n#")),
            ("D", None),
            ("E", None),
            ("F", Some("$A \\n")),
            ("G", None),
        ] {
            assert_eq!(find(text, key), Ok(expect.map(str::to_owned)), "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_line_and_not_by_content() {
        for (line, expect) in [
            ("A", "line 2: there is no ="),
            ("='x'", "line 2: there is no name before ="),
            ("A ='x'", "line 2: there is white space before ="),
            ("A=x", "line 2: the value is not in single quotes"),
            ("A=\"x\"", "line 2: the value is not in single quotes"),
            ("A=", "line 2: the value is not in single quotes"),
            ("A='x'y", "line 2: something follows the closing quote"),
            ("A='x\nB=y", "line 2: the quote is not closed"),
        ] {
            assert_eq!(find(&format!("K='v'\n{line}\n"), "Z"), Err(expect.to_owned()), "{line}");
            assert_eq!(find(&format!("K='v'\n{line}\n"), "K"), Ok(Some("v".into())), "{line}");
        }
    }

    #[test]
    fn only_regular_files_of_the_volume_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let (outside, volume) = (dir.path().join("outside"), dir.path().join("volume"));
        std::fs::create_dir(&volume).expect("made");
        std::fs::write(&outside, "A='b'").expect("written");
        std::fs::write(volume.join("long"), vec![b'#'; (MAX + 1) as usize]).expect("written");
        std::fs::write(volume.join("fine"), "A='b'").expect("written");
        symlink("fine", volume.join("inside")).expect("linked");
        symlink(&outside, volume.join("absolute")).expect("linked");
        symlink("../outside", volume.join("up")).expect("linked");
        let status = rustix::fs::mknodat(
            rustix::fs::CWD,
            volume.join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        );
        status.expect("a pipe");
        for name in ["fine", "inside"] {
            assert_eq!(read_file(&volume, Path::new(name)).expect("read"), "A='b'", "{name}");
        }
        for name in ["long", "absolute", "up", "pipe", "none", "."] {
            read_file(&volume, Path::new(name)).expect_err(name);
        }
    }
}
