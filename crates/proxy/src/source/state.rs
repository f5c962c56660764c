//! The file in which allocations are written down: JSON that a person can read, replaced by rename.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::allocate::Allocations;

/// What was allocated before; nothing when there is no file yet. Blocking.
pub(crate) fn read(path: &Path) -> io::Result<Option<Allocations>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes `allocations` so that a crash at any moment leaves the old file or the new one. Blocking.
pub(crate) fn write(path: &Path, allocations: &Allocations) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let aside = path.with_extension("tmp");
    let mut text = serde_json::to_vec_pretty(allocations)?;
    text.push(b'\n');
    let mut file = File::create(&aside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::allocate::Allocation;

    #[test]
    fn what_is_written_is_read_back_and_is_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/services.json");
        assert_eq!(read(&path).unwrap(), None);
        let mut allocations = Allocations::default();
        let one = Allocation {
            cluster_ips: vec![[10, 96, 0, 1].into()],
            node_ports: [("http".to_owned(), 30080)].into(),
        };
        allocations.services.insert("default/web".to_owned(), one);
        write(&path, &allocations).unwrap();
        assert_eq!(read(&path).unwrap(), Some(allocations));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"clusterIPs\": [") && text.contains("\"10.96.0.1\""), "{text}");
        assert!(text.contains("\"http\": 30080"), "{text}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        fs::write(&path, "{\"services\": 5}").unwrap();
        assert!(read(&path).is_err());
    }
}
