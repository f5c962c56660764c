//! The bundled plugins as CNI binaries, chosen by `argv[0]`: environment and standard input in, JSON out (CNI 1.1 §2).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hostnet::link::Netlink;
use serde_json::{Value, json};

use crate::alone;
use crate::bridge::{self, BridgeConfig, ContainerEnd, open_namespace};
use crate::config::{VERSIONS, check_version};
use crate::error::{CniError, Code};
use crate::firewall::FirewallConfig;
use crate::host_local::HostLocal;
use crate::loopback;
use crate::portmap::PortmapConfig;
use crate::rules::{Needs, Place};

/// What a plugin is called with.
struct Call {
    command: String,
    container_id: String,
    netns: Option<PathBuf>,
    interface: String,
    config: Value,
}

#[derive(Clone, Copy)]
enum Plugin {
    Bridge,
    HostLocal,
    Loopback,
    Portmap,
    Firewall,
}

/// Runs as the CNI plugin that `argv0` names; nothing when it names none.
#[must_use]
pub fn plugin_main(argv0: &str) -> Option<ExitCode> {
    let plugin = match Path::new(argv0).file_name()?.to_str()? {
        "bridge" => Plugin::Bridge,
        "host-local" => Plugin::HostLocal,
        "loopback" => Plugin::Loopback,
        "portmap" => Plugin::Portmap,
        "firewall" => Plugin::Firewall,
        _ => return None,
    };
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    let outcome = read_call(&mut version).and_then(|call| run(plugin, &call, &version));
    let (output, code) = match outcome {
        Ok(None) => return Some(ExitCode::SUCCESS),
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version), ExitCode::FAILURE),
    };
    #[expect(clippy::print_stdout, reason = "the CNI protocol")]
    {
        println!("{output}");
    }
    Some(code)
}

fn read_call(version: &mut String) -> Result<Call, CniError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let command = variable("CNI_COMMAND").ok_or_else(|| {
        CniError::new(
            Code::InvalidEnvironment,
            "CNI_COMMAND is not set; a CNI plugin is run by a container runtime",
        )
    })?;
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CniError::caused(Code::Io, "read the configuration from standard input", error))?;
    let config: Value = serde_json::from_str(&text).map_err(|error| {
        CniError::caused(Code::Decode, "parse the configuration on standard input", error)
    })?;
    if let Some(given) = config["cniVersion"].as_str() {
        if command != "VERSION" {
            check_version(given)?;
        }
        given.clone_into(version);
    }
    let needed = |name: &str, needed: bool| match variable(name) {
        None if needed => {
            Err(CniError::new(Code::InvalidEnvironment, format!("{name} is not set; {command} needs it")))
        }
        value => Ok(value.unwrap_or_default()),
    };
    let attachment = matches!(command.as_str(), "ADD" | "DEL" | "CHECK");
    Ok(Call {
        container_id: needed("CNI_CONTAINERID", attachment)?,
        interface: needed("CNI_IFNAME", attachment)?,
        netns: variable("CNI_NETNS").map(PathBuf::from),
        command,
        config,
    })
}

fn run(plugin: Plugin, call: &Call, version: &str) -> Result<Option<Value>, CniError> {
    match call.command.as_str() {
        "VERSION" => Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS }))),
        "ADD" => add(plugin, call, version).map(Some),
        "DEL" => del(plugin, call).map(|()| None),
        "CHECK" => check(plugin, call).map(|()| None),
        "STATUS" => Ok(None),
        "GC" => garbage_collect(plugin, call).map(|()| None),
        other => Err(CniError::new(Code::InvalidEnvironment, format!("CNI_COMMAND {other:?} is not known"))),
    }
}

fn add(plugin: Plugin, call: &Call, version: &str) -> Result<Value, CniError> {
    let result = match plugin {
        Plugin::HostLocal => ipam(call)?.add(&call.container_id, &call.interface)?,
        Plugin::Loopback => {
            let path = netns(call)?;
            loopback::add(open_namespace(path)?, &path.display().to_string())?
        }
        Plugin::Bridge => add_bridge(call)?,
        // CNI 1.1 §5: a plugin that is chained gives the result that it was given, with what it has changed.
        Plugin::Portmap | Plugin::Firewall => {
            alone::write(plugin_chains(plugin), &place(call), &needs(plugin, call)?)?;
            let mut result = previous(call)?.clone();
            result["cniVersion"] = Value::from(version);
            return Ok(result);
        }
    };
    Ok(result.to_json(version))
}

fn add_bridge(call: &Call) -> Result<crate::AddResult, CniError> {
    let config = BridgeConfig::parse(&call.config)?;
    let path = netns(call)?;
    let namespace = open_namespace(path)?;
    let (container_id, interface) = (&call.container_id, &call.interface);
    let end = ContainerEnd { container_id, interface, namespace: &namespace, path };
    block_on(async {
        let netlink = Netlink::open()?;
        let index = config.set_up_bridge(&netlink).await?;
        // Whoever is connected already holds a lease: then nothing was done here, and nothing is undone.
        let leased = config.ipam.add(container_id, interface)?;
        let connected = config.connect(&netlink, index, &end, leased).await;
        let added = match connected {
            Ok(result) => masqueraded(&config, &netlink, call).await.map(|()| result),
            Err(error) => Err(error),
        };
        if added.is_err() {
            // What went wrong first is what is told.
            let _ = config.ipam.del(container_id, interface);
        }
        added
    })
}

