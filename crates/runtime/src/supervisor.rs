//! The agent's end of a pod supervisor: starting one, finding it again after a restart, asking it, hearing of exits and of its death.
//! It decides nothing; what an exit or a death means for a pod is the sandbox's business.

mod connection;
mod kill;
mod session;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use host::process::ProcessId;
use oci::plan::ExecPlan;
use oci::supervisor::protocol::{
    ARGV0, ContainerStatus, ErrorReply, Event, ExecContainer, ExecResult, ExitRecord, Ready, Reply, Request,
    Setup, SetupFailure, SignalScope, StartContainer, Started,
};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::kill::kill_pod;
pub use self::session::{Attached, RunningExec, Shown, Streams};

use self::connection::{Command, Connection, Exits};

/// How long a supervisor that an earlier agent started gets to answer: they answer at once, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long after an attempt that failed it is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// A live, or once live, supervisor. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Supervisor {
    ready: Ready,
    directory: Arc<Path>,
    commands: mpsc::Sender<Command>,
    next_id: Arc<AtomicU64>,
    exits: Arc<Exits>,
    dead: watch::Receiver<bool>,
}

/// What an exec printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub result: ExecResult,
    /// Standard output, up to the protocol's limit.
    pub stdout: Vec<u8>,
    /// Standard error, up to the protocol's limit.
    pub stderr: Vec<u8>,
}

/// Why no supervisor came up.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be started or talked to.
    #[error("spawn supervisor of sandbox {sandbox}")]
    Spawn {
        /// Sandbox id.
        sandbox: String,
        /// Cause.
        source: io::Error,
    },
    /// The task that started it ended before its time.
    #[error("start of a supervisor was aborted: {0}")]
    Aborted(String),
    /// It started and a step of its set-up went wrong; nothing of it remains.
    #[error("set up sandbox {sandbox}: {}: {}", failure.phase, failure.message)]
    Setup {
        /// Sandbox id.
        sandbox: String,
        /// Which step, and why.
        failure: SetupFailure,
    },
}

