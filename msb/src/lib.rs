//! What the msb tools share: the record that flows through the pipe, the merge rule of a root file
//! system, the protocol between host and guest, and the conventions of a command-line tool.
//!
//! The tools depend on this crate and never on one another.

#[cfg(feature = "overlay")]
pub mod overlay;
pub mod record;
#[cfg(feature = "cli")]
pub mod store;
pub mod tool;
pub mod vm;
pub mod wire;
