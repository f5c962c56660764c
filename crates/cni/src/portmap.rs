//! The portmap plugin: ports of the node that lead to a container. Pure; the rules are rendered by [`crate::rules`].

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::result::AddResult;

/// The plugin's fields as upstream names them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default = "yes")]
    snat: bool,
    #[serde(default)]
    masq_all: bool,
    mark_masq_bit: Option<u8>,
    external_set_mark_chain: Option<String>,
    backend: Option<String>,
    #[serde(default, rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(default, rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    #[serde(default)]
    runtime_config: Option<RuntimeConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings")]
    port_mappings: Option<Vec<Mapping>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
// Go takes names in any case, and containerd writes them in capitals.
struct Mapping {
    #[serde(default, alias = "HostPort")]
    host_port: u16,
    #[serde(alias = "ContainerPort")]
    container_port: u16,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

fn yes() -> bool {
    true
}

/// A transport protocol whose ports are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As iptables writes it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Whose connections to a mapped port come from the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masquerade {
    /// Nobody's.
    None,
    /// Those of the node's loopback, and of the container's own subnet.
    Near,
    /// Everybody's.
    All,
}

/// How what is to be masqueraded is known when it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Marking {
    /// By the connection's original port: no mark is needed.
    None,
    /// By this mark, one bit of it.
    Mark(u32),
    /// A chain marks it, and somebody else masquerades what it marks.
    Chain(String),
}

/// A port of the node that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// The protocol.
    pub(crate) protocol: Protocol,
    /// The port on the node.
    pub(crate) host_port: u16,
    /// The node's address; every one without.
    pub(crate) host_ip: Option<IpAddr>,
    /// The container's address, with its subnet.
    pub(crate) container: IpNet,
    /// The port there.
    pub(crate) container_port: u16,
    /// Whose connections are masqueraded.
    pub(crate) masquerade: Masquerade,
    /// How they are known.
    pub(crate) marking: Marking,
    /// More matches of the first packet, as iptables takes them.
    pub(crate) conditions: String,
    /// The interface of the node behind which the container is.
    pub(crate) interface: Option<String>,
    /// For people.
    pub(crate) comment: String,
}

impl HostPort {
    /// Whether both would take the same packets.
    #[must_use]
    pub(crate) fn collides_with(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(one), Some(two)) => one == two,
            _ => self.container.addr().is_ipv4() == other.container.addr().is_ipv4(),
        };
        self.protocol == other.protocol && self.host_port == other.host_port && same_address
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct PortmapConfig {
    mappings: Vec<(Protocol, Mapping, Option<IpAddr>)>,
    masquerade: Masquerade,
    marking: Marking,
    conditions_v4: String,
    conditions_v6: String,
}

impl PortmapConfig {
    /// Parses a plugin configuration with its `runtimeConfig`.
    ///
    /// # Errors
    /// With the name of the field that is wrong or not supported.
    pub(crate) fn parse(config: &Value) -> Result<Self, CniError> {
        let fields: Fields = serde_json::from_value(config.clone()).map_err(|error| {
            CniError::caused(Code::InvalidConfig, "parse the portmap configuration", error)
        })?;
        if fields.backend.as_deref().is_some_and(|backend| backend != "iptables") {
            return Err(CniError::new(Code::UnsupportedField, "portmap: backend is not supported"));
        }
        let mut mappings = Vec::new();
        for mapping in fields.runtime_config.unwrap_or_default().port_mappings.unwrap_or_default() {
            // Upstream's runtimes leave the host's port 0 where none is wanted.
            if mapping.host_port != 0 {
                mappings.push(checked(mapping)?);
            }
        }
        let masquerade = match (fields.snat, fields.masq_all) {
            (false, _) => Masquerade::None,
            (true, false) => Masquerade::Near,
            (true, true) => Masquerade::All,
        };
        Ok(Self {
            mappings,
            masquerade,
            marking: marking(fields.mark_masq_bit, fields.external_set_mark_chain)?,
            conditions_v4: words("conditionsV4", fields.conditions_v4)?,
            conditions_v6: words("conditionsV6", fields.conditions_v6)?,
        })
    }

