//! msb-rm: removes what the store keeps for a VM.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;
use msb::store::{home, layout, sandbox};
use msb::tool::man::{self, Page};
use msb::vm::{name, supervisor};
use msb::{program, tool::cli, tool::exit, tool::start, tool::user_namespace};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::survey::{self, State, Vm};

const TOOL: &str = "msb-rm";

const PAGE: Page = Page {
    operands: "NAME...",
    forms: &[],
    notes: &[],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_HOME, man::MSB_RUN],
    files: &[
        ("$MSB_HOME/sandboxes/NAME", "The scratch disk of the VM NAME, and the upper that msb-run made for it"),
        (
            "$MSB_HOME/sandboxes/ID",
            "The upper of a pipe, if the VM used it last and no snapshot and no other VM needs it",
        ),
    ],
    examples: &[("a VM that is stopped", "msb-rm worker"), ("a VM that may be running", "msb-rm -f worker")],
    see_also: &["msb(1)", "msb-ls(1)", "msb-run(1)", "msb-stop(1)", "msb-store(1)"],
};

/// Remove a microVM's disk and upper
///
/// Removes what is kept for the VMs of these names: the scratch disk with what their guests wrote, and the upper that msb-run
/// made for them, or a pipe without --upper. Also cleans up after a VM that has ended. Images stay, and so does the directory of
/// --upper.
#[derive(Debug, Parser)]
#[command(name = "msb-rm", version, after_help = PAGE.help())]
struct Args {
    /// Stop a VM that is running first, as msb-stop does, and ignore names that no VM has
    #[arg(short, long)]
    force: bool,

    /// Ignore names that no VM has
    #[arg(short, long)]
    ignore: bool,

    /// The VMs
    #[arg(value_name = "NAME", required = true, value_parser = name::parse)]
    names: Vec<String>,
}

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    user_namespace::enter_store()?;
    let mut code = 0;
    // A VM that cannot be removed does not keep the others.
    for name in &args.names {
        if let Err(error) = remove(name, args.force, args.ignore) {
            exit::warn(TOOL, &format!("{name}: {error:#}"));
            code = exit::FAILED;
        }
    }
    Ok(code)
}

fn remove(name: &str, force: bool, ignore: bool) -> anyhow::Result<()> {
    let vm = survey::named(name)?;
    match &vm {
        Some(vm) if vm.state.is_alive() && !force => {
            bail!("it is {} (stop it with \"msb-stop {name}\", or remove it with -f)", vm.state.name())
        }
        Some(vm) if vm.state == State::Starting => end_boot(vm)?,
        Some(vm) => stop(vm)?,
        None => {}
    }
    let home = home::home()?;
    let sandbox = layout::sandbox(&home, name);
    // Read before the disk is removed: a file beside it lists what the VM needs.
    let uppers = survey::uppers_of(&home, name)?;
    let mut is_removed = sandbox::remove(&sandbox).with_context(|| format!("{sandbox:?}"))?;
    for sandbox in uppers {
        is_removed |= sandbox::remove(&sandbox).with_context(|| format!("{sandbox:?}"))?;
    }
    if vm.is_none() && !is_removed && !force && !ignore {
        bail!("no VM of that name (msb-ls -a lists all)");
    }
    Ok(())
}

/// Stops a VM, or cleans up after one that has ended.
fn stop(vm: &Vm) -> anyhow::Result<()> {
    let program = program::find("msb-stop", &[]).context("msb-stop is not installed")?;
    let mut command = Command::new(&program);
    command.args(["-q", &vm.name]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("{program:?}"))?;
    // A VM that had to be killed is also gone.
    if !status.success() && survey::named(&vm.name)?.is_some() {
        bail!("msb-stop could not stop it");
    }
    Ok(())
}

/// Ends a VM that is starting: its supervisor removes everything of it.
fn end_boot(vm: &Vm) -> anyhow::Result<()> {
    supervisor::check_owner(&vm.dir)?;
    if let Some(supervisor) = supervisor::of_dir(&vm.dir)? {
        // It may have ended in between.
        let _ = pidfd_send_signal(&supervisor, Signal::TERM);
        while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(&supervisor, PollFlags::IN)], None) {}
    }
    match survey::named(&vm.name)? {
        Some(vm) if vm.state != State::Starting => stop(&vm),
        _ => Ok(()),
    }
}
