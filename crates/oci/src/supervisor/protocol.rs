//! What the agent and a pod supervisor say to each other: message types only, no I/O.
//!
//! A connection is a byte stream of frames: a `u32` little-endian payload length, then the payload. A payload that
//! begins with `{` is JSON ([`ClientMessage`] one way, [`ServerMessage`] the other); one that begins with byte 1 or 2
//! is raw output (stdout, stderr) of the exec or attachment whose request id follows as a `u64` little-endian, then the bytes.
//! Two replies bring descriptors (SCM_RIGHTS with the first byte of their frame): sessions have a connection of their own, so that
//! this is the only frame under way, and so that what belongs to a session ends with it.
//!
//! Compatibility: an agent speaks to every older supervisor, because supervisors outlive the agent that started them.
//! - Every connection begins with [`Request::Hello`]; the reply names the version both sides use from then on,
//!   the lower of the two. An agent sends no request newer than that version.
//! - Unknown fields are ignored, so a field may be added at any time if its absence means what was true before
//!   (`#[serde(default)]`). A field never changes meaning; a request that needs that gets a new name and a new version.
//! - An unknown request is answered with [`ErrorCode::Unsupported`] and the connection goes on.
//! - A launch plan is stricter: a new field of it is absent from the JSON where it says nothing new, and a supervisor refuses
//!   fields it does not know, because a container must not start without what they ask for.
//! - [`Setup`] is exempt: it is written and read by the same binary.

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::process::ProcessId;
use serde::{Deserialize, Serialize};

use crate::plan::{ExecPlan, LaunchPlan, UserPlan};

/// Newest version of this protocol that the code in this tree speaks.
///
/// Version 2 added terminals and standard input of containers, [`Request::ExecSession`], [`Request::Attach`] and [`Request::CloseStdin`].
pub const VERSION: u32 = 2;
/// Largest payload either side accepts; a peer that announces more loses its connection.
pub const MAX_FRAME: usize = 4 << 20;
/// Name of the supervisor's socket inside the sandbox directory.
pub const SOCKET_NAME: &str = "sup.sock";
/// `argv[0]` under which the binary is a supervisor.
pub const ARGV0: &str = "podwright-supervisor";
/// Bytes kept of each output stream of an exec; what comes after is read and discarded.
pub const EXEC_OUTPUT_LIMIT: u64 = 16 << 20;

/// First frame a new supervisor reads, on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Id of the pod sandbox.
    pub sandbox_id: String,
    /// The sandbox's state directory (exists); the socket is bound here.
    pub directory: PathBuf,
    /// Which namespaces are the pod's own.
    pub namespaces: PodNamespaces,
    /// Ids of a user namespace of the pod's own, to which its other namespaces belong; both are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserPlan>,
    /// Host name, set only in a UTS namespace of the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Sysctls written inside the pod's namespaces; one that is not namespaced, or whose namespace is the node's, is refused.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// The supervisor's own leaf cgroup, as `host::cgroup::CgroupManager::create` takes it; made and entered by the supervisor,
    /// removed by whoever tears the sandbox down. `None` stays in the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Score of the supervisor itself; where the kernel refuses it, set-up goes on. Containers set their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
}

/// Where each namespace of the pod comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodNamespaces {
    /// Network.
    pub network: NamespaceMode,
    /// System V IPC and POSIX message queues.
    pub ipc: NamespaceMode,
    /// Host and domain name.
    pub uts: NamespaceMode,
    /// Process ids.
    pub pid: PidMode,
}

/// One namespace: the pod's own, or the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// Made by and living in the supervisor, shared by the pod's containers.
    #[default]
    Pod,
    /// The one the supervisor was started in.
    Node,
}

/// Process id namespace of the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// Each container makes its own; the launch plan asks for it.
    #[default]
    Container,
    /// One for the pod, kept alive by a pause process that reaps.
    Pod,
    /// The node's.
    Node,
}