/// The rules of a container that is connected; without them it is not.
async fn masqueraded(config: &BridgeConfig, netlink: &Netlink, call: &Call) -> Result<(), CniError> {
    let (chains, place) = (plugin_chains(Plugin::Bridge), place(call));
    let needs = masquerade(config);
    let written = if config.ip_masq { alone::write(chains, &place, &needs) } else { Ok(()) };
    if written.is_err() {
        let _ = alone::write(chains, &place, &Needs::default());
        let _ = bridge::delete_pair(netlink, &call.container_id, &call.interface).await;
    }
    written
}

fn del(plugin: Plugin, call: &Call) -> Result<(), CniError> {
    match plugin {
        Plugin::HostLocal => ipam(call)?.del(&call.container_id, &call.interface),
        Plugin::Loopback => Ok(()),
        Plugin::Bridge => {
            let config = BridgeConfig::parse(&call.config)?;
            let rules = alone::write(plugin_chains(plugin), &place(call), &Needs::default());
            block_on(async {
                bridge::delete_pair(&Netlink::open()?, &call.container_id, &call.interface).await?;
                config.ipam.del(&call.container_id, &call.interface)
            })
            .and(rules)
        }
        Plugin::Portmap | Plugin::Firewall => {
            alone::write(plugin_chains(plugin), &place(call), &Needs::default())
        }
    }
}

/// The chains of one container's interface in one network.
fn place(call: &Call) -> Place {
    let network = call.config["name"].as_str().unwrap_or_default();
    Place::Container(bridge::fingerprint(&[network, &call.container_id, &call.interface]))
}

/// What the names of a plugin's chains begin with, before the container's fingerprint.
fn plugin_chains(plugin: Plugin) -> &'static [&'static str] {
    match plugin {
        Plugin::Bridge => &["MQ"],
        Plugin::Portmap => &["DN", "SN", "GD"],
        Plugin::Firewall => &["FW"],
        Plugin::HostLocal | Plugin::Loopback => &[],
    }
}

fn previous(call: &Call) -> Result<&Value, CniError> {
    let previous = &call.config["prevResult"];
    previous.is_object().then_some(previous).ok_or_else(|| {
        CniError::new(
            Code::InvalidConfig,
            "prevResult is missing: the plugin comes after one that makes an interface",
        )
    })
}

/// What a chained plugin needs of netfilter.
fn needs(plugin: Plugin, call: &Call) -> Result<Needs, CniError> {
    let result = crate::AddResult::parse(previous(call)?)?;
    let mut needs = Needs::default();
    match plugin {
        Plugin::Portmap => {
            needs.ports = PortmapConfig::parse(&call.config)?.ports(&result, &call.container_id)?;
        }
        Plugin::Firewall => {
            let firewall = FirewallConfig::parse(&call.config)?;
            // This container's alone: its chain goes with it.
            let host = |ip: ipnet::IpNet| ipnet::IpNet::from(ip.addr());
            needs.forward = result.container_ips().map(host).collect();
            needs.admin_chains.extend(firewall.admin_chain);
        }
        Plugin::Bridge | Plugin::HostLocal | Plugin::Loopback => {}
    }
    Ok(needs)
}

fn check(plugin: Plugin, call: &Call) -> Result<(), CniError> {
    match plugin {
        Plugin::Loopback => Ok(()),
        Plugin::Portmap | Plugin::Firewall => {
            alone::check(plugin_chains(plugin), &place(call), &needs(plugin, call)?)
        }
        Plugin::HostLocal => ipam(call)?.check(&call.container_id, &call.interface),
        Plugin::Bridge => check_bridge(call),
    }
}

fn check_bridge(call: &Call) -> Result<(), CniError> {
    let config = BridgeConfig::parse(&call.config)?;
    let path = netns(call)?;
    let namespace = open_namespace(path)?;
    let (container_id, interface) = (&call.container_id, &call.interface);
    let end = ContainerEnd { container_id, interface, namespace: &namespace, path };
    let result = crate::AddResult::parse(previous(call)?)?;
    block_on(async { config.check(&Netlink::open()?, &end, &result).await })?;
    alone::check(plugin_chains(Plugin::Bridge), &place(call), &masquerade(&config))
}

fn masquerade(config: &BridgeConfig) -> Needs {
    let subnets = config.subnets().filter(|_| config.ip_masq);
    Needs { masquerade: subnets.collect(), ..Needs::default() }
}

/// CNI 1.1 §4 "GC": what is not in `cni.dev/valid-attachments` is freed.
fn garbage_collect(plugin: Plugin, call: &Call) -> Result<(), CniError> {
    let ipam = match plugin {
        // Their rules name a container's own address: they reach nobody when it is gone, and DEL removes them.
        Plugin::Loopback | Plugin::Portmap | Plugin::Firewall => return Ok(()),
        Plugin::HostLocal => ipam(call)?,
        Plugin::Bridge => BridgeConfig::parse(&call.config)?.ipam,
    };
    let valid = call.config["cni.dev/valid-attachments"].as_array().cloned().unwrap_or_default();
    let is_valid = |id: &str, interface: &str| {
        valid.iter().any(|one| one["containerID"] == id && one["ifname"] == interface)
    };
    for lease in ipam.leases()? {
        if !is_valid(&lease.container_id, &lease.interface) {
            ipam.free(&lease)?;
        }
    }
    Ok(())
}

fn ipam(call: &Call) -> Result<HostLocal, CniError> {
    let name = call.config["name"].as_str().unwrap_or_default();
    HostLocal::parse(name, &call.config["ipam"], &call.config["runtimeConfig"])
}

fn netns(call: &Call) -> Result<&Path, CniError> {
    call.netns.as_deref().ok_or_else(|| {
        let message = format!("CNI_NETNS is not set; {} needs it", call.command);
        CniError::new(Code::InvalidEnvironment, message)
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_io().build();
    tokio.map_err(|error| CniError::caused(Code::Io, "start", error))?.block_on(work)
}
