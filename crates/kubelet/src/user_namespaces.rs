//! Which of the machine's ids a pod with a user namespace of its own has (`hostUsers: false`): 65,536 that no other pod has. Upstream:
//! pkg/kubelet/userns.
//!
//! What a pod has is written in its directory before its sandbox is made, and goes with that directory: there is no other book.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cri::v1::{IdMapping, Mount, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};

use host::path::make_directory;

use crate::volumes::PRIVATE;

/// The ids of one pod.
const IDS: u32 = 1 << 16;
/// Pods at once, where nobody says how many.
const DEFAULT_PODS: u32 = 110;
/// In a pod's directory, as upstream.
pub(crate) const FILE: &str = "userns";
/// Whose subordinate ids are for pods.
const USER: &str = "kubelet";

/// Hands out ids.
#[derive(Debug)]
pub(crate) struct UserNamespaces {
    /// `<root>/pods`.
    pods: PathBuf,
    /// The blocks of [`IDS`] ids that are for pods; why there are none.
    blocks: Result<Range<u32>, String>,
    /// One pod at a time.
    turn: Mutex<()>,
}

/// The ids of a pod: the first of them on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodIds(u32);

impl PodIds {
    /// As CRI is told.
    pub(crate) fn options(self) -> UserNamespace {
        UserNamespace { mode: NamespaceMode::Pod.into(), uids: self.mappings(), gids: self.mappings() }
    }

    /// Volumes keep their owners on disk, and inside they belong to the same numbers.
    pub(crate) fn map(self, mounts: &mut [Mount]) {
        for mount in mounts {
            (mount.uid_mappings, mount.gid_mappings) = (self.mappings(), self.mappings());
        }
    }

    fn mappings(self) -> Vec<IdMapping> {
        vec![IdMapping { host_id: self.0, container_id: 0, length: IDS }]
    }
}

/// What is written down.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Record {
    fn of(ids: PodIds) -> Self {
        let maps = vec![Mapping { host_id: ids.0, container_id: 0, length: IDS }];
        Self { uid_mappings: maps.clone(), gid_mappings: maps }
    }

    /// Nothing when it is not one of ours or of upstream's default.
    fn ids(&self) -> Option<PodIds> {
        let ids = PodIds(self.uid_mappings.first()?.host_id);
        (*self == Self::of(ids) && ids.0 >= IDS && ids.0.is_multiple_of(IDS)).then_some(ids)
    }
}

impl UserNamespaces {
    /// Those below `<root>/pods`, from the ids that the machine keeps for the kubelet.
    pub(crate) fn new(root: &Path, max_pods: Option<u32>) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let blocks = blocks(&text("/etc/subuid"), &text("/etc/subgid"), max_pods.unwrap_or(DEFAULT_PODS));
        Self { pods: root.join("pods"), blocks, turn: Mutex::default() }
    }

    /// The ids of a pod: those it has, else free ones, which are its own from here on.
    ///
    /// # Errors
    /// Why it can have none.
    pub(crate) fn of(&self, uid: &str) -> Result<PodIds, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ids) = read(&self.file(uid))? {
            return Ok(ids);
        }
        let blocks = self.blocks.clone()?;
        let ids = free(blocks, &self.used()?).ok_or("there are no ids left for another user namespace")?;
        let file = self.file(uid);
        let told = |error: io::Error| format!("write {}: {error}", file.display());
        let text = serde_json::to_vec(&Record::of(ids)).map_err(|error| error.to_string())?;
        make_directory(&self.pods.join(uid), PRIVATE).map_err(told)?;
        // Durable: one torn by a power loss would stand for ids that nobody knows.
        host::state_file::write_durable(&file, &text, 0o600).map_err(told)?;
        Ok(ids)
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.pods.join(uid).join(FILE)
    }

    fn used(&self) -> Result<BTreeSet<u32>, String> {
        let pods = std::fs::read_dir(&self.pods).into_iter().flatten().flatten();
        let all = pods.map(|pod| read(&pod.path().join(FILE)));
        let all: Result<Vec<Option<PodIds>>, String> = all.collect();
        Ok(all?.into_iter().flatten().map(|ids| ids.0 / IDS).collect())
    }
}

/// Nothing where there is none. One that says something else may stand for ids that are in use.
fn read(file: &Path) -> Result<Option<PodIds>, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", file.display())),
    };
    let record = serde_json::from_slice::<Record>(&text).ok();
    let ids = record.as_ref().and_then(Record::ids);
    ids.map(Some).ok_or_else(|| format!("{} does not name {IDS} ids of one pod", file.display()))
}

