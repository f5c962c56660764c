//! CNI 1.1 §4 "CHECK" of the bridge: what ADD made is still there. What is compared is gathered first; the comparison is pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;

use hostnet::link::{Link, LinkError, Netlink};
use ipnet::IpNet;

use super::{BridgeConfig, ContainerEnd, host_interface, inside};
use crate::error::{CniError, Code};
use crate::result::AddResult;

/// What is found of an attachment.
#[derive(Clone, Debug, Default)]
struct Found {
    bridge: Option<Link>,
    host_end: Option<Link>,
    pod_end: Option<Link>,
    addresses: Vec<IpNet>,
    gateways: BTreeSet<(IpNet, IpAddr)>,
}

impl BridgeConfig {
    /// Compares an attachment with `result`, the end of what ADD gave.
    ///
    /// # Errors
    /// With what is missing, or when the kernel refuses to tell.
    pub async fn check(
        &self,
        netlink: &Netlink,
        end: &ContainerEnd<'_>,
        result: &AddResult,
    ) -> Result<(), CniError> {
        self.ipam.check(end.container_id, end.interface)?;
        let host_name = host_interface(end.container_id, end.interface);
        let mut found = Found {
            bridge: look_up(netlink, &self.bridge).await?,
            host_end: look_up(netlink, &host_name).await?,
            ..Found::default()
        };
        let interface = end.interface.to_owned();
        (found.pod_end, found.addresses, found.gateways) = inside(end.namespace.as_fd(), async move |pod| {
            let Some(link) = look_up(&pod, &interface).await? else { return Ok(Default::default()) };
            let addresses = pod.addresses(link.index).await?;
            Ok((Some(link), addresses, pod.gateways().await?))
        })?;
        match missing(&self.bridge, &host_name, end.interface, result, &found) {
            Some(what) => Err(CniError::new(Code::Internal, what)),
            None => Ok(()),
        }
    }
}

async fn look_up(netlink: &Netlink, name: &str) -> Result<Option<Link>, CniError> {
    match netlink.link(name).await {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::NoSuchLink { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The first thing that is not as ADD left it, from the bridge inwards.
fn missing(
    bridge: &str,
    host_name: &str,
    interface: &str,
    result: &AddResult,
    found: &Found,
) -> Option<String> {
    let Some(bridge_link) = found.bridge.as_ref().filter(|link| link.is_bridge) else {
        return Some(format!("bridge {bridge} is gone"));
    };
    let Some(host_end) = &found.host_end else {
        return Some(format!("the pod's link {host_name} is gone"));
    };
    if host_end.controller != Some(bridge_link.index) {
        return Some(format!("the pod's link {host_name} is not on bridge {bridge}"));
    }
    let Some(pod_end) = &found.pod_end else { return Some(format!("{interface} is gone from the pod")) };
    let down = [bridge_link, host_end, pod_end].into_iter().find(|link| !link.is_up);
    if let Some(down) = down {
        return Some(format!("{} is down", down.name));
    }
    let is_pods = |name: &str, sandbox: &str| name == interface && !sandbox.is_empty();
    let told = result.interfaces.iter().find(|told| is_pods(&told.name, &told.sandbox));
    let (now, then) = (super::text_of(&pod_end.address), told.map_or("", |told| told.mac.as_str()));
    if !then.is_empty() && !now.eq_ignore_ascii_case(then) {
        return Some(format!("{interface} has the hardware address {now} and not {then}"));
    }
    let of_interface = |index: Option<usize>| {
        let told = index.and_then(|index| result.interfaces.get(index));
        told.is_none_or(|told| is_pods(&told.name, &told.sandbox))
    };
    let mut addresses = result.ips.iter().filter(|ip| of_interface(ip.interface)).map(|ip| ip.address);
    if let Some(address) = addresses.find(|address| !found.addresses.contains(address)) {
        return Some(format!("{interface} does not have the address {address}"));
    }
    let lost = result.routes.iter().find(|route| !leads(route.dst, route.gw, &found.gateways));
    lost.map(|route| format!("the pod has no route to {}", route.dst))
}

fn leads(destination: IpNet, gateway: Option<IpAddr>, gateways: &BTreeSet<(IpNet, IpAddr)>) -> bool {
    gateways.iter().any(|(to, via)| *to == destination && gateway.is_none_or(|gateway| gateway == *via))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            address: vec![0x0a, 0x58, 10, 9, 0, 2],
            mtu: 1500,
            is_bridge: name == "br0",
            controller: (name == "veth1").then_some(1),
            is_up: true,
        }
    }

    fn intact() -> Found {
        Found {
            bridge: Some(link(1, "br0")),
            host_end: Some(link(2, "veth1")),
            pod_end: Some(link(3, "eth0")),
            addresses: vec!["10.9.0.2/24".parse().unwrap(), "fe80::1/64".parse().unwrap()],
            gateways: BTreeSet::from([("0.0.0.0/0".parse().unwrap(), "10.9.0.1".parse().unwrap())]),
        }
    }

    fn what_is_missing(change: impl FnOnce(&mut Found)) -> Option<String> {
        let result = AddResult::parse(&json!({
            "interfaces": [
                { "name": "br0" }, { "name": "veth1" },
                { "name": "eth0", "mac": "0A:58:0a:09:00:02", "sandbox": "/x" },
                { "name": "other0", "sandbox": "/x" },
            ],
            "ips": [
                { "address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2 },
                { "address": "10.9.9.9/24", "interface": 3 },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }],
        }));
        let mut found = intact();
        change(&mut found);
        missing("br0", "veth1", "eth0", &result.unwrap(), &found)
    }

    #[test]
    fn what_is_missing_is_told_by_name() {
        assert_eq!(what_is_missing(|_| {}), None);
        let told = [
            (what_is_missing(|found| found.bridge = None), "bridge br0 is gone"),
            (what_is_missing(|found| found.bridge = Some(link(1, "veth9"))), "bridge br0 is gone"),
            (what_is_missing(|found| found.host_end = None), "the pod's link veth1 is gone"),
            (
                what_is_missing(|found| found.bridge = Some(link(7, "br0"))),
                "the pod's link veth1 is not on bridge br0",
            ),
            (what_is_missing(|found| found.pod_end = None), "eth0 is gone from the pod"),
            (
                what_is_missing(|found| found.pod_end = Some(Link { is_up: false, ..link(3, "eth0") })),
                "eth0 is down",
            ),
            (
                what_is_missing(|found| {
                    found.pod_end = Some(Link { address: vec![2; 6], ..link(3, "eth0") })
                }),
                "eth0 has the hardware address 02:02:02:02:02:02 and not 0A:58:0a:09:00:02",
            ),
            (what_is_missing(|found| found.addresses.clear()), "eth0 does not have the address 10.9.0.2/24"),
            (what_is_missing(|found| found.gateways.clear()), "the pod has no route to 0.0.0.0/0"),
        ];
        for (found, expect) in told {
            assert_eq!(found.as_deref(), Some(expect));
        }
    }
}
