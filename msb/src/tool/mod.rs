//! What all command-line tools of msb have in common: how they start, parse their arguments, take and print records, report
//! errors, and end. Nothing here knows about root file systems, stores or VMs.

#[cfg(feature = "cli")]
pub mod capability;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod duration;
#[cfg(feature = "cli")]
pub mod env;
#[cfg(feature = "cli")]
pub mod exit;
pub mod interrupt;
#[cfg(feature = "cli")]
pub mod line;
#[cfg(feature = "cli")]
pub mod output;
pub mod signal;
#[cfg(feature = "cli")]
pub mod source;
#[cfg(feature = "cli")]
pub mod start;
