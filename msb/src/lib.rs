//! What the msb tools share: the record that flows through the pipe, the merge rule of a root file
//! system, the wire between host and guest, and the manners of a command line tool.
//!
//! The tools depend on this crate and never on one another.

pub mod boot;
#[cfg(feature = "cli")]
pub mod capability;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod commit;
#[cfg(feature = "overlay")]
pub mod device;
#[cfg(feature = "cli")]
pub mod duration;
#[cfg(feature = "cli")]
pub mod env;
#[cfg(feature = "cli")]
pub mod erofs;
#[cfg(feature = "cli")]
pub mod exit;
pub mod interrupt;
#[cfg(feature = "cli")]
pub mod leftovers;
#[cfg(feature = "cli")]
pub mod line;
pub mod mountinfo;
#[cfg(feature = "cli")]
pub mod output;
#[cfg(feature = "overlay")]
pub mod overlay;
pub mod owner;
#[cfg(feature = "cli")]
pub mod reach;
#[cfg(feature = "cli")]
pub mod record;
#[cfg(feature = "cli")]
pub mod rundir;
pub mod script;
#[cfg(feature = "cli")]
pub mod signal;
#[cfg(feature = "cli")]
pub mod source;
#[cfg(feature = "cli")]
pub mod staging;
#[cfg(feature = "cli")]
pub mod start;
#[cfg(feature = "cli")]
pub mod state;
#[cfg(feature = "cli")]
pub mod supervisor;
#[cfg(feature = "cli")]
mod sync;
pub mod wire;
