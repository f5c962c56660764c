//! Network configurations: conflist files, and the one that we make ourselves.

use std::path::Path;

use serde_json::Value;

use crate::error::{CniError, Code};

/// The CNI versions that we speak, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The plugins that are built in.
const BUNDLED: [&str; 2] = ["bridge", "loopback"];

/// A network configuration list (CNI 1.1 §1).
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Its CNI version.
    pub version: String,
    /// Its name: letters, digits, `_`, `.`, `-`.
    pub name: String,
    /// The plugins' own configurations, in order.
    pub plugins: Vec<Value>,
}

impl NetworkConfig {
    /// Parses a conflist, or a single plugin's conf as upstream's libcni still takes it.
    ///
    /// # Errors
    /// When it is no JSON, lacks a field, has an unknown version or an invalid name, or names a plugin that is not
    /// bundled.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| CniError::caused(Code::Decode, "parse the network configuration", error))?;
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        check_name(&name)?;
        let version = value["cniVersion"].as_str().unwrap_or("0.2.0").to_owned();
        check_version(&version)?;
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
        for plugin in &plugins {
            let kind = plugin["type"].as_str().unwrap_or_default();
            if !BUNDLED.contains(&kind) {
                let message = format!(
                    "network {name}: plugin {kind:?} is not bundled ({}), and foreign plugin binaries are not supported yet",
                    BUNDLED.join(", ")
                );
                return Err(CniError::new(Code::InvalidConfig, message));
            }
        }
        Ok(Self { version, name, plugins })
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

    /// A plugin's configuration as the plugin gets it: with the list's name and version (CNI 1.1 §3).
    #[must_use]
    pub fn plugin_config(&self, index: usize) -> Value {
        let mut config = self.plugins[index].clone();
        config["name"] = Value::from(self.name.clone());
        config["cniVersion"] = Value::from(self.version.clone());
        config
    }
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
    fn bad_configurations_are_refused_by_name() {
        for (text, wanted) in [
            ("{", "parse"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"bridge"}]}"#, "../x"),
            (r#"{"cniVersion":"9.0.0","name":"n","plugins":[{"type":"bridge"}]}"#, "9.0.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"flannel"}]}"#, "flannel"),
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
