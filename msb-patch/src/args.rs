//! The command line of msb-patch.

use std::path::PathBuf;

use clap::Parser;
use msb::store::staging::Start;
use msb::tool::output::Output;
use msb::tool::source::StageRecord;

use crate::page::PAGE;

/// Apply patch operations to a record's root file system
///
/// Reads a record and a stream of operations (JSON objects), writes their results into an upper directory above the image, and
/// prints the record with that upper. The image itself is never modified. Either all operations take effect or none: if one
/// fails, the upper stays as it was.
#[derive(Debug, Parser)]
#[command(name = "msb-patch", version, after_help = PAGE.help())]
pub struct Args {
    /// The record to patch.
    #[command(flatten)]
    pub record: StageRecord,

    /// Where the record with the upper goes.
    #[command(flatten)]
    pub output: Output,

    /// Read the operations from the file OPS, or from stdin if it is - [default: stdin, after the record]
    #[arg(short = 'f', long = "file", value_name = "OPS")]
    pub file: Option<PathBuf>,

    /// Keep the upper and new scripts in the directory DIR, which gets mode 0700; an upper that is there is continued [default:
    /// the record's, else a new one]
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,

    /// Start from an empty upper, and replace the old one with it
    ///
    /// The old upper stays until the new one is complete. Scripts of the record are dropped, unless an operation adds them again.
    #[arg(long)]
    pub fresh: bool,

    /// Leave the record's upper as it is, and continue a copy of it
    ///
    /// The copy is a new upper, with --upper in DIR, which must not have one. So a record stays valid for other steps.
    #[arg(long, conflicts_with = "fresh")]
    pub copy: bool,

    /// Resolve relative src paths of operations in DIR [default: the working directory]
    #[arg(short = 'C', long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Write what each operation did to FILE, as one JSON object per line, in the format of --dry-run
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Change nothing: print what each operation would do, and every error, as one JSON object per line
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
}

/// The most names of an upper that is copied before it is changed. The copy costs less than the steps that a larger one is spared.
const FEW: usize = 1000;

impl Args {
    /// What the upper starts from.
    pub fn start(&self) -> Start {
        match (self.dry_run, self.fresh, self.copy) {
            (true, ..) => Start::Trial,
            (_, true, _) => Start::Fresh,
            (_, _, true) => Start::Copy,
            _ => Start::Fold(FEW),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Args::command().debug_assert();
    }
}
