//! Network configurations: conflist files, and the one that we make ourselves.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{CniError, Code};

/// The CNI versions that we speak, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network configuration list (CNI 1.1 §1).
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Its CNI version.
    pub version: String,
    /// Its name: letters, digits, `_`, `.`, `-`.
    pub name: String,
    /// Whether plugins are never asked to collect garbage.
    pub disable_gc: bool,
    /// Whether plugins are never asked to check an attachment.
    pub disable_check: bool,
    /// The plugins' own configurations, in order.
    pub plugins: Vec<Value>,
}

impl NetworkConfig {
    /// Parses a conflist, or a single plugin's conf as upstream's libcni still takes it.
    ///
    /// # Errors
    /// When it is no JSON, lacks a field, has an unknown version or an invalid name.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| CniError::caused(Code::Decode, "parse the network configuration", error))?;
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        check_name(&name)?;
        let version = version_of(&value)?;
        let disable_gc = value["disableGC"].as_bool().unwrap_or_default();
        let disable_check = value["disableCheck"].as_bool().unwrap_or_default();
        let plugins = match value.get("plugins") {
            Some(Value::Array(plugins)) if !plugins.is_empty() => plugins.clone(),
            Some(_) => {
                return Err(CniError::new(
                    Code::InvalidConfig,
                    format!("network {name}: plugins is not a list with entries"),
                ));
            }
            None => vec![value],
        };
        if let Some(plugin) = plugins.iter().find(|plugin| plugin["type"].as_str().is_none_or(str::is_empty))
        {
            let message = format!("network {name}: a plugin has no type: {plugin}");
            return Err(CniError::new(Code::InvalidConfig, message));
        }
        Ok(Self { version, name, disable_gc, disable_check, plugins })
    }

    /// The lexically first `.conflist`, `.conf` or `.json` file of the directory; nothing when there is none.
    ///
    /// # Errors
    /// When that file cannot be read or parsed: with its path.
    pub fn first_of(directory: &Path) -> Result<Option<Self>, CniError> {
        let Ok(entries) = std::fs::read_dir(directory) else { return Ok(None) };
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            path.extension()
                .is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known))
        });
        files.sort();
        let Some(file) = files.first() else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .map_err(|error| CniError::caused(Code::Io, format!("read {}", file.display()), error))?;
        Self::parse(&text).map(Some).map_err(|error| {
            CniError::caused(error.code, format!("network configuration {}", file.display()), error)
        })
    }

    /// Whether its plugins know STATUS and GC (CNI 1.1).
    #[must_use]
    pub fn has_status_and_gc(&self) -> bool {
        self.version == "1.1.0"
    }

    /// Whether its plugins know CHECK (CNI 0.4.0).
    #[must_use]
    pub fn has_check(&self) -> bool {
        self.version != "0.3.1"
    }

    /// As a conflist.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = json!({ "cniVersion": self.version, "name": self.name, "plugins": self.plugins });
        if self.disable_gc {
            value["disableGC"] = Value::Bool(true);
        }
        if self.disable_check {
            value["disableCheck"] = Value::Bool(true);
        }
        value
    }

    /// A plugin's configuration as the plugin gets it: with the list's name and version (CNI 1.1 §3).
    #[must_use]
    pub fn plugin_config(&self, index: usize) -> Value {
        let mut config = self.plugins[index].clone();
        config["name"] = Value::from(self.name.clone());
        config["cniVersion"] = Value::from(self.version.clone());
        config
    }
}

/// CNI 1.1 §1 "cniVersions": the newest one that we speak, of those that are listed.
fn version_of(value: &Value) -> Result<String, CniError> {
    let listed = || value["cniVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let newest = VERSIONS.iter().rev().find(|known| listed().any(|version| version == **known));
    if let Some(newest) = newest {
        return Ok((*newest).to_owned());
    }
    let version = value["cniVersion"].as_str().unwrap_or("0.2.0").to_owned();
    check_version(&version).map(|()| version)
}

/// Refuses versions that we do not speak.
pub(crate) fn check_version(version: &str) -> Result<(), CniError> {
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    let message = format!("CNI version {version} is not supported; supported are {}", VERSIONS.join(", "));
    Err(CniError::new(Code::IncompatibleVersion, message))
}

/// CNI 1.1 §1: a name starts with an alphanumeric character; it becomes a directory's name.
fn check_name(name: &str) -> Result<(), CniError> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        Ok(())
    } else {
        Err(CniError::new(Code::InvalidConfig, format!("network name {name:?} is not valid")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflist_of_bundled_plugins_is_taken() {
        let config =
            NetworkConfig::parse(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#)
                .expect("valid");
        assert_eq!(config.plugin_config(0)["name"], "n");
        assert_eq!(config.plugin_config(0)["cniVersion"], "1.0.0");
    }

    #[test]
    fn the_newest_listed_version_counts_and_a_conflist_is_written_as_it_was_read() {
        let text = r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"n","disableGC":true,"disableCheck":true,"plugins":[{"type":"ptp"}]}"#;
        let config = NetworkConfig::parse(text).expect("valid");
        assert!(config.has_status_and_gc() && config.disable_gc && config.disable_check);
        assert_eq!(NetworkConfig::parse(&config.to_json().to_string()).expect("valid"), config);
    }

    #[test]
    fn bad_configurations_are_refused_by_name() {
        for (text, wanted) in [
            ("{", "parse"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"bridge"}]}"#, "../x"),
            (r#"{"cniVersion":"9.0.0","name":"n","plugins":[{"type":"bridge"}]}"#, "9.0.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":""}]}"#, "no type"),
        ] {
            let error = NetworkConfig::parse(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn the_lexically_first_file_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(NetworkConfig::first_of(directory.path()).expect("empty"), None);
        for (file, name) in [("20-b.conflist", "b"), ("10-a.conflist", "a"), ("00-x.txt", "x")] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}]}}"#);
            std::fs::write(directory.path().join(file), text).expect("written");
        }
        assert_eq!(
            NetworkConfig::first_of(directory.path()).expect("valid").map(|config| config.name),
            Some("a".into())
        );
    }
}
