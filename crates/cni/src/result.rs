//! What ADD gives (CNI 1.1 §5 "Success"), in every version that we speak.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{CniError, Code};

/// An interface that a plugin made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The network namespace's path; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address that a plugin gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The index of its interface in the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix.
    pub address: IpNet,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route that a plugin set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The gateway; the address's own without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// The result of ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// The interfaces, host side first.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// The routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name servers, as the IPAM plugin gave them.
    #[serde(default)]
    pub dns: Value,
}

impl AddResult {
    /// Parses what a plugin printed, of any version that we speak.
    ///
    /// # Errors
    /// When a field is not what CNI says.
    pub fn parse(value: &Value) -> Result<Self, CniError> {
        serde_json::from_value(value.clone())
            .map_err(|error| CniError::caused(Code::Decode, "parse the result of a CNI plugin", error))
    }

    /// The addresses inside the container: not those that a plugin gave to the node's own interfaces.
    pub fn container_ips(&self) -> impl Iterator<Item = IpNet> {
        let inside = |ip: &&IpConfig| {
            let interface = ip.interface.and_then(|index| self.interfaces.get(index));
            interface.is_none_or(|interface| !interface.sandbox.is_empty())
        };
        self.ips.iter().filter(inside).map(|ip| ip.address)
    }

    /// The JSON object in that version: before 1.0.0 every address tells its family.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let mut value =
            json!({ "cniVersion": version, "ips": self.ips, "routes": self.routes, "dns": self.dns });
        if !self.interfaces.is_empty() {
            value["interfaces"] = json!(self.interfaces);
        }
        if value["dns"].is_null() {
            value["dns"] = json!({});
        }
        if version.starts_with("0.")
            && let Some(ips) = value["ips"].as_array_mut()
        {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = Value::from(if config.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_node_are_not_the_container_s() {
        let value = json!({
            "cniVersion": "0.4.0", "interfaces": [{ "name": "br0" }, { "name": "eth0", "sandbox": "/x" }],
            "ips": [{ "version": "4", "address": "10.0.0.1/24", "interface": 0 },
                { "version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1 }],
        });
        let result = AddResult::parse(&value).expect("a result");
        assert_eq!(result.container_ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.0.2/24"]);
    }

    #[test]
    fn old_versions_tell_the_family_of_an_address() {
        let ip =
            IpConfig { interface: None, address: "10.0.0.2/24".parse().expect("an address"), gateway: None };
        let result = AddResult { ips: vec![ip], ..AddResult::default() };
        assert_eq!(result.to_json("0.4.0")["ips"][0]["version"], "4");
        assert_eq!(result.to_json("1.0.0")["ips"][0].get("version"), None);
        assert_eq!(result.to_json("1.1.0")["ips"][0]["address"], "10.0.0.2/24");
    }
}
