//! The reason why something cannot be used on this machine, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A reason and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unusable {
    /// What is wrong.
    pub found: String,
    /// What to do about it.
    pub remedy: String,
}

impl Unusable {
    /// A problem and its remedy.
    pub(crate) fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { found: found.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.found, self.remedy)
    }
}

impl std::error::Error for Unusable {}
