//! The command line of msb-exec.

// Doc comments of flags are help texts, in which brackets do not make links.
#![allow(rustdoc::broken_intra_doc_links)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser};
use msb::tool::source::VmRecord;
use msb::wire::exec::{LIMITS, Limit};
use msb::{record::owner, tool::duration, tool::env};

use crate::keys::Keys;
use crate::page::PAGE;

/// Run a command in a running microVM
///
/// The command uses the caller's stdin, stdout and stderr: bytes pass unchanged in both directions, end-of-file included. Signals
/// are forwarded to the command's process group, real-time signals included. Not forwarded are those of faults and job control, CHLD,
/// PIPE and URG. When the command or msb-exec ends,
/// anything the command left running is killed; use --detach to keep it.
#[derive(Debug, Parser)]
#[command(name = "msb-exec", version, after_help = PAGE.help(), override_usage = USAGE)]
#[command(group = ArgGroup::new("other").args(["detach", "attach", "wait", "signal", "limits", "list", "rsh"]).multiple(false))]
pub struct Args {
    #[command(flatten)]
    pub record: VmRecord,

    /// Print errors and warnings only
    #[arg(short = 'q', long)]
    pub quiet: bool,

    /// Give the command a terminal [default: if stdin and stdout are one]
    #[arg(short = 't', long = "tty", overrides_with = "no_tty")]
    pub tty: bool,

    /// Give the command no terminal
    #[arg(short = 'T', long = "no-tty", overrides_with = "tty")]
    pub no_tty: bool,

    /// Keep stdin open with --detach, where the default is /dev/null; without --detach it is always open, as with ssh
    #[arg(short = 'i', long = "interactive", conflicts_with = "no_stdin")]
    pub interactive: bool,

    /// Do not read stdin; the command gets /dev/null
    #[arg(short = 'n', long = "no-stdin")]
    pub no_stdin: bool,

    /// Set a variable; K alone passes on the caller's value (repeatable)
    #[arg(short = 'e', long = "env", value_name = "K[=V]", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<OsString>,

    /// Read variables from FILE, one K=V or K per line; -e overrides them (repeatable)
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,

    /// The working directory [default: the image's]
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    pub workdir: Option<OsString>,

    /// Run as this user, given as a name or number [default: the image's]
    #[arg(short = 'u', long = "user", value_name = "USER[:GROUP]", value_parser = user)]
    pub user: Option<String>,

    /// A resource limit as in prlimit(1): as, core, cpu, nofile, nproc, stack, …; "unlimited" is accepted (repeatable)
    #[arg(long = "rlimit", value_name = "NAME=SOFT[:HARD]", value_parser = rlimit)]
    pub rlimits: Vec<Limit>,

    /// The file mode creation mask, in octal [default: 022]
    #[arg(long, value_name = "MASK", value_parser = umask)]
    pub umask: Option<u32>,

    /// Stop the command, with everything it started, after DURATION: TERM, then KILL 5 s later. As 90 (seconds), 1m30s, 2h or
    /// 500ms; 0 for no limit
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub timeout: Option<Duration>,

    /// Wait up to DURATION for the VM to be up
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub wait_ready: Option<Duration>,

    /// Write the exit status and resource usage to FILE, as a line of JSON
    #[arg(long, value_name = "FILE")]
    pub json_status: Option<PathBuf>,

    /// Run the command that FILE describes: a process object of the OCI runtime specification, in JSON. It is complete: the image's
    /// settings do not apply, of the caller's environment nothing is passed on, and only a missing HOME is added. Without
    /// "capabilities" it has none. "apparmorProfile", "selinuxLabel", "ioPriority" and "scheduler" are ignored
    #[arg(long, value_name = "FILE", conflicts_with_all = PROCESS_EXCLUDES)]
    pub process: Option<PathBuf>,

