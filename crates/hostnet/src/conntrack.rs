//! The kernel's table of UDP flows, by ctnetlink: listing it, and deleting entries.
//!
//! A UDP client that goes on sending keeps its entry alive for good: after a Service's endpoint or a host port has changed
//! it would talk to an address that nobody has. Which entries those are is decided elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::netfilter::Family;
use crate::netlink::{attribute, push_nested};

/// Why flows could not be listed or deleted.
#[derive(Debug, thiserror::Error)]
#[error("{what} the kernel's table of connections")]
pub struct ConntrackError {
    what: &'static str,
    source: io::Error,
}

/// A tracked UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its first packet came from.
    pub source: (IpAddr, u16),
    /// Where its first packet was sent.
    pub destination: (IpAddr, u16),
    /// Who answers: another address than `destination` when that was translated.
    pub answers: (IpAddr, u16),
    /// CTA_TUPLE_ORIG as the kernel gave it: by it the entry is deleted.
    tuple: Vec<u8>,
    /// CTA_ZONE, when it is not the default one.
    zone: Option<Vec<u8>>,
    /// CTA_ID: no other entry that came to the same tuple since is deleted.
    id: Option<Vec<u8>>,
}

impl Flow {
    /// Whether its packets go elsewhere than they were sent.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.destination != self.answers
    }

    #[doc(hidden)]
    #[must_use]
    pub fn example(source: (IpAddr, u16), destination: (IpAddr, u16), answers: (IpAddr, u16)) -> Self {
        Self { source, destination, answers, tuple: Vec::new(), zone: None, id: None }
    }
}

// Of linux/netfilter/nfnetlink_conntrack.h.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const UDP: u8 = 17;

/// Every UDP flow of a family in the network namespace of the calling thread. Blocking.
///
/// # Errors
/// When the kernel has no connection tracking, or refuses.
pub fn udp_flows(family: Family) -> Result<Vec<Flow>, ConntrackError> {
    let fail = |source| ConntrackError { what: "list", source };
    let socket = open().map_err(fail)?;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    send(&socket, &request(GET, flags, family, &[])).map_err(fail)?;
    let mut flows = Vec::new();
    loop {
        let mut buffer = Vec::with_capacity(64 << 10);
        socket.recv(&mut buffer, 0).map_err(fail)?;
        for (kind, message) in messages(&buffer) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(flows),
                libc::NLMSG_ERROR => {
                    error_of(message).map_err(fail)?;
                    return Ok(flows);
                }
                _ => flows.extend(message.get(4..).and_then(parse)),
            }
        }
    }
}

/// Deletes flows; one that is gone is no error. Blocking.
///
/// # Errors
/// When the kernel refuses.
pub fn delete(flows: &[Flow]) -> Result<(), ConntrackError> {
    let fail = |source| ConntrackError { what: "delete from", source };
    if flows.is_empty() {
        return Ok(());
    }
    let socket = open().map_err(fail)?;
    for flow in flows {
        let mut attributes = Vec::new();
        push_nested(&mut attributes, TUPLE_ORIG, &flow.tuple);
        for (kind, value) in [(ZONE, &flow.zone), (ID, &flow.id)] {
            if let Some(value) = value {
                push_plain(&mut attributes, kind, value);
            }
        }
        let family = Family::of(flow.destination.0);
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        send(&socket, &request(DELETE, flags, family, &attributes)).map_err(fail)?;
        let mut buffer = Vec::with_capacity(8 << 10);
        socket.recv(&mut buffer, 0).map_err(fail)?;
        for (_, message) in messages(&buffer).filter(|(kind, _)| i32::from(*kind) == libc::NLMSG_ERROR) {
            match error_of(message) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(fail(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn send(socket: &Socket, message: &[u8]) -> io::Result<()> {
    socket.send(message, 0).map(drop)
}

fn request(kind: u16, flags: i32, family: Family, attributes: &[u8]) -> Vec<u8> {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(20 + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    // Sequence and port: one request at a time, on a socket of its own.
    message.extend([0; 8]);
    // nfgenmsg: family, version, resource.
    message.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    message.extend(attributes);
    message
}

fn push_plain(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The messages of a datagram: type, and what follows the header.
fn messages(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let header = rest.get(..16)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let message = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// NLMSG_ERROR's number; 0 acknowledges.
fn error_of(message: &[u8]) -> io::Result<()> {
    let number =
        message.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(-libc::EIO, i32::from_ne_bytes);
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}

/// A flow from its attributes; none when it is not UDP.
fn parse(attributes: &[u8]) -> Option<Flow> {
    let tuple = attribute(attributes, TUPLE_ORIG)?;
    let (source, destination) = ends(tuple)?;
    let (answers, _) = ends(attribute(attributes, TUPLE_REPLY)?)?;
    let kept = |kind| attribute(attributes, kind).map(<[u8]>::to_vec);
    Some(Flow { source, destination, answers, tuple: tuple.to_vec(), zone: kept(ZONE), id: kept(ID) })
}

type End = (IpAddr, u16);

/// From where to where a UDP tuple goes.
fn ends(tuple: &[u8]) -> Option<(End, End)> {
    let ip = attribute(tuple, TUPLE_IP)?;
    let protocol = attribute(tuple, TUPLE_PROTO)?;
    if attribute(protocol, PROTO_NUM)? != [UDP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(attribute(protocol, kind)?.try_into().ok()?));
    let address = |v4, v6| -> Option<IpAddr> {
        let v4 =
            attribute(ip, v4).and_then(|bytes| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()));
        v4.or_else(|| Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?).into()))
    };
    Some(((address(1, 3)?, port(2)?), (address(2, 4)?, port(3)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Vec<u8> {
        let (mut ip, mut proto, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        push_plain(&mut ip, 1, &source.0.octets());
        push_plain(&mut ip, 2, &destination.0.octets());
        push_plain(&mut proto, PROTO_NUM, &[protocol]);
        push_plain(&mut proto, 2, &source.1.to_be_bytes());
        push_plain(&mut proto, 3, &destination.1.to_be_bytes());
        push_nested(&mut tuple, TUPLE_IP, &ip);
        push_nested(&mut tuple, TUPLE_PROTO, &proto);
        tuple
    }

    fn entry(protocol: u8) -> Vec<u8> {
        let (client, service, pod) =
            (Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::new(10, 96, 0, 10), Ipv4Addr::new(10, 85, 0, 2));
        let mut entry = Vec::new();
        push_nested(&mut entry, TUPLE_ORIG, &tuple(protocol, (client, 40000), (service, 53)));
        push_nested(&mut entry, TUPLE_REPLY, &tuple(protocol, (pod, 5353), (client, 40000)));
        push_plain(&mut entry, ID, &[1, 2, 3, 4]);
        entry
    }

    #[test]
    fn a_translated_flow_tells_where_it_was_sent_and_who_answers() {
        let flow = parse(&entry(UDP)).expect("a flow");
        assert_eq!(flow.destination, ([10, 96, 0, 10].into(), 53));
        assert_eq!(flow.answers, ([10, 85, 0, 2].into(), 5353));
        assert!(flow.is_translated());
        assert_eq!(flow.id.as_deref(), Some(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn tcp_and_torn_entries_are_left_out() {
        assert_eq!(parse(&entry(6)), None);
        let whole = entry(UDP);
        for length in 0..whole.len() - 8 {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
    }
}
