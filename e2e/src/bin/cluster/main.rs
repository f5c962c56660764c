//! A cluster to play with: `hack/cluster.sh up` runs it in the background, `down` ends it.
//!
//! It starts what it was asked for, writes how to reach it into a directory, and waits. Whatever ends it ends the cluster
//! with all its machines: see [`e2e::lab`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use e2e::cluster::{Cluster, ClusterNode, NodeKind};

struct Arguments {
    directory: PathBuf,
    nodes: usize,
    kind: NodeKind,
}

fn main() -> Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let cluster = Cluster::start()?;
    let mut nodes = Vec::new();
    for number in 1..=arguments.nodes {
        nodes.push(cluster.node(arguments.kind, &format!("node-{number}"))?);
    }
    if !nodes.is_empty() {
        cluster.run_dns()?;
    }
    write_state(&arguments.directory, &cluster, &nodes).context("write how to reach the cluster")?;
    loop {
        std::thread::park();
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let usage = "usage: cluster DIRECTORY [--nodes N] [--kind podwright|stock]";
    let directory = words.next().context(usage)?.into();
    let mut arguments = Arguments { directory, nodes: 1, kind: NodeKind::Podwright };
    while let Some(word) = words.next() {
        let value = words.next().context(usage)?;
        match (word.as_str(), value.as_str()) {
            ("--nodes", number) => arguments.nodes = number.parse().context(usage)?,
            ("--kind", "podwright") => arguments.kind = NodeKind::Podwright,
            ("--kind", "stock") => arguments.kind = NodeKind::Stock,
            _ => bail!(usage),
        }
    }
    Ok(arguments)
}

/// `machines`: name, pid to enter, directory, one machine a line; `kubeconfig`: the admin's file. Written last: `ready`.
fn write_state(directory: &Path, cluster: &Cluster, nodes: &[ClusterNode]) -> Result<()> {
    let control_plane = cluster.control_plane.machine();
    let mut machines =
        vec![("router", cluster.lab.router()), (control_plane.name.as_str(), &control_plane.host)];
    machines.extend(nodes.iter().map(|node| (node.name(), &node.machine.host)));
    let lines =
        machines.iter().map(|(name, host)| format!("{name} {} {}\n", host.pid(), host.path().display()));
    std::fs::write(directory.join("machines"), lines.collect::<String>())?;
    std::fs::copy(cluster.control_plane.pki().join("admin.conf"), directory.join("kubeconfig"))?;
    std::fs::write(directory.join("ready"), "")?;
    Ok(())
}
