//! Errors: which tool failed, and what it said.

use std::io;
use std::string::FromUtf8Error;

/// Why something failed.
///
/// Tools report errors as `msb-boot: vm "worker": …`, and [`Error::Tool`] repeats such a message, so its text begins with the tool's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder was given no image.
    #[error("no image (name one with SandboxBuilder::image)")]
    NoImage,
    /// A tool is not installed.
    #[error("{tool}: not found {place} (install msb, or set MSB_BIN to the directory of its tools)")]
    NoTool {
        /// The tool.
        tool: &'static str,
        /// Where it was looked for.
        place: String,
    },
    /// A tool could not be started, or the connection to it failed.
    #[error("{tool}: {error}")]
    Io {
        /// The tool.
        tool: &'static str,
        /// The reason.
        error: io::Error,
    },
    /// A tool failed.
    #[error("{message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// Its exit status; `None` if a signal ended it.
        status: Option<i32>,
        /// What it said, at most the last 16 KiB.
        message: String,
    },
    /// A tool printed something else than it should: the tools and this crate are of different releases.
    #[error("{tool}: its output is not understood: {reason} (use tools of the same release)")]
    NotUnderstood {
        /// The tool.
        tool: &'static str,
        /// What is wrong with the output.
        reason: String,
    },
    /// A command was not started: the guest has no such program (127), or cannot execute it (126).
    #[error("{message}")]
    NotStarted {
        /// 126 or 127.
        code: i32,
        /// What the agent in the guest said.
        message: String,
    },
    /// A command wrote more than [`ExecOptions::output_limit`](crate::ExecOptions::output_limit), and was killed.
    #[error("the command wrote more than {limit} bytes (set output_limit, or read its output with exec_stream)")]
    OutputLimit {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The output of a command is not UTF-8.
    #[error("the output is not UTF-8: {0} (stdout_bytes and stderr_bytes return it as it is)")]
    NotUtf8(#[from] FromUtf8Error),
    /// The runtime was shut down before the sandbox was up.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl Error {
    /// The tool that failed, if one did.
    ///
    /// ```no_run
    /// # async fn example() {
    /// use msb_sandbox::Sandbox;
    ///
    /// if let Err(error) = Sandbox::builder("worker").image("no/such/image").create().await {
    ///     assert_eq!(error.tool(), Some("msb-pull"));
    /// }
    /// # }
    /// ```
    pub fn tool(&self) -> Option<&'static str> {
        match self {
            Self::NoTool { tool, .. }
            | Self::Io { tool, .. }
            | Self::Tool { tool, .. }
            | Self::NotUnderstood { tool, .. } => Some(tool),
            Self::NotStarted { .. } => Some("msb-exec"),
            Self::NoImage | Self::OutputLimit { .. } | Self::NotUtf8(_) | Self::ShuttingDown => None,
        }
    }
}
