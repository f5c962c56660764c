//! Which files there are, what each gave last, and what all give together.
//!
//! A file whose document broke keeps the last good version of that document's object; where it cannot be told which
//! object that was, it keeps all that the file gave and does not give any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::document::{self, Broken, Good, Kind, Object, ObjectId, hash};
use crate::objects::{Loaded, Objects, Problem};
use crate::text::{MAX_FILE_BYTES, documents};

/// What every file gave, by path.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// In the order in which the paths were given; files of a directory by name.
    order: Vec<PathBuf>,
    read: BTreeMap<PathBuf, FileState>,
    /// Paths that cannot be looked at.
    unreachable: Vec<Problem>,
    /// Whether there was a time when all that may be a pod could be read: since then the last good version of each is known.
    is_complete: bool,
}

#[derive(Debug, Default)]
struct FileState {
    held: BTreeMap<ObjectId, Held>,
    problems: Vec<Problem>,
    /// Whether something in it may be a pod of which no good version is known.
    lacks_pods: bool,
}

#[derive(Clone, Debug)]
struct Held {
    document: usize,
    good: Good,
}

/// Which files are read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    All,
    These(BTreeSet<PathBuf>),
}

impl Files {
    /// Looks at `paths` again and reads what changed. Blocking.
    pub(crate) fn refresh(&mut self, paths: &[PathBuf], changed: &Changed, now: &Time) {
        let (order, unreachable) = list(paths);
        let mut before = std::mem::take(&mut self.read);
        let known: BTreeMap<ObjectId, Good> = before
            .values()
            .flat_map(|file| file.held.iter().map(|(id, held)| (id.clone(), held.good.clone())))
            .collect();
        for path in &order {
            let again = match changed {
                Changed::All => true,
                Changed::These(paths) => paths.contains(path),
            };
            let state = match before.remove(path) {
                Some(state) if !again => Some(state),
                previous => read(path, previous.unwrap_or_default(), &known, now),
            };
            if let Some(state) = state {
                self.read.insert(path.clone(), state);
            }
        }
        (self.order, self.unreachable) = (order, unreachable);
        self.is_complete |= self.unreachable.is_empty() && !self.read.values().any(|file| file.lacks_pods);
    }

    /// All objects and problems. Of two objects with one name the first in order counts.
    pub(crate) fn loaded(&self) -> Loaded {
        let mut loaded =
            Loaded { problems: self.unreachable.clone(), incomplete: !self.is_complete, ..Loaded::default() };
        let mut places: BTreeMap<&ObjectId, (&Path, usize)> = BTreeMap::new();
        for path in &self.order {
            let Some(file) = self.read.get(path) else { continue };
            loaded.problems.extend(file.problems.iter().cloned());
            for (id, held) in &file.held {
                match places.get(id) {
                    Some((other, document)) => loaded.problems.push(Problem {
                        file: path.clone(),
                        document: held.document,
                        field: Some("metadata.name".to_owned()),
                        message: format!(
                            "{id} is also in {} document {document}, which counts",
                            other.display()
                        ),
                    }),
                    None => {
                        places.insert(id, (path, held.document));
                        insert(&mut loaded.objects, id, &held.good.object);
                    }
                }
            }
        }
        loaded.problems.sort();
        loaded.problems.dedup();
        loaded
    }
}

fn insert(objects: &mut Objects, id: &ObjectId, object: &Object) {
    let key = id.key.clone();
    match object {
        Object::Pod(pod) => drop(objects.pods.insert(key, Arc::clone(pod))),
        Object::Service(service) => drop(objects.services.insert(key, Arc::clone(service))),
        Object::ConfigMap(map) => drop(objects.config_maps.insert(key, Arc::clone(map))),
        Object::Secret(secret) => drop(objects.secrets.insert(key, Arc::clone(secret))),
    }
}

/// Whether a directory's file is a manifest; editors' temporary files are not.
pub(crate) fn is_manifest(name: &Path) -> bool {
    let hidden = name.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let extension = name.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json")
}

/// The files that `paths` name: each once, whatever ways lead to it.
fn list(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<Problem>) {
    let (mut files, mut problems, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for path in paths {
        let found = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => directory(path),
            Ok(_) => Ok(vec![path.clone()]),
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => {
                for file in found {
                    if let Some(target) = dangling(&file) {
                        let message = format!("a link to {}, where there is nothing", target.display());
                        problems.push(of_file(&file, message));
                    } else if seen.insert(std::fs::canonicalize(&file).unwrap_or_else(|_| file.clone())) {
                        files.push(file);
                    }
                }
            }
            Err(error) => problems.push(of_file(path, format!("cannot be read: {error}"))),
        }
    }
    (files, problems)
}

