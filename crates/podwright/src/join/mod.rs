//! `podwright join`: makes this machine a node of a cluster, then runs the agent. Nothing is written before every check has
//! passed; then everything is. Decisions are in `plan`, what is wrong in `fault`.
//!
//! Exit codes: 2 command line or JoinConfiguration; 10 nobody answers; 11 the token is unknown or has expired; 12 it has another
//! secret; 13 another certificate authority; 14 clocks; 15 the name is taken; 16 joined already; 17 no certificate; 18 what the
//! cluster tells cannot be used; 19 the API server refuses; 20 no systemd; 21 files cannot be written.

mod config;
pub(crate) mod fault;
pub(crate) mod files;
mod plan;
mod systemd;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser as _;
use kubelet::certificates::Store;
use kubelet::join::rights::{self, Right};
use kubelet::join::{Found, JoinError, Joining, by_file, by_token};

use crate::cli::{AgentArgs, Cli, Command, JoinArgs, PodNetwork};
use crate::config::{self as configuration, ConfigError};
use crate::lock::NodeLock;
use crate::node::Node;
use crate::{agent, output};
use fault::Fault;
use files::Places;
use plan::{How, Plan};

/// An approver of kubeadm's takes a second; an admin may take minutes.
const SIGNING: Duration = Duration::from_secs(5 * 60);

/// How long it is waited for what may be done without.
const ANSWER: Duration = Duration::from_secs(10);

/// Joins, then runs the agent until a signal ends it. `arguments` are those of the process.
pub(crate) fn main(args: &JoinArgs, arguments: &[OsString]) -> anyhow::Result<()> {
    let file = read_config(args.agent.config.as_deref())?;
    let plan = Plan::of(args, &file)?;
    let flags = plan::agent_flags(arguments, &file);
    let name = args.agent.node.node_name.clone().or(file.name());
    let target = Target::of(args, flags, name)?;
    if !rustix::process::geteuid().is_root() {
        bail!("a node makes namespaces, cgroups and mounts: run podwright as root");
    }
    if args.systemd && !systemd::is_running() {
        return Err(Fault::NoSystemd.into());
    }
    {
        // A running agent would not learn of new files.
        let _lock = NodeLock::take(&target.node)?;
        target.check_new()?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(join(&plan, &target))?;
    }
    if args.systemd {
        systemd::install(&target.line).context("install podwright.service")?;
        output::line("joined: podwright.service runs the agent, `systemctl status podwright` shows it");
        return Ok(());
    }
    agent::agent(&target.agent()?)
}

fn read_config(path: Option<&Path>) -> Result<config::File, ConfigError> {
    let Some(path) = path else { return Ok(config::File::default()) };
    let text = configuration::read(path)?;
    config::File::parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

/// The node that this machine becomes.
struct Target {
    node: Node,
    places: Places,
    /// The flags of `podwright agent` for this node.
    line: Vec<OsString>,
}

impl Target {
    fn of(args: &JoinArgs, flags: Vec<OsString>, name: Option<String>) -> Result<Self, ConfigError> {
        let given = parse_agent(&flags)?;
        let node = Node::here(&crate::cli::NodeArgs { node_name: name, ..given.node })?;
        let kubeconfig = args.agent.kubeconfig.clone();
        let places = Places {
            kubelet_config: node.kubelet_dir.join("config.yaml"),
            authority: kubeconfig.with_file_name("pki").join("ca.crt"),
            pki: node.kubelet_dir.join("pki"),
            static_pods: None,
            list: files::list(&node.root),
            kubeconfig,
        };
        let own = [
            ("kubeconfig", places.kubeconfig.as_os_str()),
            ("config", places.kubelet_config.as_os_str()),
            ("node-name", node.name.as_ref()),
        ];
        let own = own.map(|(flag, value)| {
            let mut text = OsString::from(format!("--{flag}="));
            text.push(value);
            text
        });
        let line = own.into_iter().chain(flags).collect();
        Ok(Self { node, places, line })
    }

    fn agent(&self) -> Result<AgentArgs, ConfigError> {
        parse_agent(&self.line)
    }

    /// A machine joins once. One whose credentials have expired may join again.
    fn check_new(&self) -> Result<(), Fault> {
        let (kubeconfig, store) = (&self.places.kubeconfig, Store::client(&self.places.pki));
        if kubelet::certificates::needs_bootstrap(kubeconfig, &store) {
            return Ok(());
        }
        let identity = store.current().ok().flatten().map(|identity| identity.leaf.name);
        let name = identity.as_deref().and_then(|user| user.strip_prefix("system:node:"));
        Err(Fault::Joined {
            name: name.unwrap_or(&self.node.name).to_owned(),
            server: kubelet::join::server_of(kubeconfig).unwrap_or_else(|| "a cluster".to_owned()),
            kubeconfig: kubeconfig.clone(),
        })
    }
}

/// The flags of `podwright agent`, where they come from a JoinConfiguration too.
fn parse_agent(flags: &[OsString]) -> Result<AgentArgs, ConfigError> {
    let line = ["podwright", "agent"].into_iter().map(OsString::from).chain(flags.iter().cloned());
    match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Command::Agent(args)) => Ok(args),
        Ok(_) => Err(ConfigError::Argument {
            name: "flags",
            value: format!("{flags:?}"),
            reason: "are not those of podwright agent",
        }),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(ConfigError::Argument {
                name: "nodeRegistration.kubeletExtraArgs",
                value: first,
                reason: "is not for podwright agent",
            })
        }
    }
}

