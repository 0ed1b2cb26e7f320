//! The conventions of msb's command-line tools: how they start, parse arguments, read and print records, report errors, and end.
//! Nothing here knows about root file systems or the formats of the store.

pub mod capability;
pub mod cli;
pub mod duration;
pub mod env;
pub mod exit;
pub mod follow;
pub mod interrupt;
pub mod line;
pub mod man;
pub mod output;
pub mod passed;
pub mod size;
pub mod source;
pub mod start;
pub mod table;
pub mod timestamp;
pub mod user_namespace;
