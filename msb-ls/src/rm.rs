//! msb-rm: removes what the store keeps for a VM.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;
use msb::lock::{self, Lock};
use msb::store::layout::{self, SCRATCH_DISK, WORK};
use msb::store::{home, publish};
use msb::tool::man::{self, Page};
use msb::vm::{name, supervisor};
use msb::{program, tool::cli, tool::exit, tool::start};
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
    files: &[("$MSB_HOME/sandboxes/NAME", "The scratch disk of the VM NAME, and the upper that msb-run made for it")],
    examples: &[("a VM that is stopped", "msb-rm worker"), ("a VM that may be running", "msb-rm -f worker")],
    see_also: &["msb(1)", "msb-ls(1)", "msb-run(1)", "msb-stop(1)"],
};

/// Remove a microVM's disk and upper
///
/// Removes what is kept for the VMs of these names: the scratch disk with what their guests wrote, and the upper that msb-run made
/// for them. Also cleans up after a VM that has ended. Images stay, and so does an upper that msb-patch made elsewhere.
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
    let sandbox = layout::sandbox(&home::home()?, name);
    let is_removed = remove_sandbox(&sandbox).with_context(|| format!("{sandbox:?}"))?;
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

/// Removes a sandbox that nothing uses. False: there is none.
fn remove_sandbox(sandbox: &Path) -> anyhow::Result<bool> {
    let lock = match lock::open(sandbox, Lock::Exclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    // Another msb-rm had it, and has removed it.
    if rustix::fs::fstat(&lock)?.st_nlink == 0 {
        return Ok(false);
    }
    let _disk =
        lock_part(&sandbox.join(SCRATCH_DISK), "a VM has the disk (stop it first; another MSB_RUN may have it)")?;
    let _work = lock_part(&sandbox.join(WORK), "its upper is in use (unmount it, or stop the VM that has it)")?;
    // With another name nobody finds half of it. While it is locked, no other tool takes it for abandoned.
    let removed = publish::staging_path(sandbox);
    std::fs::rename(sandbox, &removed)?;
    publish::remove_tree(&removed)?;
    Ok(true)
}

fn lock_part(path: &Path, in_use: &'static str) -> anyhow::Result<Option<OwnedFd>> {
    match lock::open(path, Lock::TryExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(in_use),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_sandbox_in_use_stays() {
        let sandboxes = tempfile::tempdir().unwrap();
        let sandbox = sandboxes.path().join("worker");
        assert!(!remove_sandbox(&sandbox).unwrap());
        fs::create_dir_all(sandbox.join(WORK)).unwrap();
        fs::write(sandbox.join(SCRATCH_DISK), "").unwrap();
        for part in [SCRATCH_DISK, WORK] {
            let lock = lock::open(&sandbox.join(part), Lock::TryShared).unwrap();
            assert!(remove_sandbox(&sandbox).is_err(), "{part}");
            drop(lock);
        }
        assert!(remove_sandbox(&sandbox).unwrap());
        assert_eq!(fs::read_dir(sandboxes.path()).unwrap().count(), 0);
    }
}
