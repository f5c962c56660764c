//! Links, addresses and routes by rtnetlink: bridges, veth pairs, what lies inside a pod's network namespace.
//!
//! A handle works in the network namespace in which it was opened. Deleting veths is not offered where the namespace can
//! be dropped instead: the kernel then removes the pair in the background (20–30 ms of RCU that nobody waits for).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// Why a network operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket could be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{what}")]
    Refused {
        /// What was asked, with the name of the object.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// There is no link of that name.
    #[error("link {name} does not exist")]
    NoSuchLink {
        /// The name.
        name: String,
    },
    /// The link of that name is of another kind.
    #[error("link {name} exists and is not a {kind}; give another name or delete it")]
    OtherKind {
        /// The name.
        name: String,
        /// What was expected.
        kind: &'static str,
    },
    /// A kernel setting could not be written.
    #[error("write {value} to {path}")]
    Sysctl {
        /// Below /proc/sys.
        path: String,
        /// The value.
        value: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What is known of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub address: Vec<u8>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The index of the bridge whose port it is.
    pub controller: Option<u32>,
    /// Whether it is set up.
    pub is_up: bool,
}

/// A veth pair to make: one end here on a bridge, the other in a pod.
#[derive(Clone, Debug)]
pub struct VethPair<'a> {
    /// The name of the end that stays here.
    pub host_name: &'a str,
    /// The hardware address of the end that stays here; the kernel's choice without.
    pub host_address: Option<[u8; 6]>,
    /// The bridge's index.
    pub bridge: Option<u32>,
    /// The name in the pod: `eth0`.
    pub pod_name: &'a str,
    /// The hardware address in the pod; the kernel's choice without.
    pub pod_address: Option<[u8; 6]>,
    /// Both ends' MTU in bytes; the kernel's choice without.
    pub mtu: Option<u32>,
    /// The pod's network namespace.
    pub namespace: BorrowedFd<'a>,
}