/// A request with the id that its reply, and its raw output, will carry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientMessage {
    /// Chosen by the client, unique among its requests in flight.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What an agent asks of a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub enum Request {
    /// Must come first on every connection. Answered by [`Reply::Hello`].
    Hello(Hello),
    /// Sends [`Event`]s to this connection from now on. Answered by [`Reply::Done`].
    Subscribe {},
    /// Starts a container. Answered by [`Reply::Started`] once the container's own program runs.
    Start(Box<StartContainer>),
    /// Runs a command in a container; its output comes as raw frames, then [`Reply::Exec`].
    Exec(Box<ExecContainer>),
    /// Kills the exec that this connection asked for under `request`, because nobody waits for it any more. Answered by
    /// [`Reply::Done`], also when it has ended already; the exec itself is still answered.
    CancelExec {
        /// Request id of the exec.
        request: u64,
    },
    /// Runs a command in a container with its streams in the agent's hands: [`Reply::Session`] brings their descriptors, [`Reply::Exec`]
    /// follows at its end. The command is killed when the connection ends. Since version 2.
    ExecSession(Box<ExecSession>),
    /// Sends the container's output from now on as raw frames, and lets the agent write its input: [`Reply::Attached`] brings the
    /// descriptor, [`Reply::Detached`] follows when the container has ended. Since version 2.
    Attach(Attach),
    /// Closes the standard input of a container that was started with `stdin_once`; the agent's own descriptor is for the agent to close.
    /// Of a terminal nothing can be closed. Answered by [`Reply::Done`]. Since version 2.
    CloseStdin {
        /// Container id.
        container: String,
    },
    /// Sends a signal. Answered by [`Reply::Done`], also when the process is gone already.
    Signal {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
        /// Who gets it.
        #[serde(default)]
        scope: SignalScope,
    },
    /// Sends `signal` now and kills the container after `grace_ms` unless it is gone; the supervisor keeps the deadline, whatever
    /// happens to the agent. Answered at once by [`Reply::Done`]; a repetition can only bring the deadline forward.
    Stop {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
        /// Milliseconds until SIGKILL.
        grace_ms: u64,
    },
    /// Opens the log file by its path again, after a rotation. Answered by [`Reply::Done`]; refused, without creating a file, unless the container runs.
    ReopenLog {
        /// Container id.
        container: String,
    },
    /// Lists every container not yet removed. Answered by [`Reply::List`].
    List {},
    /// Forgets an exited container; unknown ones are forgotten already. Answered by [`Reply::Done`].
    Remove {
        /// Container id.
        container: String,
    },
    /// Kills what still runs, then ends the supervisor. Answered by [`Reply::Done`] just before it ends.
    Shutdown {},
}

/// The methods of [`Request`], by which a supervisor knows what it does not know.
pub const METHODS: [&str; 14] = [
    "hello",
    "subscribe",
    "start",
    "exec",
    "cancel_exec",
    "exec_session",
    "attach",
    "close_stdin",
    "signal",
    "stop",
    "reopen_log",
    "list",
    "remove",
    "shutdown",
];

/// Opens a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest protocol version the sender speaks.
    pub version: u32,
    /// Version of the sender's program, for logs.
    #[serde(default)]
    pub build: String,
}

/// Everything a container start needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartContainer {
    /// Container id, unique in the pod.
    pub container: String,
    /// What to run.
    pub plan: LaunchPlan,
    /// Where the output goes; `None` discards it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogFile>,
    /// Receives an [`ExitRecord`] as JSON, by rename, before anyone is told of the exit.
    pub exit_file: PathBuf,
    /// Keeps a standard input open for attachments; refused as unsupported in version 1.
    #[serde(default)]
    pub stdin: bool,
    /// The plan's process has a terminal; refused as unsupported in version 1.
    #[serde(default)]
    pub tty: bool,
    /// The standard input ends with the first attachment that has it.
    #[serde(default)]
    pub stdin_once: bool,
}

/// A CRI log file. The directory is trusted as given; below it no symbolic link is followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// The pod's log directory; created if only its last component is missing.
    pub directory: PathBuf,
    /// Path of the file below `directory`; missing directories are created.
    pub path: PathBuf,
}

/// A command to run in a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecContainer {
    /// Container id.
    pub container: String,
    /// What to run.
    pub plan: ExecPlan,
    /// Milliseconds until the command is killed; `None` waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A command whose streams the agent serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSession {
    /// Container id.
    pub container: String,
    /// What to run; with a terminal if its process has one.
    pub plan: ExecPlan,
    /// Whether it reads the agent's input, without a terminal; else it reads nothing.
    #[serde(default)]
    pub stdin: bool,
}