/// The first block that nobody has.
fn free(mut blocks: Range<u32>, used: &BTreeSet<u32>) -> Option<PodIds> {
    blocks.find(|block| !used.contains(block)).map(|block| PodIds(block * IDS))
}

/// What subuid(5) and subgid(5) keep for the user `kubelet`; where they do not know it, what follows the ids of people.
fn blocks(uids: &str, gids: &str, pods: u32) -> Result<Range<u32>, String> {
    let (uids, gids) = (subordinate(uids), subordinate(gids));
    let (first, count) = match (uids.as_slice(), gids.as_slice()) {
        ([], []) => (IDS, u64::from(IDS) * u64::from(pods)),
        ([uid], [gid]) if uid == gid => *uid,
        _ => return Err(format!("/etc/subuid and /etc/subgid do not give {USER} the same one range of ids")),
    };
    let end = u64::from(first) + count;
    let is_whole = first.is_multiple_of(IDS) && count.is_multiple_of(u64::from(IDS));
    if first < IDS || !is_whole || end > 1 << 32 {
        return Err(format!(
            "the ids of {USER}, {count} from {first} on, are not multiples of {IDS} above it"
        ));
    }
    let last = u32::try_from(end / u64::from(IDS)).unwrap_or(IDS);
    Ok(first / IDS..last)
}

fn subordinate(text: &str) -> Vec<(u32, u64)> {
    let ranges = text.lines().filter_map(|line| {
        let (first, count) = line.strip_prefix(USER)?.strip_prefix(':')?.split_once(':')?;
        Some((first.trim().parse().ok()?, count.trim().parse().ok()?))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_given_ids_by_the_machine_or_what_follows_those_of_people() {
        assert_eq!(blocks("", "root:1:65536\n", 110), Ok(1..111));
        let line = "jane:100000:65536\nkubelet:131072:196608\n";
        assert_eq!(blocks(line, line, 110), Ok(2..5));
        for (uids, gids) in [
            (line, ""),
            (line, "kubelet:65536:196608\n"),
            ("kubelet:131072:65536\nkubelet:262144:65536\n", line),
            ("kubelet:0:65536\n", "kubelet:0:65536\n"),
            ("kubelet:100000:65536\n", "kubelet:100000:65536\n"),
            ("kubelet:131072:70000\n", "kubelet:131072:70000\n"),
            ("kubelet:4294901760:131072\n", "kubelet:4294901760:131072\n"),
        ] {
            blocks(uids, gids, 110).expect_err(uids);
        }
    }

    #[test]
    fn no_two_pods_have_one_id_and_a_pod_keeps_its_own() {
        let root = tempfile::tempdir().unwrap();
        let open = || UserNamespaces { blocks: Ok(1..4), ..UserNamespaces::new(root.path(), None) };
        let namespaces = open();
        let ids = ["a", "b", "c"].map(|uid| namespaces.of(uid).unwrap());
        assert_eq!(ids, [PodIds(IDS), PodIds(2 * IDS), PodIds(3 * IDS)]);
        namespaces.of("d").expect_err("all are taken");
        // After a restart, which may come with another configuration.
        assert_eq!(open().of("b"), Ok(PodIds(2 * IDS)));
        let other = UserNamespaces { blocks: Ok(3..5), ..UserNamespaces::new(root.path(), None) };
        assert_eq!((other.of("a"), other.of("d")), (Ok(PodIds(IDS)), Ok(PodIds(4 * IDS))));
        std::fs::remove_dir_all(root.path().join("pods/b")).unwrap();
        assert_eq!(open().of("e"), Ok(PodIds(2 * IDS)));
        std::fs::write(root.path().join("pods/a").join(FILE), "torn").unwrap();
        open().of("f").expect_err("nobody knows what a has");
    }

    #[test]
    fn what_is_written_down_is_upstream_s() {
        let text = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.ids(), Some(PodIds(131_072)));
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        for bad in [
            text.replace("131072", "0"),
            text.replace("65536", "1000"),
            text.replace("\"containerId\":0", "\"containerId\":5"),
        ] {
            assert_eq!(serde_json::from_str::<Record>(&bad).unwrap().ids(), None, "{bad}");
        }
    }

    #[test]
    fn every_mount_of_a_pod_has_its_ids() {
        let mut mounts = vec![Mount::default(), Mount::default()];
        PodIds(131_072).map(&mut mounts);
        let expect = vec![IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
        assert!(mounts.iter().all(|mount| mount.uid_mappings == expect && mount.gid_mappings == expect));
        assert_eq!(PodIds(131_072).options().mode(), NamespaceMode::Pod);
    }
}
