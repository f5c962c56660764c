//! What the kernel tells of links, addresses and routes as they change: no polling.

use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::broadcast;

use crate::link::{LinkError, link_of};

/// What a [`LinkMonitor`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The link of this name is gone.
    Vanished(String),
    /// The kernel dropped messages because nobody read them in time: look at what exists.
    Missed,
}

/// Tells which links have vanished from this namespace, until dropped.
#[derive(Debug)]
pub struct LinkMonitor {
    events: broadcast::Sender<LinkEvent>,
}

impl LinkMonitor {
    /// Starts to listen in the network namespace of the calling thread. Inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn start() -> Result<Self, LinkError> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(LinkError::Open)?;
        tokio::spawn(connection);
        let (events, _) = broadcast::channel(1024);
        tokio::spawn(forward(messages, events.clone()));
        Ok(Self { events })
    }

    /// From now on every link that vanishes. A receiver that lags is told so and must look for itself.
    #[must_use]
    pub fn vanished(&self) -> broadcast::Receiver<LinkEvent> {
        self.events.subscribe()
    }
}

/// Tells that links, addresses or routes of this namespace have changed, until dropped. Bursts are told once.
#[derive(Debug)]
pub struct NetworkMonitor {
    changes: tokio::sync::mpsc::Receiver<()>,
}

impl NetworkMonitor {
    /// Starts to listen in the network namespace of the calling thread. Inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn start() -> Result<Self, LinkError> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv6Ifaddr, Ipv6Route, Link};
        let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(LinkError::Open)?;
        tokio::spawn(connection);
        let (tell, changes) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                // One that is not read yet says the same.
                let _ = tell.try_send(());
            }
        });
        Ok(Self { changes })
    }

    /// Waits for a change. Never comes when the kernel's socket is gone.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

type Messages<A> = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, A)>;

async fn forward<A>(mut messages: Messages<A>, events: broadcast::Sender<LinkEvent>) {
    while let Some((message, _)) = messages.next().await {
        let event = match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                LinkEvent::Vanished(link_of(&link).name)
            }
            NetlinkPayload::Overrun(_) => LinkEvent::Missed,
            _ => continue,
        };
        // Without a listener nobody needs it.
        let _ = events.send(event);
    }
    tracing::error!("the kernel's messages about links have ended; who waits for one looks again and again");
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use rtnetlink::packet_core::NetlinkHeader;

    use super::*;

    #[tokio::test]
    async fn lost_messages_are_told_like_vanished_links() {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName("veth1".into()));
        let payloads = [
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link.clone())),
            NetlinkPayload::Overrun(Vec::new()),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)),
        ];
        let (queue, messages) = futures::channel::mpsc::unbounded();
        for payload in payloads {
            queue.unbounded_send((NetlinkMessage::new(NetlinkHeader::default(), payload), ())).expect("read");
        }
        drop(queue);
        let (events, mut told) = broadcast::channel(8);
        forward(messages, events).await;
        assert_eq!(told.recv().await, Ok(LinkEvent::Missed));
        assert_eq!(told.recv().await, Ok(LinkEvent::Vanished("veth1".into())));
        assert_eq!(told.recv().await, Err(broadcast::error::RecvError::Closed));
    }
}
