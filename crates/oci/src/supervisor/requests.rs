//! What each request does. Answers at once, but for execs and shutdown, which end later in the event loop.

use std::os::fd::AsFd;

use host::process::pidfd_send_signal;
use serde::Deserialize;

use super::attach::Attachment;
use super::clock::Millis;
use super::container::{Container, State};
use super::exec::Exec;
use super::launcher::{self, Launched, Stdin};
use super::log::LogWriter;
use super::protocol::{
    Attach, ClientMessage, Descriptor, ErrorCode, ErrorReply, ExecContainer, ExecSession, Hello, HelloReply,
    METHODS, PidMode, Reply, Request, ServerMessage, SignalScope, StartContainer, VERSION,
};
use super::server::Server;
use crate::plan::ExecPlan;

/// Execs at once in one pod; more are refused.
const MAX_EXECS: usize = 512;
/// Containers not yet removed in one pod; more are refused.
const MAX_CONTAINERS: usize = 4096;

/// A message, or what to answer to one that is not understood, or nothing if not even its id is. Its method alone decides whether it is
/// of a newer protocol: an agent asks that of an older supervisor, and must be told it from a mistake.
pub(super) fn parse(json: &[u8]) -> Option<Result<ClientMessage, (u64, ErrorReply)>> {
    #[derive(Deserialize)]
    struct Envelope {
        id: u64,
        request: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        method: String,
    }
    let error = match serde_json::from_slice::<ClientMessage>(json) {
        Ok(message) => return Some(Ok(message)),
        Err(error) => error,
    };
    let Envelope { id, request: Named { method } } = serde_json::from_slice(json).ok()?;
    let (code, message) = if METHODS.contains(&method.as_str()) {
        (ErrorCode::BadRequest, format!("parameters of {method}: {error}"))
    } else {
        (ErrorCode::Unsupported, format!("this supervisor does not know {method:?}"))
    };
    Some(Err((id, ErrorReply { code, message })))
}

