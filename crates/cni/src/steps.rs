//! From a network's configuration to the plugins to run: in process, or as programs. Looks for programs, runs nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::bridge::BridgeConfig;
use crate::config::NetworkConfig;
use crate::error::{CniError, Code};
use crate::exec;
use crate::firewall::FirewallConfig;
use crate::portmap::PortmapConfig;
use crate::result::AddResult;
use crate::rules::Needs;

/// One plugin of a network.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The bundled bridge with the bundled host-local.
    Bridge(BridgeConfig),
    /// The bundled portmap.
    Portmap(PortmapConfig),
    /// The bundled firewall.
    Firewall(FirewallConfig),
    /// A program.
    Foreign {
        /// Where it is.
        program: PathBuf,
        /// Its configuration, but for the result of the plugin before it.
        config: Value,
    },
}

/// The plugins of a network, in order. `capabilities` are what the runtime offers.
///
/// # Errors
/// With the name of the plugin that is neither bundled nor a program, or the field that the bundled one does not support
/// where there is no program of that name.
pub(crate) fn steps(
    network: &NetworkConfig,
    bin_dirs: &[PathBuf],
    capabilities: &BTreeMap<String, Value>,
) -> Result<Vec<Step>, CniError> {
    each_step(network, bin_dirs, capabilities).into_iter().collect()
}

/// The same, with an error for each plugin that is not there: what can be done without it is still done.
pub(crate) fn each_step(
    network: &NetworkConfig,
    bin_dirs: &[PathBuf],
    capabilities: &BTreeMap<String, Value>,
) -> Vec<Result<Step, CniError>> {
    (0..network.plugins.len()).map(|index| step(network, index, bin_dirs, capabilities)).collect()
}

fn step(
    network: &NetworkConfig,
    index: usize,
    bin_dirs: &[PathBuf],
    capabilities: &BTreeMap<String, Value>,
) -> Result<Step, CniError> {
    let mut config = network.plugin_config(index);
    offer(&mut config, capabilities);
    let kind = config["type"].as_str().unwrap_or_default().to_owned();
    let bundled = match kind.as_str() {
        "bridge" => Some(BridgeConfig::parse(&config).map(Step::Bridge)),
        "portmap" => Some(PortmapConfig::parse(&config).map(Step::Portmap)),
        "firewall" => Some(FirewallConfig::parse(&config).map(Step::Firewall)),
        _ => None,
    };
    if let Some(Ok(step)) = bundled {
        return Ok(step);
    }
    if let Some(program) = exec::find(&kind, bin_dirs) {
        return Ok(Step::Foreign { program, config });
    }
    let dirs: Vec<String> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let missing = format!("network {}: there is no program {kind:?} in {}", network.name, dirs.join(", "));
    Err(match bundled {
        Some(Err(error)) => CniError::caused(error.code, format!("{}, and {missing}", error.message), error),
        _ => CniError::new(
            Code::InvalidConfig,
            format!("{missing}, and it is not bundled (bridge, firewall, portmap)"),
        ),
    })
}

/// CNI 1.1 §3 "runtimeConfig": only what the plugin has declared.
fn offer(config: &mut Value, capabilities: &BTreeMap<String, Value>) {
    let declared = |name: &str| config["capabilities"][name] == Value::Bool(true);
    let offered: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| declared(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(config) = config.as_object_mut() {
        config.remove("capabilities");
        if !offered.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(offered));
        }
    }
}

impl Step {
    /// Adds what this plugin needs of netfilter. `previous` is the result of the plugins before it.
    pub(crate) fn need(
        &self,
        needs: &mut Needs,
        previous: Option<&Value>,
        comment: &str,
    ) -> Result<(), CniError> {
        match self {
            Self::Bridge(bridge) if bridge.ip_masq => needs.masquerade.extend(bridge.subnets()),
            Self::Bridge(_) | Self::Foreign { .. } => {}
            Self::Portmap(portmap) => {
                if let Some(previous) = previous {
                    needs.ports.extend(portmap.ports(&AddResult::parse(previous)?, comment)?);
                }
            }
            Self::Firewall(firewall) => {
                if let Some(previous) = previous {
                    needs.forward.extend(AddResult::parse(previous)?.container_ips().map(|ip| ip.trunc()));
                    needs.admin_chains.extend(firewall.admin_chain.clone());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn network(plugins: Value) -> NetworkConfig {
        let text = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": plugins }).to_string();
        NetworkConfig::parse(&text).expect("valid")
    }

    fn bin_dir(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().expect("a directory");
        for name in names {
            let path = dir.path().join(name);
            std::fs::write(&path, "").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        let path = dir.path().to_owned();
        (dir, vec![path])
    }

    fn kinds(steps: &[Step]) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::Bridge(_) => "bundled bridge".to_owned(),
            Step::Portmap(_) => "bundled portmap".to_owned(),
            Step::Firewall(_) => "bundled firewall".to_owned(),
            Step::Foreign { program, .. } => {
                program.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        };
        steps.iter().map(name).collect()
    }

    fn bridge(extra: Value) -> Value {
        let mut config =
            json!({ "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.9.0.0/24" } });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn a_bundled_plugin_does_what_it_can_and_the_program_the_rest() {
        let (_dir, bins) = bin_dir(&["bridge", "portmap", "ptp"]);
        for (plugin, expect) in [
            (bridge(json!({})), "bundled bridge"),
            (bridge(json!({ "vlan": 5 })), "bridge"),
            (bridge(json!({ "ipam": { "type": "dhcp" } })), "bridge"),
            (json!({ "type": "portmap" }), "bundled portmap"),
            (json!({ "type": "portmap", "backend": "nftables" }), "portmap"),
            (json!({ "type": "firewall" }), "bundled firewall"),
            (json!({ "type": "ptp" }), "ptp"),
        ] {
            let found = steps(&network(json!([plugin])), &bins, &BTreeMap::new()).expect("a step");
            assert_eq!(kinds(&found), [expect], "{plugin}");
        }
    }

    #[test]
    fn what_nobody_can_do_is_told_by_name() {
        let (_dir, bins) = bin_dir(&[]);
        for (plugin, expect) in [
            (json!({ "type": "flannel" }), ["flannel", "not bundled"]),
            (bridge(json!({ "vlan": 5 })), ["vlan", "no program \"bridge\""]),
            (json!({ "type": "../sh" }), ["../sh", "not bundled"]),
        ] {
            let error =
                steps(&network(json!([plugin])), &bins, &BTreeMap::new()).expect_err("nobody").to_string();
            assert!(expect.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_plugin_gets_only_the_capabilities_that_it_declares() {
        let (_dir, bins) = bin_dir(&["ptp"]);
        let offered = BTreeMap::from([
            ("portMappings".to_owned(), json!([{ "hostPort": 1, "containerPort": 2 }])),
            ("mac".to_owned(), json!("02:00:00:00:00:01")),
        ]);
        let config = |declared: Value| {
            let network = network(json!([{ "type": "ptp", "capabilities": declared }]));
            match steps(&network, &bins, &offered).expect("a step").remove(0) {
                Step::Foreign { config, .. } => config,
                other => panic!("{other:?}"),
            }
        };
        let both = config(json!({ "mac": true, "portMappings": false, "ips": true }));
        assert_eq!(both["runtimeConfig"], json!({ "mac": "02:00:00:00:00:01" }));
        assert_eq!(both.get("capabilities"), None, "as libcni hands it over");
        assert_eq!(config(json!({})).get("runtimeConfig"), None);
    }
}
