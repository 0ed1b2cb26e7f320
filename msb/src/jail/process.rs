//! The process that becomes a program in a jail. A tool starts its own file again for that, because a jail is for good and a tool has
//! more to do. The kernel kills the process when the thread that has started it ends.

use std::ffi::OsString;
use std::io::{self, Write};
use std::iter;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::thread;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal as Blocked};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::Jail;
use crate::interrupt;
use crate::overlay::error::{At, Error};
use crate::program::OWN_EXECUTABLE;

/// The first argument of such a process. The jail, as JSON, and the program with its arguments follow.
const ROLE: &str = "--as-jailed-process";

impl Jail {
    /// The command that starts `program` in the jail, for a tool whose `main` calls [`enter_if_jailed`]. Its environment is empty. Its
    /// stderr has to be a pipe that this process alone reads, and its caller makes the PID namespace.
    ///
    /// # Errors
    /// A path in the jail that is not UTF-8.
    pub fn command(&self, program: &Path) -> io::Result<Command> {
        let mut command = Command::new(OWN_EXECUTABLE);
        command.arg(ROLE).arg(serde_json::to_string(self)?).arg(program).env_clear();
        Ok(command)
    }
}

/// Runs a command of [`Jail::command`], in a PID namespace of its own, to its end, which is at once if this process is interrupted.
/// Returns its output.
///
/// # Errors
/// The step that failed.
pub(super) fn output(command: &mut Command) -> Result<Output, Error> {
    // The namespace is that of the children of one thread, which lives until the process has ended.
    thread::scope(|scope| {
        let run = scope.spawn(|| -> Result<Output, Error> {
            nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(io::Error::from).at(|| "a PID namespace")?;
            Ok(interrupt::output(command)?)
        });
        run.join().unwrap_or_else(|_| Err(Error::Host("the thread of a jail panicked".into())))
    })
}

/// If this process was started with a command of [`Jail::command`], enters the jail and executes the program. Returns then only after a
/// failure, which it has written to stderr. The `main` of a tool calls it before anything else.
pub fn enter_if_jailed() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    let error = match described(args) {
        Ok((jail, program, args)) => jail.execute(Path::new(&program), &args),
        Err(error) => error,
    };
    let causes = iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let causes = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    // Nobody reads it if the parent has ended.
    let _ = writeln!(io::stderr(), "jail: {causes}");
    Some(ExitCode::FAILURE)
}

/// The jail, the program and its arguments, once this process is tied to its parent.
fn described(mut args: impl Iterator<Item = OsString>) -> Result<(Jail, OsString, Vec<OsString>), Error> {
    tie_to_parent().at(|| "its parent")?;
    let jail = args.next().unwrap_or_default();
    let jail = serde_json::from_slice(jail.as_encoded_bytes()).map_err(io::Error::from).at(|| "its description")?;
    let program = args.next().ok_or_else(|| Error::Host("no program to execute".into()))?;
    Ok((jail, program, args.collect()))
}

/// Makes the kernel kill this process when the thread that has started it ends, for whatever reason. A program that it executes inherits
/// that, and a change of the user clears it. The process must be new, with a pipe as its stderr that its parent alone reads.
///
/// # Errors
/// That the parent has ended already.
pub fn tie_to_parent() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before that call. Its PID is not visible in our PID namespace.
    let mut stderr = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::empty())];
    poll(&mut stderr, Some(&Timespec::default()))?;
    if stderr[0].revents().contains(PollFlags::ERR) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // A host that shuts down sends SIGTERM to every process, and a terminal sends SIGINT or SIGHUP to its process group. The parent
    // decides when this process ends, and kills it then.
    let blocked: SigSet = [Blocked::SIGTERM, Blocked::SIGINT, Blocked::SIGHUP].into_iter().collect();
    blocked.thread_set_mask()?;
    Ok(())
}
