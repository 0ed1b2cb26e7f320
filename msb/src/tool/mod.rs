//! What all command-line tools of msb have in common: how they start, parse their arguments, take and print records, report
//! errors, and end. Nothing here knows about root file systems, stores or VMs.

pub mod capability;
pub mod cli;
pub mod duration;
pub mod env;
pub mod exit;
pub mod interrupt;
pub mod line;
pub mod man;
pub mod output;
pub mod source;
pub mod start;
