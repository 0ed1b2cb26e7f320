//! The processes of a VM: they start tied to the supervisor, each alone in a PID namespace, and they are all ended and reaped
//! before it ends.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::log;
use crate::cell::Cell;
use crate::respawn;
use crate::vmm::Vm;

/// One of them.
struct Member {
    name: &'static str,
    child: Child,
    /// Readable when it has ended, whatever this process does with SIGCHLD.
    process: OwnedFd,
    status: Option<ExitStatus>,
}

/// All of them, the VMM itself too.
pub(crate) struct Crew {
    members: Vec<Member>,
    /// The VMM's stderr, which tells why it fails.
    words: PipeWriter,
    /// That of the others, which chat.
    chatter: PipeWriter,
    /// The lock that says that something of the VM runs.
    alive: File,
}

impl Crew {
    /// None yet. What the VMM says on stderr goes to `words`, and what the others say to `chatter`.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub(crate) fn new(words: PipeWriter, chatter: PipeWriter, alive: File) -> io::Result<Self> {
        inherit(&alive)?;
        Ok(Self { members: Vec::new(), words, chatter, alive })
    }

    /// Starts a program in a cell with `fds` open under the numbers that they have here.
    ///
    /// # Errors
    /// Words with the program's name.
    pub(crate) fn start(
        &mut self,
        name: &'static str,
        cell: &Cell,
        program: &Path,
        args: &[&OsStr],
        fds: &[OwnedFd],
    ) -> anyhow::Result<()> {
        let mut command = respawn::tied(cell, program).context(name)?;
        command.args(args).current_dir("/").stdout(Stdio::null()).stderr(self.chatter.try_clone()?);
        self.spawn(name, command, fds).context(name)
    }

    /// Starts the VMM with its console on `console`.
    ///
    /// # Errors
    /// Words with the VMM's name.
    pub(crate) fn start_vmm(&mut self, vm: &Vm, console: PipeWriter, fds: &[OwnedFd]) -> anyhow::Result<()> {
        let name = vm.vmm.name();
        let mut command = respawn::vmm(vm).context(name)?;
        command.current_dir("/").stdout(console).stderr(self.words.try_clone()?);
        self.spawn(name, command, fds).context(name)
    }

    fn spawn(&mut self, name: &'static str, mut command: Command, fds: &[OwnedFd]) -> io::Result<()> {
        command.stdin(Stdio::null());
        for fd in fds {
            inherit(fd)?;
        }
        let spawned = alone(|| command.spawn());
        for fd in fds {
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        let mut child = spawned?;
        let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error.into());
            }
        };
        log::note(format_args!("{name} started: process {}", child.id()));
        self.members.push(Member { name, child, process, status: None });
        Ok(())
    }

    /// A pidfd of the member started last.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub(crate) fn last_pidfd(&self) -> io::Result<OwnedFd> {
        self.members.last().ok_or(io::ErrorKind::NotFound)?.process.try_clone()
    }

    /// The pidfds of those that are not known to have ended.
    pub(crate) fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.members.iter().filter(|member| member.status.is_none()).map(|member| member.process.as_fd())
    }

    /// Reaps who has ended. The name and the end of the one that matters most: the VMM's before any other's.
    pub(crate) fn lost(&mut self, vmm: &str) -> Option<(&'static str, ExitStatus)> {
        for member in self.members.iter_mut().filter(|member| member.status.is_none()) {
            // Where somebody else has reaped it, that it has ended is all that there is to know.
            member.status = member.child.try_wait().unwrap_or(Some(ExitStatus::default()));
            if let Some(status) = member.status {
                log::note(format_args!("{} {}", member.name, describe(status)));
            }
        }
        let mut ended = self.members.iter().filter_map(|member| Some((member.name, member.status?)));
        ended.clone().find(|(name, _)| *name == vmm).or_else(|| ended.next())
    }

    /// Kills one, if it is there.
    pub(crate) fn kill(&mut self, name: &str) {
        for member in self.members.iter_mut().filter(|member| member.name == name && member.status.is_none()) {
            let _ = member.child.kill();
        }
    }

    /// Kills and reaps all that are left.
    pub(crate) fn end(&mut self) {
        for member in self.members.iter_mut().rev().filter(|member| member.status.is_none()) {
            let _ = member.child.kill();
        }
        for member in self.members.iter_mut().filter(|member| member.status.is_none()) {
            member.status = member.child.wait().ok();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
        let _ = rustix::fs::flock(&self.alive, rustix::fs::FlockOperation::Unlock);
    }
}

/// Starts a process that is the first of a PID namespace of its own: it can signal nobody outside, and not see who is there.
fn alone(spawn: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
    let ours = File::open("/proc/self/ns/pid_for_children")?;
    nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
    let spawned = spawn();
    nix::sched::setns(ours, CloneFlags::CLONE_NEWPID)?;
    spawned
}

/// Lets the next children have the fd.
fn inherit(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// `flag` and the number of an fd, for a command line.
pub(crate) fn fd_flag(flag: &str, fd: &OwnedFd) -> OsString {
    format!("{flag}{}", fd.as_raw_fd()).into()
}

/// Whether a process ended by a signal that somebody else has sent: nothing that it said before is the reason.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    matches!(signal, Some(Signal::SIGHUP | Signal::SIGINT | Signal::SIGKILL | Signal::SIGTERM))
}

/// How a process ended, as a clause.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(name) => format!("was killed by {name}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".into(),
    }
}
