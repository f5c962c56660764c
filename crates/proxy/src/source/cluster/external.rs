//! `spec.externalIPs`: whoever may write a Service can name any address there, and would get every node's traffic to it
//! (CVE-2020-8554). So they are served only where the node is told to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use manifest::ObjectKey;

use super::Served;
use crate::report::Problem;

/// Whether `spec.externalIPs` of Services are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// Whatever address a Service names is its own, on this node and for its pods.
    Served,
    /// They are told of by name, and traffic to them goes where it would go anyway.
    #[default]
    LeftOut,
}

impl ExternalIps {
    /// What is served of the addresses that a Service names.
    pub(super) fn of(self, service: &Served) -> BTreeSet<IpAddr> {
        match self {
            Self::Served => service.external_ips.clone(),
            Self::LeftOut => BTreeSet::new(),
        }
    }

    /// The Services that do not get what they ask for.
    pub(crate) fn problems(self, services: &BTreeMap<ObjectKey, Served>) -> Vec<Problem> {
        let asking = match self {
            Self::Served => return Vec::new(),
            Self::LeftOut => services.iter().filter(|(_, service)| !service.external_ips.is_empty()),
        };
        let problem = |(key, _): (&ObjectKey, _)| Problem {
            service: Some(key.clone()),
            field: Some("spec.externalIPs".to_owned()),
            message: "left out: whoever may write a Service could take any address with it (CVE-2020-8554); \
                      --proxy-external-ips serves them"
                .to_owned(),
        };
        asking.map(problem).collect()
    }
}
