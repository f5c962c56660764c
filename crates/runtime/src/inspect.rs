//! What `crictl info`, `inspect` and `inspectp` show beside the status, in the places where users of containerd look for it. Pure.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};

/// Of a container; `spec` is its `config.json`.
pub(crate) fn container(record: &ContainerRecord, spec: &Value) -> HashMap<String, String> {
    let pid = match &record.phase {
        ContainerPhase::Running { pid, .. } => *pid,
        ContainerPhase::Exited(exit) => exit.pid,
        ContainerPhase::Created | ContainerPhase::Starting => 0,
    };
    info(&json!({
        "sandboxID": record.sandbox_id, "pid": pid, "removing": false, "snapshotKey": record.id,
        "snapshotter": "overlayfs", "runtimeType": "podwright", "cgroup": record.cgroup,
        "config": record.config, "runtimeSpec": spec,
    }))
}

/// Of a sandbox; `check` is what came of looking at its network.
pub(crate) fn sandbox(record: &SandboxRecord, check: Option<String>) -> HashMap<String, String> {
    let pid = record.supervisor.as_ref().map_or(0, |process| process.pid);
    let status = match record.phase {
        SandboxPhase::Ready => "running",
        SandboxPhase::Creating => "created",
        SandboxPhase::Stopping | SandboxPhase::NotReady => "deleted",
    };
    let namespaces: Vec<Value> = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")]
        .into_iter()
        .filter(|_| pid > 0)
        .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }))
        .collect();
    info(&json!({
        "pid": pid, "processStatus": status, "netNamespaceClosed": record.supervisor.is_none(),
        "runtimeHandler": record.handler, "runtimeType": "podwright", "cniResult": network(record), "cniCheck": check,
        "cgroupParent": record.cgroup_parent, "config": record.config,
        "runtimeSpec": { "hostname": record.config.hostname, "linux": { "namespaces": namespaces } },
    }))
}

/// Addresses by interface.
fn network(record: &SandboxRecord) -> Value {
    let Some(result) = &record.network else { return Value::Null };
    let mut interfaces = Map::new();
    for (index, interface) in result.interfaces.iter().enumerate() {
        let ips: Vec<Value> = result
            .ips
            .iter()
            .filter(|ip| ip.interface == Some(index))
            .map(|ip| json!({ "IP": ip.address.addr(), "Gateway": ip.gateway }))
            .collect();
        let ips = if ips.is_empty() { Value::Null } else { ips.into() };
        let facts = json!({ "IPConfigs": ips, "Mac": interface.mac, "Sandbox": interface.sandbox });
        interfaces.insert(interface.name.clone(), facts);
    }
    json!({ "Interfaces": interfaces, "DNS": [result.dns], "Routes": result.routes })
}

/// Of the runtime. `loaded` is what came of the network's configuration.
pub(crate) fn runtime(config: &Config, network: Value, loaded: &str) -> HashMap<String, String> {
    let paths = json!({
        "root": config.root, "state": config.state, "cgroupRoot": config.cgroup_root,
        "registryConfigDir": config.registry_config_dir,
    });
    [("config", paths), ("cniconfig", network), ("lastCNILoadStatus", loaded.into())]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_string()))
        .collect()
}

fn info(facts: &Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), facts.to_string())])
}
