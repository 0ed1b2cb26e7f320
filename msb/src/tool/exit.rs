//! Exit codes, and how a tool ends: in words on stderr, and quietly when nobody reads stdout any more.
//!
//! The grammar of an error is git's: lower case, no full stop, what failed first, the subject quoted, then why,
//! then what to do.

use std::process::ExitCode;

use crate::tool::interrupt;

pub use crate::record::printable;
pub use crate::wire::exit_status::{NOT_EXECUTABLE, NOT_FOUND, SIGNAL_BASE, TIMED_OUT, TOOL_FAILED};

/// The operation failed.
pub const FAILED: u8 = 1;
/// The command line was wrong.
pub const USAGE: u8 = 2;
/// What a shell reports for a writer whose reader left: 128 + SIGPIPE.
pub const READER_GONE: u8 = SIGNAL_BASE + 13;

/// Nobody reads stdout any more. [`report`] turns it into a silent end.
#[derive(Debug, thiserror::Error)]
#[error("stdout: nobody reads it any more")]
pub struct ReaderGone;

/// An error that carries the exit code it deserves.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Coded {
    /// The exit status.
    pub code: u8,
    /// The words, without the tool's name.
    pub message: String,
}

/// An [`anyhow::Error`] that ends the tool with `code`.
pub fn coded(code: u8, message: impl Into<String>) -> anyhow::Error {
    Coded { code, message: message.into() }.into()
}

/// Ends `main`: says an error as `tool: words` on stderr and picks the exit code.
///
/// The code is that of a [`Coded`] error in the chain, else `failed`. A [`ReaderGone`] says nothing. Where a signal has interrupted
/// the tool, its errors come of that: the code is 128 and the signal's number.
pub fn report(tool: &str, failed: u8, result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(error) if error.chain().any(|cause| cause.is::<ReaderGone>()) => READER_GONE.into(),
        Err(error) => {
            if let Some(signal) = interrupt::signal() {
                warn(tool, "interrupted");
                return u8::try_from(signal).map_or(failed, |signal| SIGNAL_BASE.saturating_add(signal)).into();
            }
            warn(tool, &format!("{error:#}"));
            error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(failed, |coded| coded.code).into()
        }
    }
}

/// Says one line as `tool: words` on stderr. A closed stderr is no reason to fail.
pub fn warn(tool: &str, words: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{tool}: {words}\n").as_bytes());
}
