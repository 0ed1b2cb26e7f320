//! This program in its other roles. They are for itself: the first argument says which, and no person writes it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use msb::wire::exec::DEFAULT_PATH;
use nix::sys::signal::{SigSet, Signal as Interrupt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::TOOL;
use crate::cell::Cell;
use crate::vmm::Vm;

const SUPERVISE: &str = msb::vm::supervisor::ROLE;
const TIED: &str = "--as-tied-process";
const ENTER: &str = "--as-vmm";

/// This program, also where another release has taken its place on the disk.
const OURSELVES: &str = "/proc/self/exe";

/// What this process is.
pub(crate) enum Role {
    /// The VM's supervisor.
    Supervise,
    /// About to become a program that ends with the supervisor: its cell, the program and its arguments.
    Tied(Box<Cell>, Vec<OsString>),
    /// About to become a VMM that ends with the supervisor.
    Enter(Box<Vm>),
}

/// The role that the arguments give; `None` for a call by a person.
pub(crate) fn role() -> Option<Role> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?;
    if ![SUPERVISE, TIED, ENTER].iter().any(|known| role == *known) {
        return None;
    }
    // The kernel took the name from the path, and "exe" would be all that ps(1) shows.
    let _ = rustix::thread::set_name(c"msb-boot");
    if role == SUPERVISE {
        return Some(Role::Supervise);
    }
    if tie().is_err() {
        std::process::exit(1);
    }
    let what = args.next()?;
    if role == TIED {
        return Some(Role::Tied(serde_json::from_str(what.to_str()?).ok()?, args.collect()));
    }
    serde_json::from_str(what.to_str()?).ok().map(Role::Enter)
}

/// Makes the kernel kill this process when the supervisor dies, however it dies; programs that it becomes inherit that.
fn tie() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that, which no PID tells in a PID namespace of our own. It alone reads our stderr.
    let mut stderr = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::empty())];
    poll(&mut stderr, Some(&Timespec::default()))?;
    if stderr[0].revents().contains(PollFlags::ERR) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // A host that goes down sends TERM to every process, and a terminal INT or HUP to all of a group: when the VM ends is the
    // supervisor's to say, who ends this one by KILL.
    let ignored: SigSet = [Interrupt::SIGTERM, Interrupt::SIGINT, Interrupt::SIGHUP].into_iter().collect();
    ignored.thread_set_mask()?;
    Ok(())
}

/// Becomes a program in a cell.
pub(crate) fn become_program(cell: &Cell, words: &[OsString]) -> ExitCode {
    let Some((program, args)) = words.split_first() else { return ExitCode::FAILURE };
    if let Err(error) = cell.enter() {
        eprintln!("cell: {error:#}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(args).exec();
    eprintln!("{}: {error}", Path::new(program).display());
    ExitCode::FAILURE
}

/// A supervisor, not yet started. All it knows comes from its stdin.
pub(crate) fn supervisor(stdin: Stdio) -> Command {
    let mut command = Command::new(OURSELVES);
    command.arg0(TOOL).arg(SUPERVISE).env_clear().env("PATH", DEFAULT_PATH);
    command.current_dir("/").stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A program in a cell that ends with this process, not yet started. Its environment is empty but for PATH.
pub(crate) fn tied(cell: &Cell, program: &Path) -> io::Result<Command> {
    let mut command = in_role(TIED, serde_json::to_string(cell)?.as_ref());
    command.arg(program);
    Ok(command)
}

/// A VMM that ends with this process, not yet started.
pub(crate) fn vmm(vm: &Vm) -> io::Result<Command> {
    Ok(in_role(ENTER, serde_json::to_string(vm)?.as_ref()))
}

fn in_role(role: &str, what: &OsStr) -> Command {
    let mut command = Command::new(OURSELVES);
    command.arg0(TOOL).arg(role).arg(what).env_clear().env("PATH", DEFAULT_PATH);
    command
}
