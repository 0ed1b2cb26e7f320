//! Why the agent could not start.

use std::{fmt, io};

/// A step of the start that failed.
#[derive(Debug)]
pub struct Error {
    step: String,
    why: io::Error,
}

impl Error {
    /// A step, named as in "mount /proc", and its error.
    pub fn step(step: String, why: io::Error) -> Self {
        Self { step, why }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}