/// An open netlink socket.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread; it stays there. Inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The link of that name.
    ///
    /// # Errors
    /// [`LinkError::NoSuchLink`] when there is none.
    pub async fn link(&self, name: &str) -> Result<Link, LinkError> {
        self.link_message(name).await.map(|message| link_of(&message))
    }

    pub(crate) async fn link_message(&self, name: &str) -> Result<LinkMessage, LinkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(LinkError::NoSuchLink { name: name.to_owned() }),
            Err(error) if is_errno(&error, libc::ENODEV) => {
                Err(LinkError::NoSuchLink { name: name.to_owned() })
            }
            Err(source) => Err(refused(format!("look up link {name}"))(source)),
        }
    }

    /// Every link, by index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, LinkError> {
        let found = self.handle.link().get().execute();
        let messages: Vec<LinkMessage> = found.try_collect().await.map_err(refused("list links"))?;
        Ok(messages.iter().map(link_of).collect())
    }

    /// Makes sure that a bridge of that name exists and is up. Its hardware address is given so that it does not change
    /// when ports come and go.
    ///
    /// # Errors
    /// [`LinkError::OtherKind`] when the name belongs to something else.
    pub async fn ensure_bridge(
        &self,
        name: &str,
        address: [u8; 6],
        mtu: Option<u32>,
    ) -> Result<Link, LinkError> {
        let existing = match self.link(name).await {
            Ok(link) => link,
            Err(LinkError::NoSuchLink { .. }) => {
                let mut message = LinkBridge::new(name).address(address.to_vec()).up();
                if let Some(mtu) = mtu {
                    message = message.mtu(mtu);
                }
                match self.handle.link().add(message.build()).execute().await {
                    // Another pod's set-up was faster.
                    Err(error) if !is_errno(&error, libc::EEXIST) => {
                        return Err(refused(format!("create bridge {name}"))(error));
                    }
                    _ => self.link(name).await?,
                }
            }
            Err(error) => return Err(error),
        };
        if !existing.is_bridge {
            return Err(LinkError::OtherKind { name: name.to_owned(), kind: "bridge" });
        }
        self.set_up(existing.index, name).await?;
        Ok(existing)
    }

    /// Makes a veth pair in one message: this end on the bridge and up, the other in the namespace and still down, because
    /// the kernel brings the peer up before the two ends know each other, and refuses that (ENOTCONN).
    ///
    /// # Errors
    /// When a name is taken or the namespace is gone.
    pub async fn create_veth(&self, pair: &VethPair<'_>) -> Result<(), LinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.pod_name)
            .setns_by_fd(pair.namespace.as_raw_fd());
        if let Some(address) = pair.pod_address {
            peer = peer.address(address.to_vec());
        }
        let mut host = LinkMessageBuilder::<LinkVeth>::new(pair.host_name, pair.pod_name).up();
        if let Some(address) = pair.host_address {
            host = host.address(address.to_vec());
        }
        if let Some(mtu) = pair.mtu {
            peer = peer.mtu(mtu);
            host = host.mtu(mtu);
        }
        if let Some(bridge) = pair.bridge {
            host = host.controller(bridge);
        }
        let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        let result = self.handle.link().add(host.build()).execute().await;
        result.map_err(refused(format!("create veth {} with peer {}", pair.host_name, pair.pod_name)))
    }

    /// Sets hairpin mode on a bridge's port: a pod then reaches itself through a Service.
    ///
    /// # Errors
    /// When the link is no bridge's port.
    pub async fn set_hairpin(&self, name: &str, on: bool) -> Result<(), LinkError> {
        let port = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)]);
        let message =
            LinkUnspec::new_with_name(name).set_port_kind(InfoPortKind::Bridge).set_port_data(port).build();
        let result = self.handle.link().set_port(message).execute().await;
        result.map_err(refused(format!("set hairpin mode of {name}")))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn set_up(&self, index: u32, name: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(message).execute().await.map_err(refused(format!("set {name} up")))
    }

    /// Deletes a link: what a stand-alone plugin must do, and removing a bridge at reset. One that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        let link = match self.link(name).await {
            Err(LinkError::NoSuchLink { .. }) => return Ok(()),
            other => other?,
        };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if !is_errno(&error, libc::ENODEV) => Err(refused(format!("delete {name}"))(error)),
            _ => Ok(()),
        }
    }

    /// Makes a link take every packet.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn set_promiscuous(&self, index: u32, name: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).promiscuous(true).build();
        let result = self.handle.link().change(message).execute().await;
        result.map_err(refused(format!("make {name} take every packet")))
    }

    /// Removes an address; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> Result<(), LinkError> {
        let message =
            self.handle.address().add(index, address.addr(), address.prefix_len()).message_mut().clone();
        match self.handle.address().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::EADDRNOTAVAIL) => {
                Err(refused(format!("remove address {address}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Adds an address with its prefix, usable at once: who gives out addresses knows that nobody else has it. One that is
    /// there already is no error.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), LinkError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Err(error) if !is_errno(&error, libc::EEXIST) => {
                Err(refused(format!("add address {address}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, LinkError> {
        let found = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = found.try_collect().await.map_err(refused("list addresses"))?;
        Ok(messages.iter().filter_map(address_of).collect())
    }

    /// Every link's addresses, with the links' indices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_addresses(&self) -> Result<Vec<(u32, IpNet)>, LinkError> {
        let found = self.handle.address().get().execute();
        let messages: Vec<AddressMessage> = found.try_collect().await.map_err(refused("list addresses"))?;
        let of_link = |message: &AddressMessage| Some((message.header.index, address_of(message)?));
        Ok(messages.iter().filter_map(of_link).collect())
    }

    /// Adds a route through a gateway; one that is there already is no error.
    ///
    /// # Errors
    /// When the gateway cannot be reached or the families differ.
    pub async fn add_route(&self, destination: IpNet, gateway: IpAddr, index: u32) -> Result<(), LinkError> {
        let message = match (destination, gateway) {
            (IpNet::V4(net), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .gateway(gateway)
                .output_interface(index)
                .build(),
            (IpNet::V6(net), IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .gateway(gateway)
                .output_interface(index)
                .build(),
            _ => {
                let what = format!("add route {destination} via {gateway}: one is IPv4, the other IPv6");
                return Err(refused(what)(rtnetlink::Error::RequestFailed));
            }
        };
        match self.handle.route().add(message).execute().await {
            Err(error) if !is_errno(&error, libc::EEXIST) => {
                Err(refused(format!("add route {destination} via {gateway}"))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a kernel setting of the calling thread's network namespace: `net/ipv4/ip_forward`, `1`.
///
/// # Errors
/// When the setting does not exist or cannot be written.
pub fn write_sysctl(path: &str, value: &str) -> Result<(), LinkError> {
    // The kernel shows the calling thread's namespace there.
    let file = Path::new("/proc/sys").join(path);
    if std::fs::read_to_string(&file).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&file, value).map_err(|source| LinkError::Sysctl {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(address?, message.header.prefix_len).ok()
}

pub(crate) fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        address: Vec::new(),
        mtu: 0,
        is_bridge: false,
        controller: None,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => link.address.clone_from(address),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                use netlink_packet_route::link::{InfoKind, LinkInfo};
                link.is_bridge = info.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}

pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |source| LinkError::Refused { what: what.into(), source }
}

pub(crate) fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}
