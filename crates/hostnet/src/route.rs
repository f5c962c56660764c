//! Routes to ranges behind other hosts, marked as their owner's: what somebody else routes is never touched.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use rtnetlink::RouteMessageBuilder;

use crate::link::{LinkError, Netlink, is_errno, refused};

/// Who made a route: the kernel keeps the number with it (`proto 112` in `ip route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteOwner(pub u8);

/// A way to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The range.
    pub destination: IpNet,
    /// The host behind which it lies.
    pub gateway: IpAddr,
    /// The index of the link on which the gateway is.
    pub link: u32,
    /// Whether the gateway is on the link although no address of ours says so.
    pub onlink: bool,
}

impl Netlink {
    /// The routes of an owner.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self, owner: RouteOwner) -> Result<BTreeSet<Route>, LinkError> {
        let mut routes = BTreeSet::new();
        for any in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let found = self.handle().route().get(any).execute();
            let messages: Vec<RouteMessage> = found.try_collect().await.map_err(refused("list routes"))?;
            let own = messages.iter().filter(|message| u8::from(message.header.protocol) == owner.0);
            routes.extend(own.filter_map(route_of));
        }
        Ok(routes)
    }

    /// The ranges behind gateways, with these, whoever made the routes. A default route is one to every address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn gateways(&self) -> Result<BTreeSet<(IpNet, IpAddr)>, LinkError> {
        let mut gateways = BTreeSet::new();
        for any in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let found = self.handle().route().get(any).execute();
            let messages: Vec<RouteMessage> = found.try_collect().await.map_err(refused("list routes"))?;
            gateways.extend(messages.iter().filter_map(|message| {
                let gateway = gateway_of(message)?;
                Some((destination_of(message).unwrap_or_else(|| anywhere(gateway)), gateway))
            }));
        }
        Ok(gateways)
    }

    /// Makes `route` the way to its range, in place of the owner's former one among `there`.
    ///
    /// # Errors
    /// When the gateway cannot be reached, the families differ, or somebody else has a route to the range.
    pub async fn put_route(
        &self,
        owner: RouteOwner,
        route: &Route,
        there: &BTreeSet<Route>,
    ) -> Result<(), LinkError> {
        let what = format!("route {} via {}", route.destination, route.gateway);
        let Some(message) = message_of(owner, route) else {
            return Err(refused(what)(rtnetlink::Error::RequestFailed));
        };
        let request = self.handle().route().add(message);
        if there.iter().any(|former| former.destination == route.destination) {
            return request.replace().execute().await.map_err(refused(what));
        }
        match request.execute().await {
            Err(error) if is_errno(&error, libc::EEXIST) => {
                Err(refused(format!("{what}: somebody else routes that range"))(error))
            }
            done => done.map_err(refused(what)),
        }
    }

    /// Removes a route of an owner; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_route(&self, owner: RouteOwner, route: &Route) -> Result<(), LinkError> {
        let Some(message) = message_of(owner, route) else { return Ok(()) };
        match self.handle().route().del(message).execute().await {
            Err(error) if !is_errno(&error, libc::ESRCH) => {
                Err(refused(format!("remove the route to {}", route.destination))(error))
            }
            _ => Ok(()),
        }
    }
}

fn message_of(owner: RouteOwner, route: &Route) -> Option<RouteMessage> {
    let protocol = RouteProtocol::from(owner.0);
    let message = match (route.destination, route.gateway) {
        (IpNet::V4(net), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .gateway(gateway)
            .output_interface(route.link)
            .protocol(protocol),
        (IpNet::V6(net), IpAddr::V6(gateway)) => {
            let message = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .gateway(gateway)
                .output_interface(route.link)
                .protocol(protocol);
            return Some(if route.onlink { message.onlink().build() } else { message.build() });
        }
        _ => return None,
    };
    Some(if route.onlink { message.onlink().build() } else { message.build() })
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let link = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Some(Route {
        destination: destination_of(message)?,
        gateway: gateway_of(message)?,
        link: link?,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
    })
}

/// None of a default route.
fn destination_of(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    });
    IpNet::new(address?, message.header.destination_prefix_length).ok()
}

fn gateway_of(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        _ => None,
    })
}

/// Every address of the family.
#[must_use]
pub fn anywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::new_assert(IpAddr::from([0; 4]), 0),
        IpAddr::V6(_) => IpNet::new_assert(IpAddr::from([0_u16; 8]), 0),
    }
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
