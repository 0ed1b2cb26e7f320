//! The command line, which is runc's: global options before the command, and options of the command also behind the ID.

use std::io;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use msb::record::VmmChoice;

use crate::page::PAGE;

/// Where the state of containers is, in the directory of run directories. It does not depend on flags that some callers give to some
/// commands only.
const ROOT: &str = "msb-oci";

/// Run OCI containers as microVMs
///
/// An OCI runtime for podman, containerd and other callers of runc. Each container is a microVM of its own: its root and its volumes are
/// shared with the guest, its command runs in the guest, and a process on the host stands for it. The caller gives a bundle: a directory
/// with a config.json as the OCI runtime specification has it, which podman and containerd write.
#[derive(Debug, Parser)]
#[command(name = "msb-oci", version, after_help = PAGE.help(), disable_help_subcommand = true, override_usage = USAGE)]
pub(crate) struct Args {
    #[command(flatten)]
    pub global: Global,

    #[command(subcommand)]
    pub verb: Verb,
}

const USAGE: &str = "msb-oci [OPTIONS] COMMAND [ARGUMENTS...]";

#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The directory for the state of containers [default: /run/msb-oci, or $XDG_RUNTIME_DIR/msb-oci for users]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Append errors and warnings to FILE
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// The format of that file
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Also log what a container asks for and a microVM does differently
    #[arg(long)]
    pub debug: bool,

    /// Let systemd make the cgroup: its path is SLICE:PREFIX:NAME, and it is a scope
    #[arg(long)]
    pub systemd_cgroup: bool,

    /// The virtual machine monitor; the annotation dev.msb.vmm overrides it [default: auto]
    #[arg(long, value_enum)]
    pub vmm: Option<VmmChoice>,

    /// Run all containers of a pod in one VM, in place of a VM for each. The annotation dev.msb.pod of the sandbox overrides this
    #[arg(long)]
    pub pod_vm: bool,

    /// Ignored
    #[arg(long, value_name = "BOOL", hide = true)]
    pub rootless: Option<String>,
}

impl Global {
    /// The directory for the state of containers, as an absolute path: a relative one would mean something else to the processes that
    /// stand for containers.
    ///
    /// # Errors
    /// There is no such directory for this user.
    pub(crate) fn root(&self) -> io::Result<PathBuf> {
        match &self.root {
            Some(root) => std::path::absolute(root),
            None => Ok(msb::vm::name::runtime_dir()?.join(ROOT)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a container: boot its VM, and prepare its command
    Create(Create),
    /// Start the command of a created container
    Start(Id),
    /// Create and start a container, wait for its end, and delete it
    Run(Create),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container's command
    Kill(Kill),
    /// Delete a container
    Delete(Delete),
    /// Run a further command in a container
    Exec(Box<Exec>),
    /// Print the PIDs of a container
    Ps(Ps),
    /// Freeze a container with its VM
    Pause(Id),
    /// Thaw a container
    Resume(Id),
    /// Change the limits of a container
    Update(Update),
    /// Print the containers
    List(List),
    /// Print a config.json to begin with
    Spec(Spec),
    /// Print what this runtime implements
    Features,
    /// Refused
    #[command(hide = true)]
    Checkpoint(Rest),
    /// Refused
    #[command(hide = true)]
    Restore(Rest),
    /// Refused
    #[command(hide = true)]
    Events(Rest),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Id {
    /// The container
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The container
    pub id: String,

    /// The directory of config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,

    /// Write the PID of the process that stands for the container to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Send the controlling end of the terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,

    /// How many descriptors above 2 the command inherits; only 0 is possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,

    #[arg(long, hide = true)]
    pub no_pivot: bool,

    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Kill {
    /// The container
    pub id: String,

    /// A name or number
    #[arg(default_value = "TERM")]
    pub signal: String,

    /// Send it to all commands in the container
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// The container
    pub id: String,

    /// End it if it runs, and succeed if it does not exist
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// The container
    pub id: String,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,

    /// The object "process" of a config.json
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,

    /// Return when the command runs
    #[arg(short, long)]
    pub detach: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,

    /// The working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// Set a variable (repeatable)
    #[arg(short, long, value_name = "K=V")]
    pub env: Vec<String>,

    /// The user and group, as numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,

    /// Write the PID of the process that stands for the command to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Send the controlling end of the terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,

    /// How many descriptors above 2 the command inherits; only 0 is possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// The container
    pub id: String,

    /// The format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,

    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub options: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// The format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,

    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// The container
    pub id: String,

    /// A file with the object linux.resources of a config.json, or - for stdin
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,

    /// The memory limit in bytes
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<i64>,

    /// The relative weight of its processor time
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,

    /// Its processor time in each period, in microseconds
    #[arg(long, value_name = "QUOTA")]
    pub cpu_quota: Option<i64>,

    /// The period, in microseconds
    #[arg(long, value_name = "PERIOD")]
    pub cpu_period: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Spec {
    /// The directory for config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        Args::try_parse_from(["msb-oci"].into_iter().chain(line.split_whitespace())).map(|args| args.verb)
    }

    #[test]
    fn options_stand_before_or_behind_the_id() {
        for line in ["create --bundle /b --pid-file p ID", "create ID -b /b --pid-file=p"] {
            let Verb::Create(create) = parse(line).unwrap() else { panic!("{line}") };
            assert_eq!((create.id.as_str(), create.bundle, create.pid_file), ("ID", "/b".into(), Some("p".into())));
        }
        let Verb::Kill(kill) = parse("kill --all ID 9").unwrap() else { panic!() };
        assert_eq!((kill.all, kill.id.as_str(), kill.signal.as_str()), (true, "ID", "9"));
        let Verb::Kill(kill) = parse("kill -a ID").unwrap() else { panic!() };
        assert_eq!(kill.signal, "TERM");
        let Verb::Update(update) = parse("update --resources - ID").unwrap() else { panic!() };
        assert_eq!(update.resources, Some("-".into()));
    }

    #[test]
    fn words_after_the_id_of_exec_are_the_command() {
        let Verb::Exec(exec) = parse("exec -t --cwd / ID ls -l -t").unwrap() else { panic!() };
        assert_eq!((exec.tty, exec.command), (true, ["ls", "-l", "-t"].map(str::to_owned).to_vec()));
        let Verb::Exec(exec) = parse("exec --process f --detach --pid-file p ID").unwrap() else { panic!() };
        assert!(exec.detach && exec.command.is_empty());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
