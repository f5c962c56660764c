//! The firewall plugin: what is forwarded to and from containers is accepted, whatever the node's policy is.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};

/// The plugin's fields as upstream names them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    backend: Option<String>,
    iptables_admin_chain_name: Option<String>,
    ingress_policy: Option<String>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct FirewallConfig {
    /// The chain that the administrator fills: it is asked first. None where the name is given as empty: the built-in
    /// network leaves no chain behind that it may not delete.
    pub(crate) admin_chain: Option<String>,
}

impl FirewallConfig {
    /// Parses a plugin configuration.
    ///
    /// # Errors
    /// With the name of the field that is wrong or not supported.
    pub(crate) fn parse(config: &Value) -> Result<Self, CniError> {
        let fields: Fields = serde_json::from_value(config.clone()).map_err(|error| {
            CniError::caused(Code::InvalidConfig, "parse the firewall configuration", error)
        })?;
        let other = |value: &Option<String>, known: &str| {
            value.as_deref().is_some_and(|value| !value.is_empty() && value != known)
        };
        let unsupported = [
            ("backend", other(&fields.backend, "iptables")),
            ("ingressPolicy", other(&fields.ingress_policy, "open")),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            return Err(CniError::new(Code::UnsupportedField, format!("firewall: {name} is not supported")));
        }
        let admin_chain = fields.iptables_admin_chain_name.unwrap_or_else(|| "CNI-ADMIN".to_owned());
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if admin_chain.len() > 28 || !admin_chain.chars().all(valid) {
            let message = format!("firewall: iptablesAdminChainName {admin_chain:?} is no name of a chain");
            return Err(CniError::new(Code::InvalidConfig, message));
        }
        Ok(Self { admin_chain: Some(admin_chain).filter(|name| !name.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let chain = |config| FirewallConfig::parse(&config).expect("valid").admin_chain;
        assert_eq!(chain(json!({ "type": "firewall" })).as_deref(), Some("CNI-ADMIN"));
        assert_eq!(chain(json!({ "type": "firewall", "iptablesAdminChainName": "" })), None);
        for (field, value) in
            [("backend", "firewalld"), ("ingressPolicy", "same-bridge"), ("iptablesAdminChainName", "a b")]
        {
            let error = FirewallConfig::parse(&json!({ "type": "firewall", field: value })).expect_err(field);
            assert!(error.message.contains(field), "{error}");
        }
    }
}
