//! What all operations on the root have in common.

use std::ffi::OsStr;
use std::fmt;

use crate::target::{Done, Target};

/// An operation on the root.
pub trait Operation: fmt::Debug {
    /// The path that it changes, for messages and reports.
    fn path(&self) -> &OsStr;

    /// Runs it in the staged upper. If the request is already met, nothing changes.
    ///
    /// # Errors
    /// A message without the operation's name and path.
    fn run(&self, target: &mut Target) -> anyhow::Result<Done>;
}

/// The default of members that are true unless they are given.
pub(crate) fn yes() -> bool {
    true
}
