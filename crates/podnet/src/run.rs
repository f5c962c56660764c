//! The loop: what the API server tells of nodes and the kernel of links becomes a plan, which is applied and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use apiserver::{Heard, Watch};
use hostnet::chain;
use hostnet::link::{LinkError, Netlink};
use hostnet::monitor::NetworkMonitor;
use hostnet::netfilter::{Owner, PerFamily, Ruleset, WriterHandle};
use k8s_openapi::api::core::v1;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::time::Instant;

use crate::apply::apply;
use crate::backend::Backend;
use crate::member::Member;
use crate::plan::{OnLink, Plan, plan};
use crate::rules::render_rules;
use crate::word::{Told, Word};

/// How the network of nodes works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which node this is.
    pub node_name: String,
    /// By which ways others are reached.
    pub backend: Backend,
}

/// Why the network cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum PodnetError {
    /// The kernel gives no netlink socket.
    #[error("watch this machine's links and routes")]
    Netlink(#[source] LinkError),
    /// The watch of nodes ended by itself, which it never does.
    #[error("the watch of nodes has ended")]
    SourceEnded,
}

/// So many nodes are asked for at once: each page is reduced before the next one comes.
const PAGE: u32 = 200;
/// A burst of events makes one round: so long after the first one.
const BURST: Duration = Duration::from_millis(100);
/// Links come and go with pods; what they may have taken along is looked for so much later.
const LATER: Duration = Duration::from_secs(1);
/// When something was refused, it is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the ways to other nodes' pods until `stop`. They stay: pods outlive the agent.
///
/// # Errors
/// When there is no netlink.
pub async fn run(
    config: Config,
    client: Client,
    writer: WriterHandle,
    stop: impl Future<Output = ()>,
) -> Result<(), PodnetError> {
    let mut shell = Shell::open(config, client, writer).map_err(PodnetError::Netlink)?;
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            went_on = shell.wait() => went_on?,
        }
        if shell.is_due() {
            shell.round().await;
        }
    }
}

/// What is known between rounds.
struct Shell {
    node_name: String,
    backend: Backend,
    nodes: Watch<v1::Node>,
    members: Members,
    netlink: Netlink,
    monitor: NetworkMonitor,
    writer: WriterHandle,
    /// When the next round is, if anything asks for one.
    due: Option<Instant>,
    written: Option<PerFamily<Ruleset>>,
    told: BTreeSet<String>,
    /// What was said of the API server.
    word: Told,
}

impl Shell {
    fn open(config: Config, client: Client, writer: WriterHandle) -> Result<Self, LinkError> {
        let all = watcher::Config::default().page_size(PAGE);
        Ok(Self {
            node_name: config.node_name,
            backend: config.backend,
            nodes: Watch::new(Api::all(client), all, "nodes"),
            members: Members::default(),
            netlink: Netlink::open()?,
            monitor: NetworkMonitor::start()?,
            writer,
            due: None,
            written: None,
            told: BTreeSet::new(),
            word: Told::default(),
        })
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self) -> Result<(), PodnetError> {
        tokio::select! {
            heard = self.nodes.next() => match heard.ok_or(PodnetError::SourceEnded)? {
                Heard::Event(event) => self.hear(event),
                Heard::State => {}
            },
            () = self.monitor.changed() => self.within(LATER),
            () = self.word.settled() => {}
            () = until(self.due) => {}
        }
        match self.word.next(self.nodes.trouble(), Instant::now()) {
            None => {}
            Some(Word::Bad { what, error }) => tracing::warn!(error, "{what}"),
            Some(Word::Good(what)) => tracing::info!("{what}"),
        }
        Ok(())
    }

    fn hear(&mut self, event: Event<v1::Node>) {
        if self.members.take(event) {
            self.within(BURST);
        }
    }

    fn within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// Plans and applies; without this node's own object and range there is nothing to plan for yet.
    async fn round(&mut self) {
        self.due = None;
        let Some((own, others)) = self.members.around(&self.node_name) else { return };
        if own.pod_cidrs.is_empty() {
            return;
        }
        let machine = match links(&self.netlink).await {
            Ok(machine) => machine,
            Err(error) => return self.tell(vec![chain(&error)]),
        };
        let plan = plan(&own, &others, &machine, self.backend);
        let mut problems: Vec<String> = plan.refused.iter().map(ToString::to_string).collect();
        // The rules come first: what begins meanwhile keeps its address for as long as it lasts.
        let mut failed: Vec<String> = self.write(&plan).await.err().into_iter().collect();
        let applied = apply(&self.netlink, &plan).await;
        failed.extend(applied.iter().map(|error| chain(error)));
        if !failed.is_empty() {
            self.within(AGAIN);
        }
        problems.extend(failed);
        self.tell(problems);
    }