/// Where a link leads that leads to nothing.
fn dangling(file: &Path) -> Option<PathBuf> {
    let target = std::fs::read_link(file).ok()?;
    std::fs::metadata(file).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound).then_some(target)
}

fn directory(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if is_manifest(&file) && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn of_file(path: &Path, message: String) -> Problem {
    Problem { file: path.to_owned(), document: 0, field: None, message }
}

/// Reads a file; none when it has gone.
fn read(path: &Path, previous: FileState, known: &BTreeMap<ObjectId, Good>, now: &Time) -> Option<FileState> {
    match text(path) {
        Ok(text) => Some(digest(path, &text, &previous, known, now)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            let problems = vec![of_file(path, format!("cannot be read: {error}"))];
            let lacks_pods = previous.held.is_empty() || previous.lacks_pods;
            Some(FileState { held: previous.held, problems, lacks_pods })
        }
    }
}

fn text(path: &Path) -> std::io::Result<String> {
    let refuse = |message: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
    if !std::fs::metadata(path)?.is_file() {
        return refuse("it is not a regular file");
    }
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return refuse("it is larger than 16 MiB");
    }
    String::from_utf8(text).or_else(|_| refuse("it is not UTF-8 text"))
}

/// From a file's text to its state. Pure.
fn digest(
    path: &Path,
    text: &str,
    previous: &FileState,
    known: &BTreeMap<ObjectId, Good>,
    now: &Time,
) -> FileState {
    let mut state = FileState::default();
    let mut broken: Vec<Broken> = Vec::new();
    for found in documents(path, text) {
        let document = found.number;
        let problem =
            |field: Option<String>, message| Problem { file: path.to_owned(), document, field, message };
        let content = match found.value {
            Ok(value) => document::read(value),
            Err(message) => {
                state.problems.push(problem(None, message));
                broken.push(Broken::Unknown);
                continue;
            }
        };
        broken.extend(content.broken);
        let faults = content.faults.into_iter();
        state
            .problems
            .extend(faults.map(|(path, message)| problem((!path.is_empty()).then_some(path), message)));
        for good in content.objects {
            match state.held.get(&good.id) {
                Some(first) => {
                    let message = format!("{} is also in document {}, which counts", good.id, first.document);
                    state.problems.push(problem(Some("metadata.name".to_owned()), message));
                }
                None => {
                    let good = stamp(good, known, now);
                    state.held.insert(good.id.clone(), Held { document, good });
                }
            }
        }
    }
    let all = broken.iter().any(|broken| matches!(broken, Broken::Unknown | Broken::Foreign));
    for (id, held) in &previous.held {
        let was_this = broken.contains(&Broken::Object(id.clone()));
        if (all || was_this) && !state.held.contains_key(id) {
            state.held.insert(id.clone(), held.clone());
        }
    }
    state.lacks_pods = broken.iter().any(|broken| match broken {
        Broken::Object(id) => broken.may_be_pod() && !state.held.contains_key(id),
        // Once all of a file is known, all of it is kept.
        Broken::Unknown | Broken::Foreign => {
            broken.may_be_pod() && (previous.lacks_pods || previous.held.is_empty())
        }
    });
    state
}

/// Gives a UID and a creation time: those it had, when it was known.
fn stamp(mut good: Good, known: &BTreeMap<ObjectId, Good>, now: &Time) -> Good {
    let before = known.get(&good.id);
    if let Some(before) = before.filter(|before| before.digest == good.digest) {
        return before.clone();
    }
    // Another pod under the same name is another pod; anything else is the same, changed.
    let (uid, since) = match good.id.kind {
        Kind::Pod => (good.digest.clone(), None),
        Kind::Service | Kind::ConfigMap | Kind::Secret => {
            let since = before.and_then(|before| before.object.metadata().creation_timestamp.clone());
            (hash(&good.id.to_string()), since)
        }
    };
    let metadata = good.object.metadata_mut();
    metadata.uid = Some(uid);
    metadata.creation_timestamp = Some(since.unwrap_or_else(|| now.clone()));
    good
}
