//! Tells that somebody else may have changed the tables: nftables says so by netlink, legacy iptables is asked for its
//! tables' sizes. What has really changed is for the writer to find out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use host::xtables::{Protocol, TableSize, table_size};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::Instant;

use super::programs::{Backend, OwnPrograms};
use super::ruleset::{Family, Table};

/// A stranger's changes come in bursts: they are looked at together.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the sizes of legacy tables are compared. Four system calls.
const PERIOD: Duration = Duration::from_secs(2);

/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWGEN, as in nlmsg_type.
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// NFTA_GEN_PROC_PID.
const GENERATION_PID: u16 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Watcher {
    source: Source,
    /// When what was seen is to be looked at. Kept here so that a cancelled wait loses nothing.
    due: Option<Instant>,
}

enum Source {
    /// Nothing is programmed yet, or the kernel gives no socket.
    Nothing,
    Nft(TokioSocket, Arc<OwnPrograms>),
    Legacy(Vec<Family>, Vec<Option<TableSize>>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Nft(..) => "Nft",
            Self::Legacy(..) => "Legacy",
        })
    }
}

impl Watcher {
    /// Watches nothing.
    pub(super) fn idle() -> Self {
        Self { source: Source::Nothing, due: None }
    }

    /// Goes on from what is programmed now: what was written since the last call is ours.
    pub(super) fn settle(&mut self, backend: Backend, families: Vec<Family>, own: &Arc<OwnPrograms>) {
        self.source = match (std::mem::replace(&mut self.source, Source::Nothing), backend) {
            (Source::Nft(socket, own), Backend::Nft) => Source::Nft(socket, own),
            (_, Backend::Nft) => match listen() {
                Ok(socket) => Source::Nft(socket, own.clone()),
                Err(error) => {
                    tracing::warn!(%error, "nobody will tell when somebody else flushes the rules");
                    Source::Nothing
                }
            },
            (_, Backend::Legacy) => {
                let known = sizes(&families);
                Source::Legacy(families, known)
            }
        };
    }

    /// What was wrong still is.
    pub(super) fn look_again(&mut self) {
        self.due = Some(Instant::now() + PERIOD);
    }

    /// Returns when somebody else may have changed the tables. Cancelling loses nothing.
    pub(super) async fn changed(&mut self) {
        loop {
            let due = self.due;
            let settled = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = settled => {
                    self.due = None;
                    return;
                }
                () = strangers(&mut self.source) => {
                    self.due.get_or_insert_with(|| Instant::now() + SETTLE);
                }
            }
        }
    }
}

/// Returns when somebody else has changed something.
async fn strangers(source: &mut Source) {
    match source {
        Source::Nothing => std::future::pending().await,
        Source::Nft(socket, own) => loop {
            let mut buffer = Vec::with_capacity(64 << 10);
            match socket.recv(&mut buffer).await {
                Ok(_) if generations(&buffer).all(|pid| own.contains(pid)) => {}
                // Lost messages (ENOBUFS) may have been anybody's.
                Ok(_) | Err(_) => return,
            }
        },
        Source::Legacy(families, known) => loop {
            tokio::time::sleep(PERIOD).await;
            let now = sizes(families);
            if *known != now {
                *known = now;
                return;
            }
        },
    }
}

fn listen() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(GROUP)?;
    Ok(socket)
}

fn sizes(families: &[Family]) -> Vec<Option<TableSize>> {
    let of = |family, table: Table| {
        let protocol = if family == Family::V4 { Protocol::V4 } else { Protocol::V6 };
        table_size(protocol, table.name()).ok()
    };
    families.iter().flat_map(|&family| Table::ALL.map(|table| of(family, table))).collect()
}

/// The pids of those who committed, of each "new generation" message.
fn generations(buffer: &[u8]) -> impl Iterator<Item = u32> {
    let mut pids = Vec::new();
    let mut rest = buffer;
    while let Some(header) = rest.get(..16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(message) = rest.get(..length).filter(|_| length >= 16) else { break };
        if u16::from_ne_bytes([header[4], header[5]]) == NEW_GENERATION {
            // After the netlink header comes nfgenmsg, four bytes.
            pids.extend(crate::netlink::attributes(&message[20.min(length)..]).find_map(|(kind, value)| {
                (kind == GENERATION_PID).then(|| value.try_into().ok().map(u32::from_be_bytes))?
            }));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    pids.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_committed_is_told_by_pid() {
        let mut message = Vec::new();
        message.extend(36_u32.to_ne_bytes());
        message.extend(NEW_GENERATION.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([0; 4]);
        for (kind, value) in [(1_u16, 7_u32), (GENERATION_PID, 4711)] {
            message.extend(8_u16.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value.to_be_bytes());
        }
        assert_eq!(generations(&message).collect::<Vec<_>>(), [4711]);
        assert_eq!(generations(&message[..30]).count(), 0, "a torn message is none");
    }
}
