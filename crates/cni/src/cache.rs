//! What was added, in libcni's layout: `<dir>/results/<network>-<container>-<interface>` holds the configuration with which
//! it was added and the result, so that DEL works when the configuration has changed or is gone.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::config::NetworkConfig;
use crate::error::{CniError, Code};

/// One attachment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// With what it was added.
    pub(crate) network: NetworkConfig,
    /// The container's id.
    pub(crate) container_id: String,
    /// The interface inside.
    pub(crate) ifname: String,
    /// CNI_ARGS, as pairs.
    pub(crate) args: Vec<(String, String)>,
    /// Everything that the runtime offered as capabilities.
    pub(crate) capabilities: Value,
    /// What ADD gave; nothing when it did not come to its end.
    pub(crate) result: Option<Value>,
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({
            "kind": "cniCacheV1", "containerId": self.container_id, "ifName": self.ifname,
            "networkName": self.network.name, "config": STANDARD.encode(self.network.to_json().to_string()),
            "cniArgs": self.args, "capabilityArgs": self.capabilities, "result": self.result,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let config = STANDARD.decode(value["config"].as_str()?).ok()?;
        Some(Self {
            network: NetworkConfig::parse(std::str::from_utf8(&config).ok()?).ok()?,
            container_id: text("containerId")?,
            ifname: text("ifName")?,
            args: serde_json::from_value(value["cniArgs"].clone()).unwrap_or_default(),
            capabilities: value["capabilityArgs"].clone(),
            result: Some(value["result"].clone()).filter(|result| !result.is_null()),
        })
    }
}

/// The directory of attachments.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    results: PathBuf,
}

impl Cache {
    /// Opens the cache below `directory`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn open(directory: &Path) -> Result<Self, CniError> {
        let results = directory.join("results");
        let io = |error| CniError::caused(Code::Io, format!("create {}", results.display()), error);
        // What networks gave to whom is nobody else's business.
        host::path::make_directory(&results, 0o700).map_err(io)?;
        Ok(Self { results })
    }

    /// Writes an attachment down, replacing what was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, entry: &Entry) -> Result<(), CniError> {
        let file = self.file(entry);
        host::state_file::write_atomic(&file, entry.to_json().to_string().as_bytes(), 0o600)
            .map_err(|error| CniError::caused(Code::Io, format!("write {}", file.display()), error))
    }

    /// Forgets an attachment; one that is forgotten already is no error.
    ///
    /// # Errors
    /// When the file cannot be removed: its attachment would be taken to live.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), CniError> {
        let file = self.file(entry);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CniError::caused(Code::Io, format!("remove {}", file.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Every attachment. A file that cannot be read is none: it was torn before anything was acquired.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let Ok(files) = std::fs::read_dir(&self.results) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
        paths.sort();
        let read =
            |path: PathBuf| Entry::from_json(&serde_json::from_slice(&std::fs::read(path).ok()?).ok()?);
        paths.into_iter().filter_map(read).collect()
    }

    /// The attachments of a container's interface, of whatever network.
    pub(crate) fn of(&self, container_id: &str, ifname: &str) -> Vec<Entry> {
        let end = format!("-{container_id}-{ifname}");
        let Ok(files) = std::fs::read_dir(&self.results) else { return Vec::new() };
        let paths = files.flatten().map(|file| file.path());
        let ours = paths.filter(|path| path.to_str().is_some_and(|path| path.ends_with(&end)));
        let read =
            |path: PathBuf| Entry::from_json(&serde_json::from_slice(&std::fs::read(path).ok()?).ok()?);
        ours.filter_map(read).collect()
    }

    fn file(&self, entry: &Entry) -> PathBuf {
        self.results.join(format!("{}-{}-{}", entry.network.name, entry.container_id, entry.ifname))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_read_back_in_libcni_s_layout() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(dir.path()).expect("opened");
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp","x":1}]}"#;
        let entry = Entry {
            network: NetworkConfig::parse(text).expect("valid"),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            args: vec![("K8S_POD_NAME".into(), "web".into())],
            capabilities: json!({ "portMappings": [] }),
            result: Some(json!({ "cniVersion": "1.0.0" })),
        };
        cache.write(&entry).expect("written");
        let raw: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("results/n-c1-eth0")).expect("the file"))
                .expect("JSON");
        assert_eq!((&raw["kind"], &raw["networkName"]), (&json!("cniCacheV1"), &json!("n")));
        assert_eq!(cache.entries(), std::slice::from_ref(&entry));
        assert_eq!(cache.of("c1", "eth0"), std::slice::from_ref(&entry));
        assert_eq!(cache.of("c", "eth0"), []);
        std::fs::write(dir.path().join("results/torn"), "{").expect("written");
        assert_eq!(cache.entries().len(), 1);
        cache.remove(&entry).expect("removed");
        cache.remove(&entry).expect("removed already");
        assert_eq!(cache.entries(), []);
    }
}
