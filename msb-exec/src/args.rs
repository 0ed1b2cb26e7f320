//! The command line of msb-exec.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;

/// Run a command in a running microVM
///
/// The command's streams are the caller's: bytes pass unchanged both ways, end-of-file included, and stdout and stderr
/// stay apart. Signals sent to msb-exec reach the command.
#[derive(Debug, Parser)]
#[command(
    name = "msb-exec",
    version,
    after_help = "\
Exit status: the command's own; 128+N where signal N ended it; 124 timed out; 125 msb-exec or the VM failed; \
126 the command cannot be executed; 127 it was not found.

Examples:
  msb-exec -r vm.json -- cat /etc/motd
  msb-exec -r worker --shell 'setup && start'
  tar -C src -c . | msb-exec -r worker -w /srv -- tar -x
  msb-exec -r worker -t -- bash"
)]
pub struct Args {
    /// The record: a file, the name of a running VM, or - for the first line of stdin [default: $MSB_RECORD, else stdin]
    #[arg(short = 'r', long = "record", value_name = "FILE|NAME")]
    pub record: Option<String>,

    /// Give the command a terminal
    #[arg(short = 't', long = "tty")]
    pub tty: bool,

    /// Set a variable; without a value, pass the caller's on
    #[arg(short = 'e', long = "env", value_name = "K[=V]")]
    pub env: Vec<OsString>,

    /// The working directory [default: the image's]
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    pub workdir: Option<OsString>,

    /// Run as this user, by name or number [default: the image's]
    #[arg(short = 'u', long = "user", value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// End the command after this long: TERM, then KILL after 5 s (90, 90s, 1.5m, 2h, 500ms)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// Run a line by the guest's /bin/sh; words behind it are its $0, $1, …
    #[arg(long, value_name = "LINE")]
    pub shell: Option<OsString>,

    /// The command and its arguments [default: the image's entrypoint and cmd]
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = false)]
    pub command: Vec<OsString>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        unit => return Err(format!("unknown unit {unit:?} (ms, s, m, h or d)")),
    };
    let number: f64 = digits.parse().map_err(|_| "not a number with a unit".to_owned())?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [("90", 90_000), ("2s", 2000), ("1.5m", 90_000), ("500ms", 500), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for bad in ["", "s", "-1", "1 s", "1y", "nan", "1e300"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn words_behind_the_command_are_its_own() {
        let args = Args::try_parse_from(["msb-exec", "-r", "vm", "--", "ls", "-t", "--", "-r"]).unwrap();
        assert_eq!(args.command, ["ls", "-t", "--", "-r"]);
        let args = Args::try_parse_from(["msb-exec", "ls", "-t"]).unwrap();
        assert_eq!(args.command, ["ls", "-t"]);
        assert!(!args.tty);
    }
}