    /// Run the command as the first process of a new container, which FILE describes: a configuration of the OCI runtime
    /// specification (config.json), whose paths are those of the guest. root.path is a directory of the guest's root, and so are the
    /// sources of bind mounts. The namespaces are new, except that of the network; the command is that of FILE, unless --process or a
    /// command is given. Of linux.resources, the limits of memory and pids and the shares, quota and period of cpu apply to all
    /// commands in the container together. Its other members, "seccomp" and the propagation of mounts are ignored
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inside", "shell", "rsh", "attach", "wait", "signal", "limits", "list"])]
    pub container: Option<PathBuf>,

    /// Run the command in the container whose first process is the command ID
    #[arg(long, value_name = "ID", conflicts_with_all = ["rsh", "attach", "wait", "signal", "limits", "list"])]
    pub inside: Option<u32>,

    /// Write a line of JSON to the descriptor FD and close it: {"event":"started","id":ID,"pid":PID} when the command runs, or
    /// {"event":"failed","status":N,"error":MESSAGE} if it does not, with the exit status that msb-exec then has
    #[arg(long, value_name = "FD", value_parser = descriptor(), conflicts_with_all = ["wait", "signal", "limits", "list"])]
    pub started_fd: Option<i32>,

    /// Prepare the command up to its execve(2), and run it when a byte can be read from the descriptor FD. At end-of-file it is
    /// given up. --started-fd then gets a line {"event":"prepared","id":ID,"pid":PID} before the other one
    #[arg(long, value_name = "FD", value_parser = descriptor(), conflicts_with_all = ["other", "timeout"])]
    pub prepare_fd: Option<i32>,

    /// Stand in for the command towards a program that supervises it: forward all signals that can be caught, also CONT, TSTP and
    /// CHLD, detach on no keys, and print no error that --started-fd has got
    #[arg(long, conflicts_with = "other")]
    pub stand_in: bool,

    /// Run LINE with the guest's /bin/sh; arguments after it are its $0, $1, …
    #[arg(long, value_name = "LINE")]
    pub shell: Option<OsString>,

    /// Act as the remote shell for rsync, git and the like: arguments are [-l USER] [USER@]HOST COMMAND…. HOST is ignored: the VM
    /// is that of the record. The guest's /bin/sh runs the command in the user's home
    #[arg(long, conflicts_with_all = ["shell", "tty"])]
    pub rsh: bool,

    /// With --rsh: the user
    #[arg(short = 'l', value_name = "USER", value_parser = user, requires = "rsh", conflicts_with = "user", hide = true)]
    pub login: Option<String>,

    /// Start the command, print its id as a line of JSON, and leave it running; msb-logs shows its output
    #[arg(short = 'd', long)]
    pub detach: bool,

    /// Do nothing if no command is given and the image has none
    #[arg(long)]
    pub optional: bool,

    /// The key sequence that detaches msb-exec from a terminal and leaves the command running; "" for none. A sequence that is
    /// not completed reaches the command after a moment
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = Keys::parse)]
    pub detach_keys: Keys,

    /// Reattach to the detached command ID: first its recent output (the last 64 KiB of each stream), then live. The last 32
    /// commands that have ended can be attached to repeatedly
    #[arg(long, value_name = "ID")]
    pub attach: Option<u32>,

    /// Wait for the command ID and exit with its status, which is available for the last 65536 detached commands that have ended
    #[arg(long, value_name = "ID")]
    pub wait: Option<u32>,

    /// Send SIGNAL, a name or number, to the command ID
    #[arg(long, value_names = ["SIGNAL", "ID"], num_args = 2)]
    pub signal: Option<Vec<String>>,

    /// Change limits of the container whose first process is the command ID: those of FILE, as in linux.resources of --container. They
    /// apply at once, and all of them or none. A limit of -1 is none. A container that was created without limits gets none
    #[arg(long, value_names = ["FILE", "ID"], num_args = 2)]
    pub limits: Option<Vec<OsString>>,

    /// Print a line of JSON for each running command, and for the last 32 detached commands that have ended
    #[arg(long)]
    pub list: bool,

    /// The VM's name, and the command with its arguments [default: the image's entrypoint and cmd]. A word before -- is the name
    /// of the VM; with -r it belongs to the command
    #[arg(value_name = "NAME] [-- CMD", trailing_var_arg = true, allow_hyphen_values = false)]
    pub command: Vec<OsString>,

    /// Whether the record was named by the first word instead of `-r`.
    #[arg(skip)]
    pub is_named_by_word: bool,
}