    /// The ports of a container whose addresses `previous` tells.
    ///
    /// # Errors
    /// When it has no address that a mapping could lead to.
    pub(crate) fn ports(&self, previous: &AddResult, comment: &str) -> Result<Vec<HostPort>, CniError> {
        let interface = previous.interfaces.iter().find(|interface| interface.sandbox.is_empty());
        let mut ports = Vec::new();
        for (protocol, mapping, host_ip) in &self.mappings {
            let before = ports.len();
            for family_is_v4 in [true, false] {
                let of_family = previous.container_ips().find(|ip| ip.addr().is_ipv4() == family_is_v4);
                let fits = host_ip.is_none_or(|ip| ip.is_ipv4() == family_is_v4);
                let Some(container) = of_family.filter(|_| fits) else { continue };
                ports.push(HostPort {
                    protocol: *protocol,
                    host_port: mapping.host_port,
                    host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                    container,
                    container_port: mapping.container_port,
                    masquerade: self.masquerade,
                    marking: self.marking.clone(),
                    conditions: if family_is_v4 { &self.conditions_v4 } else { &self.conditions_v6 }.clone(),
                    interface: interface.map(|interface| interface.name.clone()),
                    comment: comment.to_owned(),
                });
            }
            if ports.len() == before {
                let message =
                    format!("host port {}: the container has no address of that family", mapping.host_port);
                return Err(CniError::new(Code::InvalidConfig, message));
            }
        }
        Ok(ports)
    }
}

fn marking(bit: Option<u8>, chain: Option<String>) -> Result<Marking, CniError> {
    let invalid = |why: String| Err(CniError::new(Code::InvalidConfig, format!("portmap: {why}")));
    let is_name = |chain: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=28).contains(&chain.len()) && !chain.starts_with('-') && chain.chars().all(plain)
    };
    match (bit, chain) {
        (None, None) => Ok(Marking::None),
        (Some(_), Some(_)) => invalid("markMasqBit and externalSetMarkChain cannot both be set".into()),
        (Some(bit), None) if bit < 32 => Ok(Marking::Mark(1 << bit)),
        (Some(bit), None) => invalid(format!("markMasqBit {bit} is not one of 0 to 31")),
        (None, Some(chain)) if is_name(&chain) => Ok(Marking::Chain(chain)),
        (None, Some(chain)) => invalid(format!("externalSetMarkChain {chain:?} is no name of a chain")),
    }
}

fn checked(mapping: Mapping) -> Result<(Protocol, Mapping, Option<IpAddr>), CniError> {
    let invalid = |why: String| {
        CniError::new(Code::InvalidConfig, format!("portmap: host port {}: {why}", mapping.host_port))
    };
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(invalid(format!("protocol {other:?} is not supported (tcp, udp)"))),
    };
    if mapping.container_port == 0 {
        return Err(invalid("it leads to port 0".into()));
    }
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid(format!("hostIP {text:?} is no address")))?),
    };
    Ok((protocol, mapping, host_ip))
}

