//! The messages of an exec, and those that travel alone: what is asked about execs, shutdown and ready.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::record::Text;

/// PATH of a command if neither the image nor the request sets it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first frame both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::VERSION`].
    pub version: u32,
}

impl Hello {
    /// Checks the other side's version.
    ///
    /// # Errors
    /// [`super::Error::OtherVersion`].
    pub fn check(&self) -> Result<(), super::Error> {
        if self.version == super::VERSION { Ok(()) } else { Err(super::Error::OtherVersion(self.version)) }
    }
}

/// A command to run. What is left out is the image's, then the agent's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The command and its arguments; empty for the image's entrypoint and cmd.
    #[serde(default)]
    pub argv: Vec<Text>,
    /// `K=V` each, over the image's.
    #[serde(default)]
    pub env: Vec<Text>,
    /// The working directory.
    #[serde(default)]
    pub cwd: Option<Text>,
    /// `user[:group]` by name or number.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal for the command: stdout carries all it prints.
    #[serde(default)]
    pub tty: Option<Tty>,
    /// Stdin is `/dev/null`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_stdin: bool,
    /// The command goes on without a caller: [`Started`] is the last frame.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detach: bool,
    /// Limits of the process, over the agent's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rlimits: Vec<Limit>,
    /// The file mode creation mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// The host's time, in milliseconds since 1970, for a guest that has fallen behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now_ms: Option<u64>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A resource limit of `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The resource in lower case, without `RLIMIT_`: one of [`LIMITS`].
    pub name: String,
    /// What holds; none for unlimited.
    pub soft: Option<u64>,
    /// How far the process may raise it; none for unlimited.
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

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Its kind, for TERM.
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

/// The command runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process ID in the guest.
    pub pid: i32,
    /// The exec's own number, by which it is attached to; counted from 1 by each agent.
    pub id: u32,
    /// Whether it has a terminal.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terminal: bool,
}

/// A signal by its number in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// 1 to 64.
    pub signal: i32,
    /// For all processes of the exec, not only for the command's process group.
    #[serde(default, skip_serializing_if = "is_default")]
    pub all: bool,
}

/// A caller for an exec that goes on without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The exec's number.
    pub id: u32,
    /// Whether the streams are wanted; else only [`Exit`] is sent, and there may be many such callers.
    pub streams: bool,
}

/// A signal for an exec by somebody who is not attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// The exec's number.
    pub id: u32,
    /// 1 to 64.
    pub signal: i32,
}

/// The execs that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execs {
    /// By their numbers, the oldest first.
    pub execs: Vec<Listed>,
    /// How many more detached ones have ended of which the exit is known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub older: u32,
}

/// An exec as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub id: u32,
    /// The process ID of its command in the guest.
    pub pid: i32,
    /// The command and its arguments, cut short where they are long.
    pub argv: Vec<Text>,
    /// Whether it goes on without a caller.
    pub detached: bool,
    /// Whether it has a caller now.
    pub attached: bool,
    /// How it ended, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// How a command ended: either code or signal is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a command took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From its start to its end by the guest's clock, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, with that of its descendants as far as the agent knows it, in microseconds.
    pub user_us: u64,
    /// The same in the kernel.
    pub system_us: u64,
    /// The largest resident set of the command or one of its descendants that it waited for, in KiB.
    pub max_rss_kib: u64,
}

/// Why a request cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit status for it, as `env(1)` has them: 125, 126, 127.
    pub code: u8,
    /// Words.
    pub message: String,
}

/// A request to stop the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// How long the end of the machine may take, in milliseconds; the agent keeps what it needs of it, commands have the rest.
    pub grace_ms: u64,
}

/// The host's time, for a guest whose clock is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// In milliseconds since 1970.
    pub now_ms: u64,
}

/// How a requested shutdown goes on. The agent sends it when there is news, and again and again while it writes data back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// How many commands did not end in time and were killed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub killed: u32,
    /// How many other processes were.
    #[serde(default, skip_serializing_if = "is_default")]
    pub killed_others: u32,
    /// How long they had had, in milliseconds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub after_ms: u64,
    /// Data is being written back to the disks, which cannot be cut short without a loss.
    #[serde(default, skip_serializing_if = "is_default")]
    pub writing: bool,
}

/// How the start of the machine went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Why there is no agent to talk to; the machine powers off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the kernel started agentd, in milliseconds since power-on.
    pub kernel_ms: u64,
    /// When the agent was listening, in milliseconds since power-on.
    pub agent_ms: u64,
    /// When this was sent, in milliseconds since power-on: the host counts back from its arrival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
    /// The init that PID 1 was handed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// When the init had started, in milliseconds since power-on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_ms: Option<u64>,
    /// What is not as it should be in a machine that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Mount points that the agent made in the root, to be removed when no machine has that root any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<PathBuf>,
}
