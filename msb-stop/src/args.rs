//! The command line.

use std::time::Duration;

use clap::Parser;
use msb::tool::duration;
use msb::tool::output::Output;
use msb::tool::source::VmRecord;

use crate::page::PAGE;

/// Stop a running microVM
///
/// Asks the guest to end its commands, write its data back and stop; if it has not stopped in time, kills it and exits with 1.
/// Cleans up after a VM that has already ended or whose processes were killed. Reports on stderr which of these happened and how many
/// commands had to be killed, and prints the record without the member "vm".
#[derive(Debug, Parser)]
#[command(name = "msb-stop", version, after_help = PAGE.help())]
pub(crate) struct Args {
    #[command(flatten)]
    pub record: VmRecord,

    #[command(flatten)]
    pub output: Output,

    /// The VMs to stop, as names of running VMs or files with records
    #[arg(value_name = "NAME", conflicts_with = "record")]
    pub names: Vec<String>,

    /// The time that the guest may take, in seconds or as 500ms or 1m30s. Its commands have all of it but 2 seconds, or a quarter
    /// if that is less. A guest that is still writing data back then has up to a minute more. 0 kills it at once
    #[arg(short = 't', long = "time", value_name = "DURATION", default_value = "10", value_parser = grace)]
    pub grace: Duration,

    /// For a block root: commit what the guest wrote into the record's upper, where msb-mount shows it, msb-patch continues it
    /// and the next VM has it. A later msb-stop does not cancel it. The disk of a VM that had to be killed is kept but not
    /// committed
    #[arg(long)]
    pub commit: bool,

    /// Also unmount the root, if msb-mount mounted one
    #[arg(long)]
    pub unmount: bool,
}

/// The longest grace: a longer one is a mistake, and an agent would count beyond what its timers hold.
const MAX_GRACE: Duration = Duration::from_secs(86_400);

fn grace(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        grace if grace > MAX_GRACE => Err("a guest has at most a day to stop".to_owned()),
        grace => Ok(grace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_is_a_duration_up_to_a_day() {
        for (text, milliseconds) in
            [("2", 2000), ("0", 0), ("0.25", 250), ("2s", 2000), ("1m30s", 90_000), ("24h", 86_400_000)]
        {
            assert_eq!(grace(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "-1", "NaN", "inf", "86401", "1d1ms", "2x"] {
            assert!(grace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
