//! Exit statuses, and how a tool ends: with a message on stderr, and silently if nobody reads stdout any more.
//!
//! Error messages follow git's grammar: lower case, no full stop, what failed first, the subject quoted, then the reason, then
//! what to do in parentheses.

use std::error::Error;
use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::interrupt;
use crate::store::{home, support};

pub use crate::record::printable;
pub use crate::wire::exit_status::{NOT_EXECUTABLE, NOT_FOUND, SIGNAL_BASE, TIMED_OUT, TOOL_FAILED};

/// The operation failed.
pub const FAILED: u8 = 1;
/// Usage error.
pub const USAGE: u8 = 2;
/// What a shell reports for a writer whose reader is gone: 128 + SIGPIPE.
pub const READER_GONE: u8 = SIGNAL_BASE + 13;

/// Why the output of a tool was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The reader of stdout is gone. [`report`] prints nothing for it.
    #[error("stdout: nobody reads it any more")]
    ReaderGone,
    /// Stdout cannot be written.
    #[error("stdout: {0}")]
    Stdout(io::Error),
    /// The file for the record is a directory: the caller's mistake.
    #[error("output {0:?}: a directory")]
    IsDirectory(PathBuf),
    /// The directory for the record does not exist: the caller's mistake.
    #[error("output {file:?}: no directory {parent:?} (make it first)")]
    NoDirectory {
        /// The file.
        file: PathBuf,
        /// Its directory.
        parent: PathBuf,
    },
    /// The file for the record cannot be written.
    #[error("output {file:?}: {error}")]
    File {
        /// The file.
        file: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

impl OutputError {
    /// The error of a write to stdout.
    pub fn of_stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::ReaderGone } else { Self::Stdout(error) }
    }
}

/// Whether an error comes from a stdout that nobody reads.
pub fn is_reader_gone(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(OutputError::ReaderGone)))
}

/// An error with its own exit status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Coded {
    /// The exit status.
    pub code: u8,
    /// The message, without the name of the tool.
    pub message: String,
}

/// An error that ends the tool with `code`.
pub fn coded(code: u8, message: impl Into<String>) -> Coded {
    Coded { code, message: message.into() }
}

/// The end of `main`: prints an error as `tool: message` and chooses the exit status. An anyhow error fits, with its whole chain.
///
/// The status is that of a [`Coded`] error in the chain, else `failed`. [`OutputError::ReaderGone`] prints nothing. After a
/// signal, errors are taken to be its consequence: the status is 128 plus the number of the signal.
pub fn report<E: AsRef<dyn Error + Send + Sync + 'static>>(tool: &str, failed: u8, result: Result<u8, E>) -> ExitCode {
    report_with(tool, failed, &result, |_, _| None)
}

/// As [`report`], for a tool that writes to the store. An error about a path in the store gets advice that names MSB_HOME, if the
/// store's file system is its cause.
pub fn report_of_store<E>(tool: &str, failed: u8, result: Result<u8, E>) -> ExitCode
where
    E: AsRef<dyn Error + Send + Sync + 'static>,
{
    report_with(tool, failed, &result, |error, message| {
        let home = home::home().ok().filter(|home| message.contains(&*home.to_string_lossy()))?;
        support::advice(&home, error)
    })
}

/// As [`report`]. `advise` gets the error and its message, and says what to do.
fn report_with<E>(
    tool: &str,
    failed: u8,
    result: &Result<u8, E>,
    advise: impl FnOnce(&(dyn Error + 'static), &str) -> Option<String>,
) -> ExitCode
where
    E: AsRef<dyn Error + Send + Sync + 'static>,
{
    let error = match result {
        Ok(code) => return (*code).into(),
        Err(error) => error.as_ref(),
    };
    if is_reader_gone(error) {
        return READER_GONE.into();
    }
    if let Some(signal) = interrupt::signal() {
        warn(tool, "interrupted");
        return u8::try_from(signal).map_or(failed, |signal| SIGNAL_BASE.saturating_add(signal)).into();
    }
    let message = causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    match advise(error, &message) {
        Some(advice) => warn(tool, &format!("{message} ({advice})")),
        None => warn(tool, &message),
    }
    status_of(failed, error).into()
}

/// The exit status for an error: that of a [`Coded`] error in the chain, else `failed`.
pub fn status_of(failed: u8, error: &(dyn Error + 'static)) -> u8 {
    causes(error).find_map(|cause| cause.downcast_ref::<Coded>()).map_or(failed, |coded| coded.code)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// Prints `tool: message` on stderr. A closed stderr is not an error.
pub fn warn(tool: &str, message: &str) {
    let _ = io::stderr().write_all(format!("{tool}: {message}\n").as_bytes());
}
