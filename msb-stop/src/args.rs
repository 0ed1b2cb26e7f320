//! The command line.

use std::time::Duration;

use clap::Parser;
use msb::output::Output;
use msb::source::VmRecord;

/// Stop a running microVM
///
/// Asks the guest to end its commands, write out its data and stop; kills it if it has not stopped in time, and then exits with 1.
/// Cleans up after a VM that has ended already, or whose processes were killed. Reports on stderr which happened, and how many
/// commands had to be killed, and prints the record without "vm".
#[derive(Debug, Parser)]
#[command(name = "msb-stop", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub record: VmRecord,

    #[command(flatten)]
    pub output: Output,

    /// The VMs to stop, by name or by file
    #[arg(value_name = "NAME", conflicts_with = "record")]
    pub names: Vec<String>,

    /// How many seconds the guest may take: its commands have all of it but 2 seconds, or a quarter where that is less. One that still
    /// writes data back then has up to a minute more. 0 kills it at once
    #[arg(short = 't', long = "time", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub grace: Duration,

    /// For a block root: commit what the guest has written into the record's upper, where msb-mount shows it, msb-patch
    /// continues it, and the next VM has it. Asked for once, it is done, whoever asks the VM to stop again. The disk of a VM that had to be
    /// killed is kept, and not committed
    #[arg(long)]
    pub commit: bool,

    /// Unmount the root too, if msb-mount mounted one
    #[arg(long)]
    pub unmount: bool,
}

const EXAMPLES: &str = "\
Examples:
  msb-stop worker                    by name; several names stop several VMs
  msb-stop -r vm.json
  msb-stop worker -t 2
  msb-stop -r vm.json --unmount > stopped.json
  msb-stop -r vm.json --commit | msb-mount ./root";

fn seconds(text: &str) -> Result<Duration, &'static str> {
    const MOST: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MOST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds up to a day is expected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_up_to_a_day() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["", "-1", "NaN", "inf", "86401", "2s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
