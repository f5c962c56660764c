//! What is served becomes what the kernel does: the rules, and after them the UDP flows that are stale by them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostnet::chain;
use hostnet::conntrack::{self, ConntrackError};
use hostnet::netfilter::{Family, Owner, PerFamily, Ruleset, WriteError, WriterHandle};
use ipnet::IpNet;

use crate::flows::{Addresses, Territory, addresses, stale};
use crate::model::{NodeFacts, Protocol, ServiceMap};
use crate::rules::render_rules;

/// What is known of the node's network, whatever the Services are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// The addresses of Services, where they are known: a family has rules when it has a range, or Services.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// The addresses of pods, at most one range of each family.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// The node's own addresses.
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// What is known between rounds.
pub(crate) struct Programmer {
    writer: WriterHandle,
    node_ports: RangeInclusive<u16>,
    /// What the writer has; none when that is not known.
    programmed: Option<PerFamily<Ruleset>>,
    /// For which UDP Services stale flows were looked for last; none when that did not work.
    swept: Option<PerFamily<ServiceMap>>,
    /// The addresses of those, and of all since it last worked.
    former: PerFamily<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)>,
}

impl Programmer {
    pub(crate) fn new(writer: WriterHandle, node_ports: RangeInclusive<u16>) -> Self {
        Self { writer, node_ports, programmed: None, swept: None, former: PerFamily::default() }
    }

    /// Serves `services`; gives what did not work, to be tried again.
    pub(crate) async fn serve(
        &mut self,
        services: &PerFamily<ServiceMap>,
        around: &Surroundings,
    ) -> Result<(), String> {
        let rules = render(services, around);
        if let Err(error) = self.program(rules).await {
            return Err(format!("the rules of Services are not programmed: {}", chain(&error)));
        }
        // Only then: a packet that comes meanwhile must meet the new rules.
        let swept = self.sweep(services, around).await;
        swept.map_err(|error| format!("stale UDP flows of Services may be left: {}", chain(&error)))
    }

    /// Stops writing: the chains stay as they are, for whoever writes them from now on.
    pub(crate) async fn release(&mut self) -> Result<(), WriteError> {
        (self.programmed, self.swept) = (None, None);
        self.writer.release(Owner::Proxy).await
    }

    async fn program(&mut self, rules: PerFamily<Ruleset>) -> Result<(), WriteError> {
        if self.programmed.as_ref() == Some(&rules) {
            return Ok(());
        }
        self.programmed = None;
        self.writer.submit(Owner::Proxy, rules.clone()).await?;
        self.programmed = Some(rules);
        Ok(())
    }

    /// Deletes the UDP flows that no longer go to an endpoint of their Service.
    async fn sweep(
        &mut self,
        services: &PerFamily<ServiceMap>,
        around: &Surroundings,
    ) -> Result<(), ConntrackError> {
        let udp = PerFamily::from_fn(|family| only_udp(services.of(family)));
        if self.swept.as_ref() == Some(&udp) {
            return Ok(());
        }
        self.swept = None;
        for family in Family::ALL {
            let now = addresses(udp.of(family));
            let former = self.former.of_mut(family);
            former.0.extend(now.0);
            former.1.extend(now.1);
        }
        let territories = PerFamily::from_fn(|family| self.territory(family, around));
        let known = |family: &Family| {
            let services = &territories.of(*family).services;
            services.range.is_some() || !services.known.is_empty()
        };
        let families: Vec<Family> = Family::ALL.into_iter().filter(known).collect();
        let work = tokio::task::spawn_blocking(move || {
            for family in families {
                let stale = stale(&conntrack::udp_flows(family)?, udp.of(family), territories.of(family));
                if !stale.is_empty() {
                    let flows = stale.len();
                    tracing::info!(flows, "deleting UDP flows that go to no endpoint of their Service");
                }
                conntrack::delete(&stale)?;
            }
            Ok(udp)
        });
        // It panicked, or the runtime ends.
        let Ok(swept) = work.await else { return Ok(()) };
        let swept = swept?;
        self.former = PerFamily::from_fn(|family| addresses(swept.of(family)));
        self.swept = Some(swept);
        Ok(())
    }

    fn territory(&self, family: Family, around: &Surroundings) -> Territory {
        let (services, pods) = self.former.of(family).clone();
        Territory {
            services: Addresses { range: of_family(&around.service_cidrs, family), known: services },
            pods: Addresses { range: of_family(&around.pod_cidrs, family), known: pods },
            node_ports: self.node_ports.clone(),
        }
    }
}

/// A family in which there are no Services has no rules.
fn render(services: &PerFamily<ServiceMap>, around: &Surroundings) -> PerFamily<Ruleset> {
    PerFamily::from_fn(|family| {
        let served = services.of(family);
        if of_family(&around.service_cidrs, family).is_none() && served.is_empty() {
            return Ruleset::default();
        }
        let own = around.node_addresses.iter().copied();
        let node = NodeFacts {
            pod_cidr: of_family(&around.pod_cidrs, family),
            addresses: own.filter(|address| Family::of(*address) == family).collect(),
        };
        render_rules(family, served, &node)
    })
}

fn of_family(nets: &[IpNet], family: Family) -> Option<IpNet> {
    nets.iter().copied().find(|net| Family::of(net.addr()) == family)
}

fn only_udp(services: &ServiceMap) -> ServiceMap {
    let udp = services.iter().filter(|(name, _)| name.protocol == Protocol::Udp);
    udp.map(|(name, port)| (name.clone(), port.clone())).collect()
}
