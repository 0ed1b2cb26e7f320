//! Why a command did not start.

use std::borrow::Cow;
use std::io;

use rustix::io::Errno;

/// Why a command did not start.
#[derive(Debug)]
pub struct NotStarted {
    /// The step that failed. `None`: execve(2) failed.
    pub step: Option<Cow<'static, str>>,
    /// The kernel's reason.
    pub why: io::Error,
}

impl NotStarted {
    /// The error of a step before execve(2).
    pub fn at(step: &'static str, why: impl Into<io::Error>) -> Self {
        Self { step: Some(step.into()), why: why.into() }
    }
}

/// The step, as in [`NotStarted`], and the error.
pub type Failed = (Option<&'static str>, Errno);