/// Which streams of a container are attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Container id.
    pub container: String,
    /// Its input, if it has one.
    #[serde(default)]
    pub stdin: bool,
    /// Its standard output, or its terminal's.
    #[serde(default)]
    pub stdout: bool,
    /// Its standard error.
    #[serde(default)]
    pub stderr: bool,
}

/// A descriptor that comes with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descriptor {
    /// To write standard input to.
    Stdin,
    /// To read standard output from.
    Stdout,
    /// To read standard error from.
    Stderr,
    /// The controlling side of the terminal: of a session for everything, of an attachment for input and size.
    Terminal,
}

/// Which processes a signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalScope {
    /// The container's first process.
    #[default]
    Init,
    /// Every process in the container's cgroup.
    All,
}

/// What a supervisor sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    /// Set-up is complete; sent once, on the connection that brought [`Setup`].
    Ready(Ready),
    /// Set-up went wrong and the process ends; nothing it made remains.
    SetupFailed(SetupFailure),
    /// The answer to request `id`.
    Reply {
        /// Id of the request.
        id: u64,
        /// What came of it.
        reply: Reply,
    },
    /// Request `id` was refused or went wrong.
    Error {
        /// Id of the request.
        id: u64,
        /// Why.
        error: ErrorReply,
    },
    /// Something happened; only on connections that subscribed.
    Event(Event),
}

/// Says who the supervisor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its process.
    pub process: ProcessId,
    /// The pause process of a pod PID namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_pid: Option<i32>,
    /// Where the pod's user namespace is opened, while the supervisor lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<PathBuf>,
}

/// Why set-up went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure {
    /// The step, as a verb phrase: `unshare namespaces`, `write sysctl net.core.somaxconn`.
    pub phase: String,
    /// What the kernel said, or what is wrong with the request.
    pub message: String,
}

/// Answers to requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello(HelloReply),
    /// The request was carried out and there is nothing to say.
    Done,
    /// To [`Request::Start`].
    Started(Started),
    /// To [`Request::Exec`], after its output.
    Exec(ExecResult),
    /// To [`Request::ExecSession`], with the descriptors in this order.
    Session(Vec<Descriptor>),
    /// To [`Request::Attach`], with the descriptors in this order.
    Attached(Vec<Descriptor>),
    /// To [`Request::Attach`], at the container's end.
    Detached,
    /// To [`Request::List`], ordered by container id.
    List(Vec<ContainerStatus>),
}

/// Answers [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The version spoken from now on.
    pub version: u32,
    /// Version of the supervisor's program, for logs.
    #[serde(default)]
    pub build: String,
    /// The sandbox it serves.
    pub sandbox_id: String,
    /// Who it is.
    pub ready: Ready,
}

/// A container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id of its first process, in the supervisor's namespace.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub start_time: u64,
    /// Wall clock in nanoseconds since 1970.
    pub started_at: i64,
}

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Exit code; 128 + signal for a process ended by a signal.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The time limit passed and the command was killed.
    #[serde(default)]
    pub timed_out: bool,
    /// A stream was longer than [`EXEC_OUTPUT_LIMIT`].
    #[serde(default)]
    pub truncated: bool,
}

/// How a container ended; also the content of its exit file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + signal for a process ended by a signal.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel killed a process of the container's cgroup for lack of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Wall clock in nanoseconds since 1970.
    pub finished_at: i64,
}

/// One container as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Container id.
    pub container: String,
    /// Its first process.
    pub started: Started,
    /// Present once it has ended and its exit file is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
}

/// What subscribers are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container ended, its exit file is written, and its log is complete unless a process outside it keeps the pipe.
    Exited {
        /// Container id.
        container: String,
        /// How.
        exit: ExitRecord,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// What kind of problem.
    pub code: ErrorCode,
    /// A sentence for people; launch errors read as they do from runc.
    pub message: String,
}

/// Kinds of problems a caller tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The supervisor does not know this request, or not this option of it.
    Unsupported,
    /// The request cannot be understood.
    BadRequest,
    /// No such container.
    NotFound,
    /// A container of this id exists.
    AlreadyExists,
    /// The container is in the wrong state for this (not running, or still running).
    WrongState,
    /// The container or command could not be started.
    Launch,
    /// Anything else, with the cause in the message.
    #[serde(other)]
    Failed,
}
