//! By which ways nodes reach each other's pods, and what fits through them. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What the user asks for: `--pod-network-backend=auto|routes|vxlan`. The same on every node: a packet that one end wraps,
/// the other must unwrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Routes to neighbours, VXLAN to all others.
    #[default]
    Auto,
    /// Routes to neighbours; others are not reached.
    Routes,
    /// VXLAN to everybody: for networks that drop packets of pods.
    Vxlan,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "routes" => Ok(Self::Routes),
            "vxlan" => Ok(Self::Vxlan),
            other => Err(format!("{other:?} is not one of auto, routes, vxlan")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Routes => "routes",
            Self::Vxlan => "vxlan",
        })
    }
}

/// What VXLAN adds to a packet: Ethernet, IP, UDP and its own header.
const WRAPPING: (u32, u32) = (50, 70);

/// What fits into a wrapped packet that goes from `local` by a link.
pub(crate) fn wrapped_mtu(link_mtu: u32, local: IpAddr) -> u32 {
    link_mtu.saturating_sub(if local.is_ipv4() { WRAPPING.0 } else { WRAPPING.1 })
}

/// The MTU of pods' links on a node that has the address `local` on a link with that MTU. Room for the wrapping is left also
/// while all nodes are neighbours: pods of one bridge must not differ, and the next node may be no neighbour.
#[must_use]
pub fn pod_mtu(backend: Backend, link_mtu: u32, local: IpAddr) -> u32 {
    match backend {
        Backend::Auto | Backend::Vxlan => wrapped_mtu(link_mtu, local),
        Backend::Routes => link_mtu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_room_for_the_wrapping_unless_nothing_is_wrapped() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap());
        for (backend, local, expect) in
            [("auto", v4, 1450), ("vxlan", v4, 1450), ("vxlan", v6, 1430), ("routes", v4, 1500)]
        {
            let backend: Backend = backend.parse().unwrap();
            assert_eq!(pod_mtu(backend, 1500, local), expect, "{backend}");
        }
        assert!("host-gw".parse::<Backend>().unwrap_err().contains("auto, routes, vxlan"));
    }
}