/// Why a recorded supervisor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The process is gone (or its pid is somebody else's by now): kill what is left of the pod.
    #[error("supervisor with pid {pid} is gone")]
    Gone {
        /// Its process id.
        pid: i32,
    },
    /// It does not answer as it must.
    #[error("connect to the supervisor in {}", directory.display())]
    Connect {
        /// Where its socket lies.
        directory: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The supervisor said no, or could not.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// The connection broke before the answer; the request may or may not have been carried out. The client reconnects by itself.
    #[error("connection to the supervisor broke before its answer")]
    Disconnected,
    /// The supervisor is gone.
    #[error("the supervisor is gone")]
    Dead,
    /// The answer is of another kind than the request asks for.
    #[error("the supervisor's answer to {0} makes no sense")]
    Nonsense(&'static str),
}

impl Supervisor {
    /// Starts a supervisor from `exe` (the sealed copy of this program) and waits until the pod's namespaces are set up. Dropping
    /// the future ends a supervisor that is being started.
    pub async fn spawn(exe: &Path, setup: &Setup) -> Result<Self, SpawnError> {
        let (exe, setup) = (exe.to_owned(), setup.clone());
        let (respond, outcome) = oneshot::channel();
        // A task of its own, so that the process is collected whatever becomes of the caller.
        let task = tokio::spawn(async move {
            if let Err(Ok(supervisor)) = respond.send(spawn_and_set_up(exe, setup).await) {
                let _ = supervisor.shutdown().await;
            }
        });
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(SpawnError::Aborted(task.await.err().map(|error| error.to_string()).unwrap_or_default()))
            }
        }
    }

    /// Finds the supervisor that an earlier agent started: this one, or whichever answers. Exits that happened meanwhile come as events.
    pub async fn connect(directory: &Path, expected: Option<&ProcessId>) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Connect { directory: directory.to_owned(), source };
        let gone = |process: &ProcessId| ConnectError::Gone { pid: process.pid };
        if let Some(expected) = expected.filter(|expected| !expected.is_alive()) {
            return Err(gone(expected));
        }
        let mut last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {PATIENCE:?}"));
        // One that lives is asked again: what failed may have been our own lack of descriptors.
        let may_answer = || expected.is_some_and(ProcessId::is_alive);
        let greeting = async {
            loop {
                match greet(directory).await {
                    Err(error) if may_answer() => last = error,
                    greeted => return greeted,
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let greeted = tokio::time::timeout(PATIENCE, greeting).await;
        let (connection, ready) = greeted.unwrap_or_else(|_| Err(last)).map_err(failed)?;
        if let Some(expected) = expected.filter(|expected| ready.process != **expected) {
            return Err(gone(expected));
        }
        let pidfd = alive(&ready.process).map_err(failed)?.ok_or_else(|| gone(&ready.process))?;
        Self::run(connection, ready, pidfd, directory.to_owned()).map_err(failed)
    }

    /// The supervisor's process, for records.
    pub fn process(&self) -> &ProcessId {
        &self.ready.process
    }

    /// The pause process of a pod PID namespace.
    pub fn pause_pid(&self) -> Option<i32> {
        self.ready.pause_pid
    }

    /// The pod's user namespace as a path, if it has one; of use only while the supervisor lives.
    pub fn user_namespace(&self) -> Option<&Path> {
        self.ready.user_namespace.as_deref()
    }

    /// The pod's network namespace as a path; of use only while the supervisor lives.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.ready.process.pid))
    }

    /// Starts a container and returns once its own program runs.
    pub async fn start(&self, container: StartContainer) -> Result<Started, RequestError> {
        match self.request(Request::Start(Box::new(container))).await? {
            Reply::Started(started) => Ok(started),
            _ => Err(RequestError::Nonsense("start")),
        }
    }

    /// Runs a command to its end. Dropping the future kills it.
    pub async fn exec_sync(
        &self,
        container: &str,
        plan: ExecPlan,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RequestError> {
        let timeout_ms = timeout.map(|timeout| timeout.as_millis() as u64);
        let request =
            Request::Exec(Box::new(ExecContainer { container: container.to_owned(), plan, timeout_ms }));
        let id = self.next_id();
        let cancel = CancelOnDrop { id: Some(id), supervisor: self };
        let answer = self.ask(id, request).await?;
        cancel.disarm();
        match answer.reply {
            Reply::Exec(result) => Ok(ExecOutput { result, stdout: answer.stdout, stderr: answer.stderr }),
            _ => Err(RequestError::Nonsense("exec")),
        }
    }

    /// Sends a signal; no error when the process is gone already.
    pub async fn signal(&self, container: &str, signal: i32, scope: SignalScope) -> Result<(), RequestError> {
        self.done(Request::Signal { container: container.to_owned(), signal, scope }).await
    }

    /// Sends `signal` now, SIGKILL after `grace`; the supervisor keeps the deadline. The exit comes as an event.
    pub async fn stop(&self, container: &str, signal: i32, grace: Duration) -> Result<(), RequestError> {
        let grace_ms = grace.as_millis() as u64;
        self.done(Request::Stop { container: container.to_owned(), signal, grace_ms }).await
    }

    /// Opens a running container's log file by its path again.
    pub async fn reopen_log(&self, container: &str) -> Result<(), RequestError> {
        self.done(Request::ReopenLog { container: container.to_owned() }).await
    }

    /// Every container that was started and not yet removed.
    pub async fn list(&self) -> Result<Vec<ContainerStatus>, RequestError> {
        match self.request(Request::List {}).await? {
            Reply::List(containers) => Ok(containers),
            _ => Err(RequestError::Nonsense("list")),
        }
    }

    /// Makes the supervisor forget an exited container.
    pub async fn remove(&self, container: &str) -> Result<(), RequestError> {
        self.done(Request::Remove { container: container.to_owned() }).await?;
        self.exits.forget(container);
        Ok(())
    }

    /// Kills what still runs in the pod and ends the supervisor; returns once the process is gone.
    pub async fn shutdown(&self) -> Result<(), RequestError> {
        match self.done(Request::Shutdown {}).await {
            Ok(()) | Err(RequestError::Dead | RequestError::Disconnected) => {}
            Err(error) => return Err(error),
        }
        self.died().await;
        Ok(())
    }

    /// How a container ended, if that was told already.
    pub fn exit_of(&self, container: &str) -> Option<ExitRecord> {
        self.exits.of(container)
    }

    /// A stream of events. It begins with every exit known so far, so none is lost between connecting and listening; a
    /// listener may therefore hear of an exit that it knows from the exit file. It ends when the supervisor is gone.
    pub fn events(&self) -> mpsc::UnboundedReceiver<Event> {
        self.exits.subscribe()
    }

    /// Waits until the supervisor process is gone.
    pub async fn died(&self) {
        let mut dead = self.dead.clone();
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// True once the supervisor process is gone.
    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    fn run(connection: Connection, ready: Ready, pidfd: OwnedFd, directory: PathBuf) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel(64);
        let (dead_sender, dead) = watch::channel(false);
        let exits = Arc::new(Exits::default());
        connection::spawn(connection, directory.clone(), pidfd, receiver, exits.clone(), dead_sender)?;
        let next_id = Arc::new(AtomicU64::new(connection::FIRST_FREE_ID));
        Ok(Self { ready, directory: directory.into(), commands, next_id, exits, dead })
    }

    async fn done(&self, request: Request) -> Result<(), RequestError> {
        match self.request(request).await? {
            Reply::Done => Ok(()),
            _ => Err(RequestError::Nonsense("a request without result")),
        }
    }

    async fn request(&self, request: Request) -> Result<Reply, RequestError> {
        self.ask(self.next_id(), request).await.map(|answer| answer.reply)
    }

    async fn ask(&self, id: u64, request: Request) -> Result<connection::Answer, RequestError> {
        let (respond, answer) = oneshot::channel();
        self.commands.send(Command { id, request, respond }).await.map_err(|_| RequestError::Dead)?;
        answer.await.map_err(|_| RequestError::Dead)?
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// Tells the supervisor that nobody waits for an exec any more.
struct CancelOnDrop<'a> {
    id: Option<u64>,
    supervisor: &'a Supervisor,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.id = None;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let Some(request) = self.id else { return };
        let (respond, _) = oneshot::channel();
        let command =
            Command { id: self.supervisor.next_id(), request: Request::CancelExec { request }, respond };
        // A full queue means that the supervisor hangs; the exec then runs to its own end or time limit.
        let _ = self.supervisor.commands.try_send(command);
    }
}

async fn greet(directory: &Path) -> io::Result<(Connection, Ready)> {
    let mut connection = Connection::dial(directory).await?;
    let hello = connection.greet().await?;
    Ok((connection, hello.ready))
}

async fn spawn_and_set_up(exe: PathBuf, setup: Setup) -> Result<Supervisor, SpawnError> {
    let sandbox = setup.sandbox_id.clone();
    let failed = |source| SpawnError::Spawn { sandbox: sandbox.clone(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let label = sandbox.get(..12).unwrap_or(&sandbox).to_owned();
    let spawning = tokio::task::spawn_blocking(move || spawn_process(&exe, &label, theirs.into()));
    let started = spawning.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
    let set_up = Connection::set_up(ours, started.pidfd.as_fd(), &setup);
    let (connection, outcome) = set_up.await.map_err(failed)?;
    match outcome {
        Ok(ready) => {
            let pidfd = process_of(&ready, started).map_err(failed)?;
            Supervisor::run(connection, ready, pidfd, setup.directory).map_err(failed)
        }
        Err(failure) => Err(SpawnError::Setup { sandbox: sandbox.clone(), failure }),
    }
}

/// The supervisor's process: where cgroups are v2 it is a clone of the one that was started, which then ends.
fn process_of(ready: &Ready, started: StartedProcess) -> io::Result<OwnedFd> {
    if ready.process.pid == started.pid {
        return Ok(started.pidfd);
    }
    connection::collect(started.pidfd);
    let ended = || io::Error::new(io::ErrorKind::NotFound, "the supervisor ended right after its set-up");
    alive(&ready.process)?.ok_or_else(ended)
}

/// Opens the process if it still runs.
fn alive(process: &ProcessId) -> io::Result<Option<OwnedFd>> {
    Ok(process.pidfd()?.filter(|_| process.is_alive()))
}

/// A process that this agent started and has not yet collected.
struct StartedProcess {
    pid: i32,
    pidfd: OwnedFd,
}

/// Starts the process. The standard library uses posix_spawn here, so the agent is never forked.
#[expect(clippy::disallowed_methods, reason = "the one place where supervisors are started")]
fn spawn_process(exe: &Path, label: &str, stdin: OwnedFd) -> io::Result<StartedProcess> {
    let child = std::process::Command::new(exe)
        .arg0(ARGV0)
        .arg(label)
        .env_clear()
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The child is ours and not yet waited for, so the pid cannot be another process's.
    let pid = child.id() as i32;
    let pidfd = host::process::pidfd_open(pid)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(StartedProcess { pid, pidfd })
}
