//! A node that is not as the others: keys of its KubeletConfiguration, and how much memory it has.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Machine;

/// The file beside a machine's configuration that holds what is special about it.
const FILE: &str = "special.json";
/// The file beside it with more flags of our agent, one a line.
const FLAGS: &str = "special.flags";

/// What is special about a node.
#[derive(Clone, Debug, Default)]
pub struct NodeSettings {
    /// Keys of the KubeletConfiguration, instead of those that every node has.
    pub kubelet: Value,
    /// The limit of the node's cgroup, in bytes.
    pub memory: Option<u64>,
    /// More flags of our agent.
    pub flags: &'static [&'static str],
    /// An address of IPv6 beside the machine's other one.
    pub ipv6: Option<&'static str>,
}

impl NodeSettings {
    /// Makes the machine ready for its node.
    pub(super) fn prepare(&self, machine: &Machine) -> Result<()> {
        std::fs::write(machine.host.path().join(FILE), self.kubelet.to_string())?;
        let mut flags: Vec<String> = self.flags.iter().map(|&flag| flag.to_owned()).collect();
        if let Some(address) = self.ipv6 {
            let net = format!("{address}/64");
            machine.host.run("ip", &["-6", "address", "add", &net, "dev", "up0", "nodad"])?;
            // Each flag that is given again adds to it.
            flags.push(format!("--node-ip={address}"));
        }
        std::fs::write(machine.host.path().join(FLAGS), flags.join("\n"))?;
        let Some(memory) = self.memory else { return Ok(()) };
        let script = format!(
            "set -e
             cd /sys/fs/cgroup
             if [ -d memory ]; then cd memory; file=memory.limit_in_bytes; else file=memory.max; fi
             mkdir -p .{0}
             echo {memory} > .{0}/$file",
            machine.cgroup
        );
        machine.host.run("bash", &["-c", &script]).context("limit the node's memory").map(drop)
    }
}

/// The configuration of the node on that machine, whatever is special about it included.
pub(super) fn special(machine: &Machine, mut config: Value) -> Value {
    let text = std::fs::read_to_string(machine.host.path().join(FILE)).unwrap_or_default();
    let keys: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    for (key, value) in keys {
        config[key] = value;
    }
    config
}

/// More flags of the agent on that machine.
pub(super) fn flags(machine: &Machine) -> Vec<String> {
    let text = std::fs::read_to_string(machine.host.path().join(FLAGS)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
