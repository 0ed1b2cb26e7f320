//! Why a container cannot be made or entered.

use std::io;

/// Why a container cannot be made or entered: the step, and the reason.
pub type Failed = (String, io::Error);

/// Puts the step in front of an error.
pub fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Failed {
    |error| (step.into(), error.into())
}