async fn join(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let found = find(plan).await.map_err(Fault::from)?;
    tracing::info!(server = found.cluster.server, "found the cluster");
    let name = target.node.name.as_str();
    let joining = Joining { found: &found, node: name };
    joining.check_name().await.map_err(Fault::from)?;
    let text = joining.kubelet_config().await.map_err(Fault::from)?;
    let places = with_configured(&target.places, &text)?;
    if places.has_other_authority(&found.cluster) {
        return Err(Fault::OtherCluster { path: places.authority }.into());
    }
    let identity = joining.certificate(SIGNING).await.map_err(Fault::from)?;
    places.write(&found.cluster, &text, &identity, kubelet::certificates::now()).map_err(Fault::from)?;
    output::note(&format!("podwright: this machine is the node {name} of {}", found.cluster.server));
    tell_rights(&places.kubeconfig, &wanted_rights(&target.agent()?)).await;
    Ok(())
}

async fn find(plan: &Plan) -> Result<Found, JoinError> {
    match &plan.how {
        How::Token { endpoint, token, trust } => by_token(endpoint, token, trust, plan.patience).await,
        How::File { path, token } => by_file(path, token.as_ref()).await,
    }
}

/// The places that the cluster's KubeletConfiguration names, once it has been found usable.
fn with_configured(places: &Places, text: &str) -> Result<Places, Fault> {
    let unusable =
        |cause| JoinError::Unusable { what: "ConfigMap kube-system/kubelet-config".to_owned(), cause };
    let settings = configuration::kubelet_text(text).map_err(unusable)?.settings;
    settings.refuse(&configuration::Machine::here()).map_err(unusable)?;
    let authority = settings.authentication.client_ca_file.unwrap_or_else(|| places.authority.clone());
    Ok(Places { authority, static_pods: settings.static_pod_path, ..places.clone() })
}

/// What the agent's parts read that are on.
fn wanted_rights(agent: &AgentArgs) -> Vec<Right> {
    let endpoints = (agent.proxy != proxy::Mode::Off).then_some(rights::ENDPOINTS);
    let nodes = (agent.pod_network == PodNetwork::Builtin).then_some(rights::NODES);
    endpoints.into_iter().chain(nodes).collect()
}

/// A node's own credentials do not give everything that we do.
async fn tell_rights(kubeconfig: &Path, wanted: &[Right]) {
    let asked = async {
        let client = kubelet::api::connect(kubeconfig).await?;
        anyhow::Ok(rights::missing(&client, wanted).await?)
    };
    let asked = tokio::time::timeout(ANSWER, asked).await;
    match asked.unwrap_or_else(|_| bail!("the API server does not answer")) {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => {
            for right in missing {
                let what = format!("this node may not watch {}: {}", right.resource, right.purpose);
                output::note(&format!("podwright: {what}"));
            }
            output::note(
                "podwright: an admin of the cluster grants it, once for all nodes: kubectl apply -f deploy/rbac.yaml",
            );
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "what this node may is not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(flags: &[&str]) -> Vec<&'static str> {
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let agent = parse_agent(&flags).expect("flags of the agent");
        wanted_rights(&agent).iter().map(|right| right.resource).collect()
    }

    #[test]
    fn only_what_is_on_wants_rights() {
        assert_eq!(wanted(&[]), ["endpointslices"]);
        assert_eq!(wanted(&["--pod-network=builtin"]), ["endpointslices", "nodes"]);
        assert_eq!(wanted(&["--proxy=off"]), Vec::<&str>::new());
    }

    #[test]
    fn a_flag_that_the_agent_does_not_have_is_refused_by_name() {
        let fault = parse_agent(&["--cloud-provider=external".into()]).expect_err("refused").to_string();
        assert!(fault.contains("kubeletExtraArgs") && fault.contains("--cloud-provider"), "{fault}");
    }
}
