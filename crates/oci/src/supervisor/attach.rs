//! An agent's connection that is shown a container's output. It can be slow, and it can vanish; neither the container nor its log waits.

use std::collections::BTreeMap;

use super::frame::OutputStream;
use super::peer::Peer;
use super::protocol::Attach;

/// Output that waits for a slow attachment at most; what comes beyond is left out, and the attachment is told how much.
const BACKLOG: usize = 4 << 20;

/// One attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) peer: u64,
    pub(super) request: u64,
    wants: Attach,
    left_out: u64,
}

impl Attachment {
    pub(super) fn new(peer: u64, request: u64, wants: Attach) -> Self {
        Self { peer, request, wants, left_out: 0 }
    }

    pub(super) fn has_stdin(&self) -> bool {
        self.wants.stdin
    }

    fn pass_on(&mut self, peer: &mut Peer, which: OutputStream, data: &[u8]) {
        let wanted = match which {
            OutputStream::Stdout => self.wants.stdout,
            OutputStream::Stderr => self.wants.stderr,
        };
        if !wanted {
            return;
        }
        if peer.unsent() + data.len() > BACKLOG {
            self.left_out += data.len() as u64;
            return;
        }
        if self.left_out > 0 {
            let note = format!("\r\n[podwright: {} bytes of output left out]\r\n", self.left_out);
            peer.send_output(self.request, which, note.as_bytes());
            self.left_out = 0;
        }
        peer.send_output(self.request, which, data);
    }
}

/// Shows everyone attached a piece of output.
pub(super) fn pass_on(
    attachments: &mut [Attachment],
    peers: &mut BTreeMap<u64, Peer>,
    which: OutputStream,
    data: &[u8],
) {
    for attachment in attachments {
        if let Some(peer) = peers.get_mut(&attachment.peer) {
            attachment.pass_on(peer, which, data);
        }
    }
}