/// What a process object says itself.
const PROCESS_EXCLUDES: [&str; 13] = [
    "env", "env_file", "workdir", "user", "rlimits", "umask", "shell", "rsh", "attach", "wait", "signal", "limits",
    "list",
];

/// A descriptor besides the streams.
fn descriptor() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(3..)
}

const USAGE: &str = "msb-exec [OPTIONS] [NAME] [-- CMD...]\n       msb-exec [OPTIONS] -r RECORD [--] [CMD...]";

impl Args {
    /// Parses a command line. Without `-r`, a first word that does not follow `--` is the same as `-r WORD`.
    ///
    /// # Errors
    /// A usage error.
    pub fn read(argv: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut args = Self::try_parse_from(&argv)?;
        let place = argv.len() - args.command.len();
        let follows_dashes = place > 0 && argv[place - 1] == "--";
        if !args.command.is_empty() && !args.rsh && args.record.record.is_none() && !follows_dashes {
            let (before, words) = argv.split_at(place);
            let with_flag = before.iter().cloned().chain(["-r".into()]).chain(words.iter().cloned());
            args = Self { is_named_by_word: true, ..Self::try_parse_from(with_flag)? };
        }
        let is_about_others =
            args.attach.is_some() || args.wait.is_some() || args.signal.is_some() || args.limits.is_some() || args.list;
        if is_about_others && !args.command.is_empty() {
            let message = "--attach, --wait, --signal, --limits and --list take no command";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        if args.process.is_some() && !args.command.is_empty() {
            return Err(Self::command().error(ErrorKind::ArgumentConflict, "--process has the command"));
        }
        Ok(args)
    }
}

fn variable(text: OsString) -> Result<OsString, &'static str> {
    env::check(&text).map(|()| text)
}

fn user(text: &str) -> Result<String, String> {
    owner::check_user(text).map(|()| text.to_owned())
}

fn umask(text: &str) -> Result<u32, &'static str> {
    u32::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777).ok_or("an octal number up to 777 is expected")
}

fn rlimit(text: &str) -> Result<Limit, String> {
    let (name, values) = text.split_once('=').ok_or("NAME=SOFT[:HARD] is expected")?;
    let name = name.to_ascii_lowercase();
    if !LIMITS.contains(&name.as_str()) {
        return Err(format!("no resource {name:?} ({})", LIMITS.join(", ")));
    }
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("not a number: {number:?}")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
        return Err("the soft limit is over the hard one".into());
    }
    Ok(Limit { name, soft, hard })
}

