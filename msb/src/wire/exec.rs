//! The bodies of the messages: exec, questions about execs, shutdown, and the agent's report.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::container::Container;
use super::frame::{Error, VERSION};
pub use crate::record::Text;
use crate::record::owner::Id;
use crate::vm::boot::Defaults;

/// PATH of a command if neither the image nor the request sets it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
}

impl Hello {
    /// Checks the peer's version.
    ///
    /// # Errors
    /// [`Error::OtherVersion`].
    pub fn check(&self) -> Result<(), Error> {
        if self.version == VERSION { Ok(()) } else { Err(Error::OtherVersion(self.version)) }
    }
}

/// A command to run. For absent members the image decides, then the agent's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The command and its arguments; empty for the image's entrypoint and cmd.
    #[serde(default)]
    pub argv: Vec<Text>,
    /// Variables, `K=V` each; they override the image's.
    #[serde(default)]
    pub env: Vec<Text>,
    /// The working directory.
    #[serde(default)]
    pub cwd: Option<Text>,
    /// `user[:group]` by name or number.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal for the command; all of its output is then on stdout.
    #[serde(default)]
    pub tty: Option<Tty>,
    /// Stdin is `/dev/null`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_stdin: bool,
    /// The command runs without a caller: [`Started`] is the last frame.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detach: bool,
    /// Resource limits; they override the agent's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rlimits: Vec<Limit>,
    /// The file mode creation mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// The host's time, in milliseconds since 1970, for a guest whose clock is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now_ms: Option<u64>,
    /// The variables are those of `env`, without the image's and the agent's. Only a missing HOME is added.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exact_env: bool,
    /// The IDs of the process, which are used instead of `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Ids>,
    /// The capabilities; without them, those of a process of this user in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// An execve(2) grants no privileges: see `PR_SET_NO_NEW_PRIVS` in `prctl(2)`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// The adjustment of the OOM killer's score; without one, 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// The command waits in front of its execve(2): the answer is [`Message::Prepared`](super::Message::Prepared), and
    /// [`Message::Go`](super::Message::Go) starts it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prepare: bool,
    /// The command is the first process of this new container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The command runs in the container of the exec with this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<u32>,
}

/// The IDs of a process, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The user ID.
    pub uid: Id,
    /// The group ID.
    pub gid: Id,
    /// The supplementary group IDs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub groups: Vec<Id>,
}

/// The five sets of `capabilities(7)`. Bit N stands for the capability with the number N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bounding set.
    pub bounding: u64,
    /// The effective set.
    pub effective: u64,
    /// The permitted set.
    pub permitted: u64,
    /// The inheritable set.
    pub inheritable: u64,
    /// The ambient set.
    pub ambient: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A resource limit of `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The resource in lower case, without `RLIMIT_`: one of [`LIMITS`].
    pub name: String,
    /// The soft limit; none for unlimited.
    pub soft: Option<u64>,
    /// The hard limit; none for unlimited.
    pub hard: Option<u64>,
}

/// The names of resources.
pub const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A terminal for a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// The value of TERM.
    pub term: Option<Text>,
    /// Its size.
    pub size: Resize,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// The command was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process ID in the guest.
    pub pid: i32,
    /// The number of the exec, for [`Attach`] and [`Kill`]. Each agent counts from 1.
    pub id: u32,
    /// Whether it has a terminal.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terminal: bool,
}

/// A signal for the command of this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number on Linux, 1 to 64.
    pub signal: i32,
    /// For all processes of the exec, not only for the command's process group.
    #[serde(default, skip_serializing_if = "is_default")]
    pub all: bool,
}

/// A request to attach to an exec that has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The exec's number.
    pub id: u32,
    /// Whether streams are wanted. Otherwise only [`Exit`] is sent, and any number of callers may wait for it.
    pub streams: bool,
}

/// A signal for an exec of another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// The exec's number.
    pub id: u32,
    /// The number of the signal, 1 to 64.
    pub signal: i32,
}

/// A list of execs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execs {
    /// Ordered by number, the oldest first.
    pub execs: Vec<Listed>,
    /// How many older detached execs have ended whose exit is still known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub older: u32,
}

/// An exec in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub id: u32,
    /// The process ID of its command in the guest.
    pub pid: i32,
    /// The command and its arguments, truncated if they are long.
    pub argv: Vec<Text>,
    /// Whether it continues without a caller.
    pub detached: bool,
    /// Whether it has a caller now.
    pub attached: bool,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// How a command ended: either `code` or `signal` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The resources it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The OOM killer ended one of the exec's processes, or the agent did because it thrashed. Only the caller of an exec is told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub oom: bool,
}

/// The resources that a command used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The time from its start to its end on the guest's clock, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, including that of descendants as far as the agent knows it, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, likewise, in microseconds.
    pub system_us: u64,
    /// The largest resident set of the command or one of its descendants that it waited for, in KiB.
    pub max_rss_kib: u64,
}

/// Why a request cannot be fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit status that stands for it, see [`exit_status`](super::exit_status).
    pub code: u8,
    /// The reason, for people.
    pub message: String,
    /// The request has no command, and the image has no default one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_command: bool,
}

impl Failure {
    /// A failure with an exit status and a reason.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), no_command: false }
    }
}

/// A request to stop the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// How long the shutdown may take, in milliseconds. The agent reserves a part for itself; commands have the rest.
    pub grace_ms: u64,
}

/// The host's time, for a guest whose clock is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// In milliseconds since 1970.
    pub now_ms: u64,
}

/// What makes a machine that was started from a snapshot another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The host's time, in milliseconds since 1970.
    pub now_ms: u64,
    /// Random bytes of the host, for the guest's random number generator.
    pub entropy: Vec<u8>,
    /// The hostname.
    pub hostname: String,
    /// Defaults for commands.
    pub defaults: Defaults,
    /// Whether the agent writes a new `/etc/machine-id`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub new_machine_id: bool,
}

/// The progress of a shutdown. The agent sends it on every change, and repeatedly while it writes data back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// How many commands did not end in time and were killed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub killed: u32,
    /// How many other processes were killed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub killed_others: u32,
    /// After how many milliseconds they were killed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub after_ms: u64,
    /// Data is being written back to the disks; interrupting that would lose data.
    #[serde(default, skip_serializing_if = "is_default")]
    pub writing: bool,
}

/// The agent's report about the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Why the agent cannot run; the machine powers off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the kernel started agentd, in milliseconds since power-on.
    pub kernel_ms: u64,
    /// When the agent was listening, in milliseconds since power-on.
    pub agent_ms: u64,
    /// When this was sent, in milliseconds since power-on: the host counts back from its arrival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
    /// The init that runs as PID 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// When the init had started, in milliseconds since power-on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_ms: Option<u64>,
    /// A defect of a machine that is usable nevertheless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Mount points that the agent created in the root. They are removed when no machine uses that root any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<PathBuf>,
}
