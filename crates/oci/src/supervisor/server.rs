//! The supervisor's event loop: one `poll` over every descriptor, then whatever became ready, then whatever became due.
//! What a request means is in `requests`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::attach::Attachment;
use super::child::{self, Orphans};
use super::clock::Millis;
use super::container::Container;
use super::exec::Exec;
use super::frame::{OutputStream, Payload};
use super::launcher::Launcher;
use super::output::Read;
use super::pause::Pause;
use super::peer::Peer;
use super::protocol::{Event, Ready, Reply, ServerMessage, Setup};
use super::setup::Pod;
use super::sys;

/// Full buffers taken from one busy pipe before anything else gets its turn.
const OUTPUT_TURNS: usize = 4;
/// Connections at most; one more is closed at once.
const MAX_PEERS: usize = 1024;
/// Size of the one buffer all reads go through.
const SCRATCH: usize = 16 << 10;
/// Connections accepted before anything else gets its turn.
const ACCEPT_AT_ONCE: usize = 32;
/// How long the loop looks away from new connections when it has no descriptor left for them.
const ACCEPT_PAUSE_MS: u64 = 200;
/// How long a shutdown waits for killed containers before the supervisor ends without them.
const SHUTDOWN_MS: u64 = 10_000;
/// How long after a start or an end the code for it is kept: what comes next may need it.
const REST_MS: u64 = 2000;
/// How long containers have where the machine goes down and nobody has ended them before.
const LAST_GRACE_MS: u64 = 10_000;
/// Both streams, in the order they are served.
const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// Everything a supervisor knows.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) setup: Setup,
    pub(super) ready: Ready,
    pub(super) peers: BTreeMap<u64, Peer>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) launcher: Launcher,
    /// False until some agent has asked for something.
    pub(super) adopted: bool,
    /// Something larger than usual was on the heap and is not any more.
    pub(super) heap_is_loose: bool,
    /// When the code that it ran is not worth its memory any more.
    rests_at: Option<Millis>,
    pause: Option<Pause>,
    /// Never read: it is there for those who open it by its path.
    _user_namespace: Option<OwnedFd>,
    listener: OwnedFd,
    children: OwnedFd,
    orphans: Orphans,
    accept_again: Option<Millis>,
    next_key: u64,
}

/// A shutdown under way.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// Peer and request id of everyone to answer.
    waiting: Vec<(u64, u64)>,
    until: Millis,
}

/// What a descriptor belongs to.
#[derive(Debug, Clone)]
enum Source {
    Listener,
    Children,
    Peer(u64),
    Container(String),
    ContainerOutput(String, OutputStream),
    Exec,
    ExecOutput(u64, OutputStream),
}

impl Server {
    pub(super) fn new(pod: Pod) -> Self {
        let mut agent = Peer::new(pod.agent);
        // The set-up was its greeting: both ends are the same program.
        agent.greeted = true;
        Self {
            setup: pod.setup,
            ready: pod.ready,
            peers: BTreeMap::from([(0, agent)]),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            shutdown: None,
            launcher: Launcher::new(pod.cgroups),
            adopted: false,
            heap_is_loose: true,
            rests_at: None,
            pause: pod.pause,
            _user_namespace: pod.user_namespace,
            listener: pod.listener,
            children: pod.children,
            orphans: Orphans::AllCollected,
            accept_again: None,
            next_key: 1,
        }
    }

    /// Serves until a shutdown is complete, or the agent vanishes before it has asked for anything: then nobody may ever have
    /// learned of this supervisor.
    pub(super) fn run(mut self) {
        loop {
            if std::mem::take(&mut self.heap_is_loose) {
                // After the answer, before the wait: a pod's share of memory is what it needs at rest.
                host::memory::trim_heap();
                self.rests_at = Some(Millis::now().after(REST_MS));
            }
            let ready = self.wait();
            let now = Millis::now();
            self.work(ready, now);
            if self.rests_at.is_some_and(|at| at <= now) {
                self.rests_at = None;
                // Where it fails the pod costs more memory, that is all.
                let _ = host::memory::release();
            }
            if self.shutdown_is_complete(now) || (!self.adopted && self.peers.is_empty()) {
                return self.end();
            }
        }
    }