/// The signal and the id of `--signal`.
///
/// # Errors
/// An unknown signal, or an id that is not a number.
pub fn signal_and_id(words: &[String]) -> Result<(i32, u32), String> {
    let [signal, id] = words else { return Err("--signal SIGNAL ID is expected".into()) };
    let id = id.parse().map_err(|_| format!("id {id:?}: not a number"))?;
    Ok((msb::record::signal::number(signal).ok_or_else(|| format!("unknown signal {signal:?}"))?, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed_as_prlimit_parses_them() {
        for (text, name, soft, hard) in [
            ("nofile=100", "nofile", Some(100), Some(100)),
            ("NPROC=1:2", "nproc", Some(1), Some(2)),
            ("core=0:unlimited", "core", Some(0), None),
            ("stack=unlimited", "stack", None, None),
        ] {
            assert_eq!(rlimit(text), Ok(Limit { name: name.into(), soft, hard }), "{text}");
        }
        for bad in ["nofile", "none=1", "nofile=x", "nofile=2:1", "nofile=unlimited:1", "nofile=", "=1"] {
            assert!(rlimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn words_after_the_command_are_its_arguments() {
        let args = read("-r vm -- ls -t -- -r").unwrap();
        assert_eq!(args.command, ["ls", "-t", "--", "-r"]);
        let args = read("-r vm ls -t").unwrap();
        assert_eq!(args.command, ["ls", "-t"]);
        assert!(!args.tty);
    }

    fn read(line: &str) -> Result<Args, clap::Error> {
        Args::read(["msb-exec"].into_iter().chain(line.split_whitespace()).map(Into::into).collect())
    }

    #[test]
    fn a_first_word_is_the_vm_and_words_after_dashes_are_the_command() {
        for (line, name, command, tty) in [
            ("", None, "", false),
            ("--", None, "", false),
            ("-- ls -l", None, "ls -l", false),
            ("-- -- ls", None, "-- ls", false),
            ("w1", Some("w1"), "", false),
            ("w1 --", Some("w1"), "", false),
            ("w1 -- ls -l", Some("w1"), "ls -l", false),
            ("w1 ls -l", Some("w1"), "ls -l", false),
            ("w1 -t -- ls -t", Some("w1"), "ls -t", true),
            ("-t w1 -- ls", Some("w1"), "ls", true),
            ("-w -t w1 -- ls", None, "", false),
            ("-w /srv w1 ls", Some("w1"), "ls", false),
            ("-t -- w1 -- ls", None, "w1 -- ls", true),
            ("./vm.json -- ls", Some("./vm.json"), "ls", false),
            ("-r a b -- ls", Some("a"), "b -- ls", false),
            ("- -- cat", Some("-"), "cat", false),
        ] {
            let Ok(args) = read(line) else {
                assert!(line.starts_with("-w -t"), "{line}");
                continue;
            };
            assert_eq!(args.record.record.as_deref(), name, "{line}");
            assert_eq!(args.command, command.split_whitespace().collect::<Vec<_>>(), "{line}");
            assert_eq!(args.tty, tty, "{line}");
            assert_eq!(args.is_named_by_word, name.is_some() && !line.contains("-r "), "{line}");
        }
    }

    #[test]
    fn options_about_other_commands_take_a_name_and_no_command() {
        for line in [
            "--list w1",
            "w1 --list",
            "--wait 3 w1",
            "w1 --attach 3",
            "--signal TERM 3 w1",
            "--limits file 3 w1",
            "-r w1 --list",
        ] {
            let args = read(line).unwrap();
            assert_eq!(args.record.record.as_deref(), Some("w1"), "{line}");
        }
        for line in
            ["--list w1 ls", "--list -- ls", "w1 --wait 3 -- ls", "-r w1 --attach 3 ls", "w1 --signal TERM 3 -- x"]
        {
            assert_eq!(read(line).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn a_remote_shell_takes_the_arguments_of_rsync_and_git() {
        let args = Args::try_parse_from(["msb-exec", "--rsh", "-l", "app", "vm", "rsync", "--server", "-e.x"]).unwrap();
        assert_eq!(args.login.as_deref(), Some("app"));
        assert_eq!(args.command, ["vm", "rsync", "--server", "-e.x"]);
        let args = read("--rsh vm ls").unwrap();
        assert_eq!((args.record.record, args.command.len()), (None, 2));
        for bad in [&["--rsh", "-d", "vm", "true"][..], &["-l", "app", "vm", "true"]] {
            assert!(Args::try_parse_from([&["msb-exec"], bad].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_signal_has_a_name_or_a_number_and_a_target() {
        let words = |signal: &str, id: &str| signal_and_id(&[signal.to_owned(), id.to_owned()]);
        for (signal, number) in [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("9", 9), ("64", 64)] {
            assert_eq!(words(signal, "3"), Ok((number, 3)), "{signal}");
        }
        for (signal, id) in [("NONE", "3"), ("0", "3"), ("65", "3"), ("TERM", "x"), ("", "3")] {
            assert!(words(signal, id).is_err(), "{signal} {id}");
        }
    }
}