/// Words for a line of iptables-restore, which knows quotes and comments.
fn words(name: &str, words: Option<Vec<String>>) -> Result<String, CniError> {
    let words = words.unwrap_or_default();
    let plain = |word: &String| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_graphic() && !"\"'\\#`$".contains(c))
            && word != "-j"
    };
    match words.iter().find(|word| !plain(word)) {
        Some(word) => {
            Err(CniError::new(Code::InvalidConfig, format!("portmap: {name}: {word:?} is no plain match")))
        }
        None => Ok(words.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(extra: Value, mappings: Value) -> Result<PortmapConfig, CniError> {
        let mut config = json!({ "type": "portmap", "runtimeConfig": { "portMappings": mappings } });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        PortmapConfig::parse(&config)
    }

    fn previous(ips: &[&str]) -> AddResult {
        AddResult::parse(&json!({
            "cniVersion": "1.0.0", "ips": ips.iter().map(|ip| json!({ "address": ip, "interface": 2 })).collect::<Vec<_>>(),
            "interfaces": [{ "name": "br0" }, { "name": "veth1" }, { "name": "eth0", "sandbox": "/proc/1/ns/net" }],
        }))
        .expect("a result")
    }

    #[test]
    fn a_mapping_leads_to_the_address_of_each_family() {
        let mappings = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "TCP" },
            { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1" },
            { "HostPort": 0, "ContainerPort": 90, "Protocol": "", "HostIP": "" },
        ]);
        let config = config(json!({}), mappings).expect("valid");
        let ports =
            config.ports(&previous(&["10.85.0.2/16", "fd00:85::2/64"]), "default/web").expect("ports");
        let found: Vec<String> = ports
            .iter()
            .map(|port| {
                format!(
                    "{} {}->{}:{}",
                    port.protocol.name(),
                    port.host_port,
                    port.container,
                    port.container_port
                )
            })
            .collect();
        assert_eq!(
            found,
            ["tcp 8080->10.85.0.2/16:80", "tcp 8080->fd00:85::2/64:80", "udp 53->10.85.0.2/16:5353"]
        );
        assert_eq!(ports[0].interface.as_deref(), Some("br0"));
    }

    #[test]
    fn bad_mappings_are_refused_by_name() {
        for (extra, mappings, wanted) in [
            (json!({}), json!([{ "hostPort": 1, "containerPort": 2, "protocol": "sctp" }]), "sctp"),
            (json!({}), json!([{ "hostPort": 1, "containerPort": 0 }]), "port 0"),
            (json!({}), json!([{ "hostPort": 1, "containerPort": 2, "hostIP": "x" }]), "hostIP"),
            (json!({ "markMasqBit": 32 }), json!([]), "markMasqBit 32"),
            (
                json!({ "markMasqBit": 1, "externalSetMarkChain": "X" }),
                json!([]),
                "markMasqBit and externalSetMarkChain cannot both",
            ),
            (json!({ "externalSetMarkChain": "a b" }), json!([]), "externalSetMarkChain"),
            (json!({ "externalSetMarkChain": "-F" }), json!([]), "externalSetMarkChain"),
            (json!({ "backend": "nftables" }), json!([]), "backend"),
            (json!({ "conditionsV4": ["-s", "1.2.3.4\n-A INPUT"] }), json!([]), "conditionsV4"),
        ] {
            let error = config(extra, mappings).expect_err(wanted);
            assert!(error.message.contains(wanted), "{error}");
        }
        let only_v6 = config(json!({}), json!([{ "hostPort": 1, "containerPort": 2, "hostIP": "fd00::1" }]));
        let error =
            only_v6.expect("valid").ports(&previous(&["10.85.0.2/16"]), "x").expect_err("no such family");
        assert!(error.message.contains("host port 1"), "{error}");
    }

    #[test]
    fn ports_collide_on_one_address_and_protocol() {
        let ports = |mappings| {
            config(json!({}), mappings)
                .expect("valid")
                .ports(&previous(&["10.85.0.2/16"]), "x")
                .expect("ports")
        };
        let all = ports(json!([{ "hostPort": 53, "containerPort": 53, "protocol": "udp" }]));
        for (other, expect) in [
            (json!([{ "hostPort": 53, "containerPort": 99, "protocol": "udp" }]), true),
            (
                json!([{ "hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" }]),
                true,
            ),
            (json!([{ "hostPort": 53, "containerPort": 53, "protocol": "tcp" }]), false),
            (json!([{ "hostPort": 54, "containerPort": 53, "protocol": "udp" }]), false),
        ] {
            assert_eq!(all[0].collides_with(&ports(other.clone())[0]), expect, "{other}");
        }
    }
}
