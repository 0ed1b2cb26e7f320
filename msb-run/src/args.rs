//! The command line of msb-run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use msb::vm::name;

use crate::docker;
use crate::page::PAGE;
use crate::passed::{Boot, Exec, Passed, Pull};

/// Run a command in a new microVM
///
/// Pulls the image unless it is in the store, boots it, runs the command in it, and stops the VM when the command has ended. The
/// command uses the caller's stdin, stdout, stderr, terminal and signals, as with msb-exec. Without --name everything of the VM is
/// removed at the end, whatever ends msb-run.
#[derive(Debug, Parser)]
#[command(name = "msb-run", version, after_help = PAGE.help(), override_usage = USAGE)]
pub struct Args {
    /// The VM's name. The VM is stopped at the end and keeps its disk, which the next VM of that name has; msb-rm removes it [default:
    /// generated, and nothing is kept]
    #[arg(long, value_name = "NAME", value_parser = name::parse)]
    pub name: Option<String>,

    /// With --name: keep nothing, and remove the disk that a VM of that name has left
    #[arg(long)]
    pub rm: bool,

    /// Stop and remove a VM of that --name, once the image is there and the new VM can boot
    #[arg(long, requires = "name")]
    pub replace: bool,

    /// Leave the VM running, start the command in it without a terminal, and print the VM's name. With --rm everything is removed
    /// when the command has ended
    #[arg(short, long)]
    pub detach: bool,

    /// When to ask the registry: missing, if the image is not in the store; always, for what the tag names now; never, to fail if
    /// the image is not in the store
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Missing)]
    pub pull: When,

    /// Apply the operations in the file OPS to the root first, in a new upper (see msb-ops(5))
    #[arg(long, value_name = "OPS")]
    pub patch: Option<PathBuf>,

    /// Start from the snapshot NAME in place of a boot. If there is none, or it was made of another image, other patches or other flags,
    /// boot under QEMU with a block root, and save that VM before the command runs
    #[arg(long, value_name = "NAME", value_parser = name::parse, conflicts_with_all = ["commit", "print"])]
    pub snapshot: Option<String>,

    /// Run the command as a step of a build: on a block root, and if it succeeds, print the record with what it has written in a new
    /// upper. The record's own upper stays as it is, the image's entrypoint does not precede the command, and what the command
    /// prints goes to stderr
    #[arg(long, conflicts_with_all = ["name", "rm", "replace", "detach", "print"])]
    pub commit: bool,

    /// With --commit: if the same command has run on the same root before, do nothing and print the record of that time
    #[arg(long, requires = "commit")]
    pub cache: bool,

    /// With --commit: the record to start from, in place of IMAGE: a file, the name of a running VM, or - for stdin. CMD follows --
    #[arg(short = 'r', long, value_name = "NAME|FILE", requires = "commit")]
    pub record: Option<String>,

    /// With --commit: write the record to FILE, which is created or replaced only on success [default: stdout]
    #[arg(short, long, value_name = "FILE", requires = "commit")]
    pub output: Option<PathBuf>,

    /// Print the commands instead of running them. A shell that runs them does the same
    #[arg(short = 'x', long)]
    pub print: bool,

    /// Print errors and warnings only
    #[arg(short, long)]
    pub quiet: bool,

    /// The arguments for msb-boot.
    #[command(flatten)]
    pub boot: Passed<Boot>,

    /// The arguments for msb-pull.
    #[command(flatten)]
    pub pulling: Passed<Pull>,

    /// The arguments for msb-exec.
    #[command(flatten)]
    pub exec: Passed<Exec>,

    /// The image, as for msb-pull
    #[arg(value_name = "IMAGE", required_unless_present = "record", default_value = "", hide_default_value = true)]
    pub image: OsString,

    /// The command; the image's entrypoint precedes it, unless --init is given [default: the image's]. Flags between IMAGE and CMD
    /// belong to msb-run
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

const USAGE: &str = "msb-run [OPTIONS] IMAGE [[--] CMD...]\n       msb-run --commit [OPTIONS] -r RECORD -- CMD...";

/// When msb-pull asks the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Each time.
    Always,
    /// If the image is not in the store.
    Missing,
    /// Never.
    Never,
}

impl When {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Args {
    /// Parses a command line.
    ///
    /// # Errors
    /// A usage error, which for a flag of docker's says what to use instead.
    pub fn read(argv: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut args = Self::try_parse_from(argv).map_err(docker::explain::<Self>)?;
        if args.record.is_some() && !args.image.is_empty() {
            // There is no image, so the first word is the command's.
            args.command.insert(0, std::mem::take(&mut args.image));
        }
        if let Some(why) = args.unsavable() {
            return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
        }
        if args.commit && args.command.is_empty() {
            let message = "--commit needs a command (write it behind --)";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, message));
        }
        Ok(args)
    }

    /// Why a VM with these flags cannot start from a snapshot, and what to do.
    fn unsavable(&self) -> Option<String> {
        self.snapshot.as_ref()?;
        for (flag, remedy) in UNSAVABLE {
            if self.boot.has(flag) && self.boot.value(flag).is_none_or(|value| value != "no" && value != "false") {
                return Some(format!("--{flag} cannot be used with --snapshot ({remedy})"));
            }
        }
        for (flag, allowed) in [("vmm", "qemu"), ("root", "block"), ("channel", "serial")] {
            if let Some(value) = self.boot.value(flag).filter(|value| value != allowed && value != "auto") {
                let value = value.display();
                return Some(format!(
                    "--{flag} {value} cannot be used with --snapshot (it needs {allowed}; leave --{flag} out)"
                ));
            }
        }
        None
    }
}

/// Flags of msb-boot that --snapshot excludes, each with a remedy.
const UNSAVABLE: [(&str, &str); 6] = [
    ("volume", "copy files with msb-cp, or leave --snapshot out"),
    ("mount", "copy files with msb-cp, use --tmpfs, or leave --snapshot out"),
    ("restart", "a VM that starts from a snapshot is not restarted; leave one of them out"),
    ("commit-on-stop", "the upper of a snapshot is not changed; leave one of them out"),
    ("overlay", "a VM with a disk root cannot be saved; leave it out"),
    ("fresh", "each VM starts with a new copy of the saved disk; leave it out"),
];
