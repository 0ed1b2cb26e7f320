//! The tools for VMs that exist already: msb-ls lists them, msb-logs shows what they print, msb-stats what they use, and msb-rm
//! removes what they leave. They read run directories and the store, and leave stopping to msb-stop.
//!
//! Imports run one way: from the tools to [`survey`] and [`output`].

pub mod logs;
pub mod ls;
pub mod output;
pub mod processes;
pub mod rm;
pub mod stats;
pub mod survey;
