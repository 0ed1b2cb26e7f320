//! The command line of msb-patch.

use std::path::PathBuf;

use clap::Parser;
use msb::tool::output::Output;
use msb::tool::source::StageRecord;

/// Write patch operations into the upper directory of a record
///
/// Reads a record and a stream of operations (JSON objects), writes them into an upper directory above the image, and
/// prints the record with it. The image itself is never touched. All or nothing: an operation that fails leaves the
/// upper as it was.
#[derive(Debug, Parser)]
#[command(
    name = "msb-patch",
    version,
    after_help = "\
Operations, one JSON object each (msb-ops(5) has them all):
  {\"op\":\"text\",\"path\":\"/etc/motd\",\"content\":\"hi\\n\",\"replace\":true}
  {\"op\":\"mkdir\",\"path\":\"/app\",\"mode\":\"0755\"}
  {\"op\":\"copy_file\",\"src\":\"./cert.pem\",\"dst\":\"/etc/ssl/cert.pem\"}
  {\"op\":\"append\",\"path\":\"/etc/hosts\",\"content\":\"127.0.0.1 myapp.local\\n\",\"once\":true}
  {\"op\":\"chown\",\"path\":\"/app\",\"uid\":\"app\",\"gid\":\"app\",\"recursive\":true}
  {\"op\":\"script\",\"name\":\"setup\",\"content\":\"#!/bin/sh\\n…\"}

Examples:
  { msb-pull alpine; cat ops.jsonl; } | msb-patch > patched.json
  msb-patch -r image.json -f ops.jsonl -n
  msb-patch -r image.json -f ops.jsonl --upper ./upper --fresh > patched.json"
)]
pub struct Args {
    /// Which record.
    #[command(flatten)]
    pub record: StageRecord,

    /// Where the record with the upper goes.
    #[command(flatten)]
    pub output: Output,

    /// Read the operations from a file, - for stdin [default: stdin, behind a record that is piped in]
    #[arg(short = 'f', long = "file", value_name = "OPS")]
    pub file: Option<PathBuf>,

    /// Write into the upper in this directory, which gets mode 0700, and continue what is in it [default: the record's, else a new
    /// one]
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,

    /// Start from an empty upper, as if nothing had been patched before, and put it in the place of the old one
    ///
    /// The old upper stays until the new one is whole. Scripts that the record has are dropped, unless an operation gives
    /// them again.
    #[arg(long)]
    pub fresh: bool,

    /// Look up relative src paths of operations in this directory [default: the working directory]
    #[arg(short = 'C', long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Write what each operation did to a file: one JSON object a line, as --dry-run prints them
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Print what each operation would do, as one JSON object a line, and every error; change nothing
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Args::command().debug_assert();
    }
}
