//! msb-logs: shows the console of a VM, or the output of a command that was detached in it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};
use clap::Parser;
use msb::record::Vm;
use msb::store::{home, layout};
use msb::tool::exit::OutputError;
use msb::tool::man::{self, Page};
use msb::tool::source;
use msb::vm::{name, rundir, supervisor};
use msb::{program, tool::cli, tool::exit, tool::follow, tool::start};

const PAGE: Page = Page {
    operands: "NAME [ID]",
    forms: &[],
    notes: &[],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_HOME, man::MSB_RUN],
    files: &[
        ("/run/msb/NAME/kernel.log", "The console of the VM NAME; at 4 MiB it is renamed to kernel.log.1"),
        ("$MSB_HOME/logs/NAME", "The logs of a boot of NAME that failed"),
    ],
    examples: &[
        ("the console of a VM", "msb-logs worker"),
        (
            "the output of a detached command, until it ends",
            "id=$(msb-exec worker -d -- sh -c 'echo started; sleep 1' | jq .id)\nmsb-logs -f worker \"$id\"",
        ),
    ],
    see_also: &["msb(1)", "msb-ls(1)", "msb-exec(1)", "msb-boot(1)"],
};

/// Show a microVM's console, or the output of a command in it
///
/// Shows what the guest's kernel, init and agent have printed, also of a VM that has ended until msb-stop cleans up after it, and
/// of the last boots that failed. Control sequences are removed. With ID, shows the recent output of the detached command with that
/// ID, 64 KiB of each stream, and then what follows until the command ends.
#[derive(Debug, Parser)]
#[command(name = "msb-logs", version, after_help = PAGE.help())]
struct Args {
    /// Also show what follows, until the VM ends
    #[arg(short, long)]
    follow: bool,

    /// The VM
    #[arg(value_name = "NAME", value_parser = name::parse)]
    name: String,

    /// The command, by the ID that msb-exec --detach has printed
    #[arg(value_name = "ID")]
    id: Option<u32>,
}

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report("msb-logs", exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    if let Some(id) = args.id {
        return Err(attach(&args.name, id));
    }
    let (log, vm) = match source::named(&args.name) {
        Ok(record) => {
            let vm = record.vm()?.clone();
            (vm.kernel_log.clone(), Some(vm))
        }
        Err(error) => {
            let failed = layout::logs(&home::home()?, &args.name).join(rundir::KERNEL_LOG);
            (Some(failed).filter(|log| log.exists()).ok_or(error)?, None)
        }
    };
    show(&log, vm.as_ref().filter(|_| args.follow))?;
    Ok(0)
}

/// Shows a log with its older part, and what follows while `vm` runs.
fn show(log: &Path, vm: Option<&Vm>) -> anyhow::Result<()> {
    let older = rundir::older_part(log);
    let supervisor = vm.map(supervisor::find).transpose().context("supervisor")?.flatten();
    let shown = || {
        if older.exists() {
            follow::show(&older, std::io::stdout(), None)?;
        }
        follow::show(log, std::io::stdout(), supervisor.as_ref())
    };
    shown().map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => OutputError::ReaderGone.into(),
        _ => anyhow!(error).context(format!("log {log:?}")),
    })
}

/// Becomes an msb-exec that is attached to a command. Returns only on failure.
fn attach(name: &str, id: u32) -> anyhow::Error {
    let Some(program) = program::find("msb-exec", &[]) else { return anyhow!("msb-exec is not installed") };
    let error = Command::new(&program).args(["-n", name, "--attach", &id.to_string()]).exec();
    anyhow!(error).context(format!("{program:?}"))
}