    /// What has come. Not inlined: the scratch memory lies on a part of the stack that is given back at rest.
    #[inline(never)]
    fn work(&mut self, ready: Vec<Source>, now: Millis) {
        let mut scratch = [0; SCRATCH];
        for source in ready {
            self.serve(source, now, &mut scratch);
        }
        self.advance(now, &mut scratch);
    }

    fn end(mut self) {
        if let Some(pause) = &self.pause {
            pause.end();
        }
        super::setup::remove_socket(&self.setup.directory);
        for (key, id) in self.shutdown.into_iter().flat_map(|shutdown| shutdown.waiting) {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.send(&ServerMessage::Reply { id, reply: Reply::Done });
            }
        }
    }

    /// A key for a peer or an exec, never used twice.
    pub(super) fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Waits until something is ready or due.
    fn wait(&self) -> Vec<Source> {
        let (sources, mut descriptors) = self.interests();
        let now = Millis::now();
        let timeout = self.deadline().map(|deadline| {
            let milliseconds = deadline.since(now);
            Timespec {
                tv_sec: (milliseconds / 1000) as i64,
                tv_nsec: (milliseconds % 1000 * 1_000_000) as i64,
            }
        });
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) | Err(_) => return Vec::new(),
            Ok(_) => {}
        }
        let ready =
            sources.into_iter().zip(&descriptors).filter(|(_, descriptor)| !descriptor.revents().is_empty());
        ready.map(|(source, _)| source).collect()
    }

    /// Every descriptor the loop waits for now. Output of an exec is left in its pipe while its peer reads too slowly.
    fn interests(&self) -> (Vec<Source>, Vec<PollFd<'_>>) {
        let mut interests = Interests::default();
        if self.accept_again.is_none() {
            interests.add(Source::Listener, &self.listener, PollFlags::IN);
        }
        interests.add(Source::Children, &self.children, PollFlags::IN);
        for (key, peer) in &self.peers {
            let flags = if peer.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            interests.add(Source::Peer(*key), &peer.stream, flags);
        }
        for (id, container) in &self.containers {
            if let Some(pidfd) = container.pidfd() {
                interests.add(Source::Container(id.clone()), pidfd, PollFlags::IN);
            }
            for (which, stream) in STREAMS.into_iter().zip([&container.stdout, &container.stderr]) {
                if let Some(pipe) = &stream.pipe {
                    interests.add(Source::ContainerOutput(id.clone(), which), pipe, PollFlags::IN);
                }
            }
        }
        for (key, exec) in &self.execs {
            if let Some((_, pidfd)) = exec.process() {
                interests.add(Source::Exec, pidfd, PollFlags::IN);
            }
            let peer_reads = self.peers.get(&exec.peer).is_none_or(Peer::takes_output);
            for which in STREAMS {
                if let (Some(pipe), true) = (exec.pipe(which), peer_reads) {
                    interests.add(Source::ExecOutput(*key, which), pipe, PollFlags::IN);
                }
            }
        }
        (interests.sources, interests.descriptors)
    }

    fn deadline(&self) -> Option<Millis> {
        let containers = self.containers.values().filter_map(Container::deadline);
        let execs = self.execs.values().filter_map(Exec::deadline);
        let shutdown = self.shutdown.as_ref().map(|shutdown| shutdown.until);
        containers.chain(execs).chain(shutdown).chain(self.accept_again).chain(self.rests_at).min()
    }

    fn serve(&mut self, source: Source, now: Millis, scratch: &mut [u8]) {
        match source {
            Source::Listener => self.accept(now),
            Source::Children => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.children, &mut count);
                self.orphans = Orphans::Behind;
                if sys::machine_goes_down() && self.shutdown.is_none() {
                    self.go_down(now);
                }
            }
            Source::Peer(key) => self.serve_peer(key, now, scratch),
            Source::Container(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.observe_exit(now, &mut self.peers, scratch);
                }
            }
            Source::ContainerOutput(id, which) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    let mut turns = OUTPUT_TURNS;
                    while turns > 0
                        && container.read(which, &mut self.peers, scratch) == Read::Data(scratch.len())
                    {
                        turns -= 1;
                    }
                }
            }
            // Collected by `advance`.
            Source::Exec => {}
            Source::ExecOutput(key, which) => {
                if let Some(exec) = self.execs.get_mut(&key) {
                    exec.read(which, self.peers.get_mut(&exec.peer), scratch);
                }
            }
        }
    }

    fn accept(&mut self, now: Millis) {
        for _ in 0..ACCEPT_AT_ONCE {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) if self.peers.len() < MAX_PEERS && is_trusted(&stream) => {
                    let key = self.key();
                    self.peers.insert(key, Peer::new(stream));
                }
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.accept_again = Some(now.after(ACCEPT_PAUSE_MS)),
            }
        }
    }

    /// Reads from a connection and carries out every request that is complete.
    fn serve_peer(&mut self, key: u64, now: Millis, scratch: &mut [u8]) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.flush();
        peer.fill(scratch);
        loop {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match peer.frames.next_payload() {
                Ok(Some(Payload::Json(json))) => {
                    let message = super::requests::parse(json);
                    self.handle(key, message, now);
                }
                Ok(Some(Payload::Output { .. })) | Err(_) => return peer.give_up(),
                Ok(None) => return,
            }
        }
    }

    /// Does what has become due, tells of what has ended, and clears away what is over.
    fn advance(&mut self, now: Millis, scratch: &mut [u8]) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
        }
        let mut exited = Vec::new();
        for (id, container) in &mut self.containers {
            if let Some(exit) = container.advance(now, &mut self.peers, scratch) {
                self.heap_is_loose = true;
                for Attachment { peer, request: id, .. } in std::mem::take(&mut container.attachments) {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.send(&ServerMessage::Reply { id, reply: Reply::Detached });
                    }
                }
                exited.push(Event::Exited { container: id.clone(), exit });
            }
        }
        for event in exited {
            let message = ServerMessage::Event(event);
            for peer in self.peers.values_mut().filter(|peer| peer.subscribed) {
                peer.send(&message);
            }
        }
        let peers = &mut self.peers;
        self.execs.retain(|_, exec| {
            let mut peer = peers.get_mut(&exec.peer).filter(|peer| !peer.is_broken());
            if peer.is_none() {
                exec.kill();
            }
            let Some(result) = exec.advance(now, peer.as_deref_mut(), scratch) else { return true };
            if let Some(peer) = peer {
                peer.send(&ServerMessage::Reply { id: exec.request, reply: Reply::Exec(result) });
            }
            false
        });
        self.peers.retain(|_, peer| !peer.is_broken());
        for container in self.containers.values_mut() {
            self.heap_is_loose |= container.forget_attachments(|peer| self.peers.contains_key(&peer));
        }
        if self.orphans == Orphans::Behind {
            self.orphans = child::collect_orphans(|pid| self.tracks(pid));
        }
    }

    fn tracks(&self, pid: i32) -> bool {
        self.containers.values().any(|container| container.pidfd().is_some() && container.started.pid == pid)
            || self.execs.values().any(|exec| exec.process().is_some_and(|(running, _)| running == pid))
    }

    /// Kills everything in the pod; the answer comes when it has ended.
    pub(super) fn begin_shutdown(&mut self, peer: u64, request: u64, now: Millis) {
        for container in self.containers.values() {
            container.kill();
        }
        for exec in self.execs.values() {
            exec.kill();
        }
        let until = now.after(SHUTDOWN_MS);
        self.shutdown.get_or_insert(Shutdown { waiting: Vec::new(), until }).waiting.push((peer, request));
    }

    /// Init has told every process of the machine to end. What has not in a while is killed: the machine would wait for it, and for us.
    fn go_down(&mut self, now: Millis) {
        let deadline = now.after(LAST_GRACE_MS);
        for container in self.containers.values_mut() {
            container.kill_not_later_than(deadline);
        }
        self.shutdown = Some(Shutdown { waiting: Vec::new(), until: deadline.after(SHUTDOWN_MS) });
    }

    fn shutdown_is_complete(&self, now: Millis) -> bool {
        let Some(shutdown) = &self.shutdown else { return false };
        let running = self.containers.values().any(|container| container.status().exit.is_none());
        !running || shutdown.until <= now
    }
}

#[derive(Default)]
struct Interests<'a> {
    sources: Vec<Source>,
    descriptors: Vec<PollFd<'a>>,
}

impl<'a> Interests<'a> {
    fn add(&mut self, source: Source, descriptor: &'a OwnedFd, flags: PollFlags) {
        self.sources.push(source);
        self.descriptors.push(PollFd::new(descriptor, flags));
    }
}

/// The socket's mode lets nobody else in; this holds even if someone opens it up.
fn is_trusted(stream: &OwnedFd) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}