    async fn write(&mut self, plan: &Plan) -> Result<(), String> {
        let rules = render_rules(&plan.own, &plan.ranges);
        if self.written.as_ref() == Some(&rules) {
            return Ok(());
        }
        let written = self.writer.submit(Owner::Podnet, rules.clone()).await;
        written.map_err(|error| chain(&error))?;
        self.written = Some(rules);
        Ok(())
    }

    /// Says in the log what is the matter, once when it appears.
    fn tell(&mut self, problems: Vec<String>) {
        let now: BTreeSet<String> = problems.into_iter().collect();
        for problem in now.difference(&self.told) {
            tracing::warn!("{problem}");
        }
        self.told = now;
    }
}

/// The cluster's nodes as last heard.
#[derive(Debug, Default)]
struct Members {
    /// None before a list was complete.
    known: Option<BTreeMap<String, Member>>,
    listing: BTreeMap<String, Member>,
}

impl Members {
    /// Takes an event in; tells whether it says anything new.
    fn take(&mut self, event: Event<v1::Node>) -> bool {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(node) => {
                let member = Member::of(&node);
                self.listing.insert(member.name.clone(), member);
            }
            Event::InitDone => {
                let listed = Some(std::mem::take(&mut self.listing));
                let is_new = self.known != listed;
                self.known = listed;
                return is_new;
            }
            Event::Apply(node) => {
                let member = Member::of(&node);
                let known = self.known.get_or_insert_default();
                return known.insert(member.name.clone(), member.clone()).as_ref() != Some(&member);
            }
            Event::Delete(node) => {
                let name = node.metadata.name.unwrap_or_default();
                return self.known.as_mut().is_some_and(|known| known.remove(&name).is_some());
            }
        }
        false
    }

    /// This node, once it is known, and the others.
    fn around(&self, own: &str) -> Option<(Member, Vec<Member>)> {
        let known = self.known.as_ref()?;
        let others = known.values().filter(|member| member.name != own).cloned().collect();
        Some((known.get(own)?.clone(), others))
    }
}

/// This machine's addresses: global ones, on links that are not the loopback.
async fn links(netlink: &Netlink) -> Result<Vec<OnLink>, LinkError> {
    let (links, addresses) = (netlink.links().await?, netlink.all_addresses().await?);
    let mtus: BTreeMap<u32, u32> = links.iter().map(|link| (link.index, link.mtu)).collect();
    let near = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        std::net::IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    };
    let global = addresses.into_iter().filter(|(_, address)| !near(address.addr()));
    Ok(global.filter_map(|(link, address)| Some(OnLink { link, mtu: *mtus.get(&link)?, address })).collect())
}

/// Never, where there is no such moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, range: &str) -> v1::Node {
        let object = serde_json::json!({ "metadata": { "name": name }, "spec": { "podCIDR": range } });
        serde_json::from_value(object).expect("a node")
    }

    #[test]
    fn nothing_is_known_of_nodes_before_all_are() {
        let mut members = Members::default();
        assert!(!members.take(Event::Init));
        assert!(!members.take(Event::InitApply(node("one", "10.244.1.0/24"))));
        assert!(members.around("one").is_none());
        assert!(members.take(Event::InitDone));
        assert!(members.around("one").is_some_and(|(_, others)| others.is_empty()));
        assert!(members.around("two").is_none(), "it is not registered yet");
        assert!(members.take(Event::Apply(node("two", "10.244.2.0/24"))));
        assert!(!members.take(Event::Apply(node("two", "10.244.2.0/24"))), "a heartbeat says nothing new");
        assert_eq!(members.around("one").map(|(_, others)| others.len()), Some(1));
        assert!(members.take(Event::Delete(node("two", "10.244.2.0/24"))));
        assert!(!members.take(Event::Delete(node("two", "10.244.2.0/24"))));
        // The same list again, as after an expired watch.
        assert!(!members.take(Event::Init) && !members.take(Event::InitApply(node("one", "10.244.1.0/24"))));
        assert!(!members.take(Event::InitDone));
    }
}
