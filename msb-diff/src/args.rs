//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use msb::tool::source::StageRecord;

use crate::page::PAGE;

/// Show what an upper changes, or which layer a path is from
///
/// Compares the root of a record with the same root without its upper, or with that of another record. Every difference is one
/// JSON object on a line, or short text on a terminal. Nothing is written or locked, so the root may be mounted or running.
#[derive(Debug, Parser)]
#[command(name = "msb-diff", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// The record.
    #[command(flatten)]
    pub record: StageRecord,

    /// Write the lines to FILE, which is created or replaced only on success [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Print the objects on a terminal too
    #[arg(long)]
    pub json: bool,

    /// Print nothing: the exit status is the answer, and the first difference ends the comparison
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,

    /// Print for every PATH the layer that it is from, and that layer's entry in the image's history
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "old")]
    pub which: Vec<OsString>,

    /// The record to compare with: the name of a running VM, or a file [default: the record itself without its upper]
    #[arg(value_name = "OLD")]
    pub old: Option<String>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        super::Args::command().debug_assert();
    }
}