impl Server {
    /// Carries out one message of a connection. One that cannot be answered, and one before the greeting, ends the connection.
    pub(super) fn handle(
        &mut self,
        key: u64,
        message: Option<Result<ClientMessage, (u64, ErrorReply)>>,
        now: Millis,
    ) {
        let (id, outcome) = match message {
            None => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.give_up();
                }
                return;
            }
            Some(Err((id, error))) => (id, Err(error)),
            Some(Ok(ClientMessage { id, request })) => {
                let greeted = self.peers.get(&key).is_some_and(|peer| peer.greeted);
                if greeted || matches!(request, Request::Hello(_)) {
                    self.adopted = true;
                    (id, self.carry_out(key, id, request, now))
                } else {
                    (id, Err(refuse(ErrorCode::BadRequest, "the first request must be hello")))
                }
            }
        };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match outcome {
            Ok(Some(reply)) => peer.send(&ServerMessage::Reply { id, reply }),
            Ok(None) => {}
            Err(error) => peer.send(&ServerMessage::Error { id, error }),
        }
    }

    /// The reply, or nothing if it comes later.
    fn carry_out(
        &mut self,
        key: u64,
        id: u64,
        request: Request,
        now: Millis,
    ) -> Result<Option<Reply>, ErrorReply> {
        match request {
            Request::Hello(hello) => return self.greet(key, &hello).map(Some),
            Request::Subscribe {} => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.subscribed = true;
                }
            }
            Request::Start(start) => return self.start(*start).map(Some),
            Request::Exec(exec) => return self.exec(key, id, *exec, now).map(|()| None),
            Request::ExecSession(session) => return self.exec_session(key, id, *session).map(|()| None),
            Request::Attach(attach) => return self.attach(key, id, attach).map(|()| None),
            Request::CloseStdin { container } => self.container(&container)?.close_stdin(),
            Request::CancelExec { request } => {
                if let Some(exec) =
                    self.execs.values().find(|exec| (exec.peer, exec.request) == (key, request))
                {
                    exec.kill();
                }
            }
            Request::Signal { container, signal, scope } => self.signal(&container, signal, scope)?,
            Request::Stop { container, signal, grace_ms } => {
                self.signal(&container, signal, SignalScope::Init)?;
                self.container(&container)?.kill_not_later_than(now.after(grace_ms));
            }
            Request::ReopenLog { container } => self.reopen_log(&container)?,
            Request::List {} => {
                return Ok(Some(Reply::List(self.containers.values().map(Container::status).collect())));
            }
            Request::Remove { container } => self.remove(&container)?,
            Request::Shutdown {} => {
                self.begin_shutdown(key, id, now);
                return Ok(None);
            }
        }
        Ok(Some(Reply::Done))
    }

    fn greet(&mut self, key: u64, hello: &Hello) -> Result<Reply, ErrorReply> {
        let version = hello.version.min(VERSION);
        if version == 0 {
            return Err(refuse(ErrorCode::BadRequest, "there is no protocol version 0"));
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.greeted = true;
        }
        Ok(Reply::Hello(HelloReply {
            version,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            sandbox_id: self.setup.sandbox_id.clone(),
            ready: self.ready.clone(),
        }))
    }

    fn start(&mut self, start: StartContainer) -> Result<Reply, ErrorReply> {
        let id = start.container.clone();
        if start.tty != start.plan.process.terminal.is_some() {
            return Err(refuse(ErrorCode::BadRequest, "tty and the plan's terminal contradict each other"));
        }
        if self.shutdown.is_some() {
            return Err(refuse(ErrorCode::WrongState, "the pod is being shut down"));
        }
        if self.containers.contains_key(&id) {
            return Err(refuse(ErrorCode::AlreadyExists, format!("container {id} was started before")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(refuse(ErrorCode::Failed, format!("the pod has {MAX_CONTAINERS} containers")));
        }
        let log = start
            .log
            .clone()
            .map(LogWriter::open)
            .transpose()
            .map_err(|error| refuse(ErrorCode::Failed, format!("open log of container {id}: {error}")))?;
        let launched = self.launcher.start(&start.plan, stdin_if(start.stdin))?;
        let cgroup = self.launcher.cgroup(&start.plan);
        let exec_target = launcher::exec_target(&launched, &start.plan)?;
        let outlives_init = self.setup.namespaces.pid != PidMode::Container;
        let container = Container::new(start, launched, log, cgroup, exec_target, outlives_init);
        let started = container.started;
        self.containers.insert(id, container);
        self.heap_is_loose = true;
        Ok(Reply::Started(started))
    }

    fn exec(&mut self, key: u64, id: u64, request: ExecContainer, now: Millis) -> Result<(), ErrorReply> {
        let ExecContainer { container: name, plan, timeout_ms } = request;
        if plan.process.terminal.is_some() {
            return Err(refuse(ErrorCode::BadRequest, "a command with a terminal needs a session"));
        }
        let launched = self.launch_exec(&name, &plan, Stdin::Null)?;
        let time_limit = timeout_ms.map(|milliseconds| now.after(milliseconds));
        let exec = Exec::new(key, id, launched, time_limit);
        let exec_key = self.key();
        self.execs.insert(exec_key, exec);
        Ok(())
    }

    fn exec_session(&mut self, key: u64, id: u64, request: ExecSession) -> Result<(), ErrorReply> {
        let launched = self.launch_exec(&request.container, &request.plan, stdin_if(request.stdin))?;
        let output = match launched.stderr {
            Some(_) => Descriptor::Stdout,
            None => Descriptor::Terminal,
        };
        let descriptors = [
            launched.stdin.map(|stdin| (Descriptor::Stdin, stdin)),
            Some((output, launched.stdout)),
            launched.stderr.map(|stderr| (Descriptor::Stderr, stderr)),
        ];
        let (names, descriptors): (Vec<_>, Vec<_>) = descriptors.into_iter().flatten().unzip();
        let exec_key = self.key();
        self.execs.insert(exec_key, Exec::session(key, id, launched.child));
        if let Some(peer) = self.peers.get_mut(&key) {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            peer.send_with(&ServerMessage::Reply { id, reply: Reply::Session(names) }, &borrowed);
        }
        Ok(())
    }

    fn launch_exec(&mut self, name: &str, plan: &ExecPlan, stdin: Stdin) -> Result<Launched, ErrorReply> {
        if self.execs.len() >= MAX_EXECS {
            return Err(refuse(ErrorCode::Failed, format!("{MAX_EXECS} commands run in this pod already")));
        }
        let container = self.container(name)?;
        running(container)?;
        let target = container.exec_target.clone();
        self.launcher.exec(&target, plan, stdin)
    }

    fn attach(&mut self, key: u64, id: u64, attach: Attach) -> Result<(), ErrorReply> {
        let Self { containers, peers, .. } = self;
        let Some(container) = containers.get_mut(&attach.container) else {
            return Err(unknown(&attach.container));
        };
        running(container)?;
        let (names, descriptors): (Vec<_>, Vec<_>) =
            container.input(attach.stdin).into_iter().map(|(name, fd)| (name, fd.as_fd())).unzip();
        if let Some(peer) = peers.get_mut(&key) {
            peer.send_with(&ServerMessage::Reply { id, reply: Reply::Attached(names) }, &descriptors);
        }
        container.attachments.push(Attachment::new(key, id, attach));
        Ok(())
    }

    fn signal(&mut self, name: &str, signal: i32, scope: SignalScope) -> Result<(), ErrorReply> {
        if !(1..=64).contains(&signal) {
            return Err(refuse(ErrorCode::BadRequest, format!("{signal} is not a signal")));
        }
        let container = self.container(name)?;
        let result = match (scope, container.pidfd()) {
            (SignalScope::Init, Some(pidfd)) => pidfd_send_signal(pidfd.as_fd(), signal).map(drop),
            (SignalScope::Init, None) => Ok(()),
            (SignalScope::All, _) => container.cgroup.signal_all(signal),
        };
        result.map_err(|error| refuse(ErrorCode::Failed, format!("signal container {name}: {error}")))
    }

    fn reopen_log(&mut self, name: &str) -> Result<(), ErrorReply> {
        let container = self.container(name)?;
        running(container)?;
        match &mut container.log {
            None => Ok(()),
            Some(log) => log
                .reopen()
                .map_err(|error| refuse(ErrorCode::Failed, format!("open log of container {name}: {error}"))),
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), ErrorReply> {
        match self.containers.get(name).map(|container| &container.state) {
            Some(State::Running { .. } | State::Draining { .. }) => {
                Err(refuse(ErrorCode::WrongState, format!("container {name} is running")))
            }
            Some(State::Exited(_)) | None => {
                self.containers.remove(name);
                Ok(())
            }
        }
    }

    fn container(&mut self, name: &str) -> Result<&mut Container, ErrorReply> {
        self.containers.get_mut(name).ok_or_else(|| unknown(name))
    }
}

fn stdin_if(wanted: bool) -> Stdin {
    if wanted { Stdin::Pipe } else { Stdin::Null }
}

fn unknown(container: &str) -> ErrorReply {
    refuse(ErrorCode::NotFound, format!("container {container} was not started in this pod"))
}

fn running(container: &Container) -> Result<(), ErrorReply> {
    match container.state {
        State::Running { .. } => Ok(()),
        State::Draining { .. } | State::Exited(_) => {
            Err(refuse(ErrorCode::WrongState, format!("container {} is not running", container.id)))
        }
    }
}

fn refuse(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_a_request_is_known_and_no_other() {
        // A request that is missing here is missing there, too.
        let named = |request: &Request| match request {
            Request::Hello(_) => "hello",
            Request::Subscribe {} => "subscribe",
            Request::Start(_) => "start",
            Request::Exec(_) => "exec",
            Request::CancelExec { .. } => "cancel_exec",
            Request::ExecSession(_) => "exec_session",
            Request::Attach(_) => "attach",
            Request::CloseStdin { .. } => "close_stdin",
            Request::Signal { .. } => "signal",
            Request::Stop { .. } => "stop",
            Request::ReopenLog { .. } => "reopen_log",
            Request::List {} => "list",
            Request::Remove { .. } => "remove",
            Request::Shutdown {} => "shutdown",
        };
        for method in METHODS {
            // Without parameters some are understood; the others miss them, and not the method.
            let probe = format!(r#"{{"id":1,"request":{{"method":"{method}","params":{{}}}}}}"#);
            match parse(probe.as_bytes()).unwrap() {
                Ok(message) => assert_eq!(named(&message.request), method),
                Err((_, error)) => {
                    assert!(error.message.contains("missing field"), "{method}: {}", error.message);
                }
            }
        }
    }

    #[test]
    fn messages_are_understood_refused_or_given_up_as_the_protocol_says() {
        check(r#"{"id":1,"request":{"method":"list","params":{}}}"#, "understood");
        check(r#"{"id":1,"new":2,"request":{"method":"list","params":{"new":3},"new":4}}"#, "understood");
        check(r#"{"id":1,"request":{"params":{"version":1},"method":"hello"}}"#, "understood");
        check(r#"{"id":1,"request":{"method":"levitate","params":{"height":1}}}"#, "1 Unsupported");
        check(r#"{"id":1,"request":{"method":"levitate"}}"#, "1 Unsupported");
        check(r#"{"id":2,"request":{"method":"hello"}}"#, "2 BadRequest");
        check(r#"{"id":2,"request":{"method":"remove","params":{"container":5}}}"#, "2 BadRequest");
        check(r#"{"id":"x","request":{"method":"list","params":{}}}"#, "given up");
        check(r#"{"request":{"method":"list","params":{}}}"#, "given up");
        // What is newer may have parameters of a kind that is not known either.
        check(r#"{"id":4,"request":{"method":"levitate","params":[1]}}"#, "4 Unsupported");
        check(
            r#"{"id":4,"request":{"method":"signal","params":{"container":"c","signal":1,"scope":"pod"}}}"#,
            "4 BadRequest",
        );
        check(r#"{"id":3}"#, "given up");
        check("{", "given up");
    }

    fn check(json: &str, expect: &str) {
        let outcome = match parse(json.as_bytes()) {
            None => "given up".to_owned(),
            Some(Ok(_)) => "understood".to_owned(),
            Some(Err((id, error))) => format!("{id} {:?}", error.code),
        };
        assert_eq!(outcome, expect, "{json}");
    }
}
