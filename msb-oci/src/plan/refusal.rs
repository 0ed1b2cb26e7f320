//! Something in a config that a microVM cannot do.

use std::fmt;

/// What is refused, why, and what to do instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    what: String,
    why: &'static str,
    remedy: &'static str,
}

impl Refusal {
    pub(crate) fn new(what: impl Into<String>, why: &'static str, remedy: &'static str) -> Self {
        Self { what: what.into(), why, remedy }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.why, self.remedy)
    }
}
