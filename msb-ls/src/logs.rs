//! msb-logs: shows the console of a VM, or the output of a command that was detached in it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use msb::record::Vm;
use msb::store::{home, layout};
use msb::tool::exit::OutputError;
use msb::tool::follow::Lines;
use msb::tool::man::{self, Page};
use msb::tool::source;
use msb::vm::{name, rundir, supervisor};
use msb::{tool::cli, tool::exit, tool::follow, tool::start};

use crate::output;

const PAGE: Page = Page {
    operands: "NAME [ID]",
    forms: &[],
    notes: &[],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_HOME, man::MSB_RUN],
    files: &[
        ("/run/msb/NAME/kernel.log", "The console of the VM NAME; at 4 MiB it is renamed to kernel.log.1"),
        (
            "/run/msb/NAME/execs/ID",
            "The output of the detached command ID, in frames of msb-wire(5); at 256 KiB it is renamed to ID.1. The output of 64 commands \
             is kept",
        ),
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
/// of the last boots that failed. Control sequences are removed. With ID, shows the output of the detached command with that ID, as
/// much as is kept, usually the last 200 KiB or more: its stdout on stdout, its stderr on stderr, and unchanged.
#[derive(Debug, Parser)]
#[command(name = "msb-logs", version, after_help = PAGE.help())]
struct Args {
    /// Also show what follows, until the VM or the command ends
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
        return show_command(args, id);
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
    let supervisor = vm.map(find_supervisor).transpose()?.flatten();
    let lines = Lines::new(std::io::stdout());
    follow::read(log, &rundir::older_part(log), lines, supervisor.as_ref())
        .map_err(|error| output_error(error.into()).context(format!("log {log:?}")))
}

/// Shows the output of a detached command.
fn show_command(args: &Args, id: u32) -> anyhow::Result<u8> {
    let vm = source::named(&args.name)?.vm()?.clone();
    let supervisor = find_supervisor(&vm)?;
    let dir = name::run_dir(&args.name).context("run directory (set MSB_RUN)")?;
    let until = supervisor.as_ref().filter(|_| args.follow);
    output::show(&dir, &args.name, id, until, supervisor.is_some()).map_err(output_error)?;
    Ok(0)
}

fn find_supervisor(vm: &Vm) -> anyhow::Result<Option<OwnedFd>> {
    supervisor::find(vm).context("supervisor")
}

/// A reader of our output that is gone is not an error of the log.
fn output_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::BrokenPipe) => OutputError::ReaderGone.into(),
        _ => error,
    }
}
