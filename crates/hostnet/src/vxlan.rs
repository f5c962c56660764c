//! A VXLAN device whose peers are all written down: no multicast, nothing learned from packets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::LinkVxlan;

use crate::link::{Link, LinkError, Netlink, is_errno, link_of, refused};

/// How packets are wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan<'a> {
    /// The device's name.
    pub name: &'a str,
    /// The network's number.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The device's hardware address.
    pub address: [u8; 6],
    /// From which address of ours packets go.
    pub local: IpAddr,
    /// The index of the link by which they go.
    pub link: u32,
    /// The MTU in bytes.
    pub mtu: u32,
}

/// Another end of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// An address inside the network belongs to a hardware address.
    Neighbour(IpAddr, [u8; 6]),
    /// A hardware address is behind a host.
    Behind([u8; 6], IpAddr),
}

impl Netlink {
    /// Makes sure that the device exists as described and is up. One that differs is made anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn ensure_vxlan(&self, wanted: &Vxlan<'_>) -> Result<Link, LinkError> {
        match self.link_message(wanted.name).await {
            Ok(message) if is_made(&message, wanted) => {
                self.set_up(message.header.index, wanted.name).await?;
                return Ok(link_of(&message));
            }
            Ok(_) => self.delete(wanted.name).await?,
            Err(LinkError::NoSuchLink { .. }) => {}
            Err(error) => return Err(error),
        }
        let device = LinkVxlan::new(wanted.name, wanted.vni)
            .dev(wanted.link)
            .port(wanted.port)
            .learning(false)
            .address(wanted.address.to_vec())
            .mtu(wanted.mtu)
            .up();
        let device = match wanted.local {
            IpAddr::V4(local) => device.local(local),
            IpAddr::V6(local) => device.local6(local),
        };
        let made = self.handle().link().add(device.build()).execute().await;
        made.map_err(refused(format!("create the VXLAN device {}", wanted.name)))?;
        self.link(wanted.name).await
    }

    /// The peers that are written down for a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn peers(&self, link: u32) -> Result<BTreeSet<Peer>, LinkError> {
        let mut peers = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let found = self.handle().neighbours().get().set_address_family(family).execute();
            let messages: Vec<NeighbourMessage> =
                found.try_collect().await.map_err(refused("list neighbours"))?;
            let own = messages.iter().filter(|message| message.header.ifindex == link);
            peers.extend(own.filter_map(peer_of));
        }
        Ok(peers)
    }

    /// Writes a peer down, in place of what was known of it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn put_peer(&self, link: u32, peer: &Peer) -> Result<(), LinkError> {
        let request = match peer {
            Peer::Neighbour(ip, hardware) => {
                self.handle().neighbours().add(link, *ip).link_layer_address(hardware)
            }
            Peer::Behind(hardware, host) => self
                .handle()
                .neighbours()
                .add_bridge(link, hardware)
                .destination(*host)
                .flags(NeighbourFlags::Own),
        };
        request.replace().execute().await.map_err(refused(format!("write down {peer:?}")))
    }

    /// Forgets a peer; one that is not known is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_peer(&self, link: u32, peer: &Peer) -> Result<(), LinkError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = link;
        message.header.state = NeighbourState::Permanent;
        let inet = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        match *peer {
            Peer::Neighbour(ip, _) => {
                message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                message.attributes.push(NeighbourAttribute::Destination(inet(ip)));
            }
            Peer::Behind(hardware, host) => {
                message.header.family = AddressFamily::Bridge;
                message.header.flags = NeighbourFlags::Own;
                message.attributes.push(NeighbourAttribute::LinkLayerAddress(hardware.to_vec()));
                message.attributes.push(NeighbourAttribute::Destination(inet(host)));
            }
        }
        match self.handle().neighbours().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::ENOENT) => Err(refused(format!("forget {peer:?}"))(error)),
            _ => Ok(()),
        }
    }
}

/// Whether a device is what was asked for.
fn is_made(message: &LinkMessage, wanted: &Vxlan<'_>) -> bool {
    let link = link_of(message);
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data.as_slice()),
        _ => None,
    });
    let local = match wanted.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let parts = [
        InfoVxlan::Id(wanted.vni),
        InfoVxlan::Port(wanted.port),
        InfoVxlan::Link(wanted.link),
        InfoVxlan::Learning(false),
        local,
    ];
    link.address == wanted.address
        && link.mtu == wanted.mtu
        && data.is_some_and(|data| parts.iter().all(|part| data.contains(part)))
}

/// Only what somebody wrote down, and nothing of multicast.
fn peer_of(message: &NeighbourMessage) -> Option<Peer> {
    if !matches!(message.header.state, NeighbourState::Permanent) {
        return None;
    }
    let (mut ip, mut hardware) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                ip = Some(IpAddr::from(*address));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                ip = Some(IpAddr::from(*address));
            }
            NeighbourAttribute::LinkLayerAddress(address) => {
                hardware = <[u8; 6]>::try_from(address.as_slice()).ok();
            }
            _ => {}
        }
    }
    match message.header.family {
        AddressFamily::Bridge => Some(Peer::Behind(hardware?, ip?)),
        _ => Some(Peer::Neighbour(ip?, hardware?)),
    }
}
