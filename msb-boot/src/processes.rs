//! The processes of a VM: the VMM and its helper processes. They are children of the supervisor and tied to it, each is the only one in
//! its PID namespace, and the supervisor kills and reaps all of them before it exits.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use msb::jail::Jail;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::granted::Granted;
use crate::inherited_fd::InheritedFd;
use crate::{log, role};

/// Whether the VM ends with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vital {
    /// It does.
    Yes,
    /// The VM goes on without it.
    No,
}

/// The size of the stack of a thread that starts a process, in bytes. [`Command`] puts its arguments on the heap.
const PARENT_STACK: usize = 256 << 10;

/// The thread that has started a process lives as long as this does.
type Parent = mpsc::Sender<Infallible>;

/// A process of the VM.
struct Process {
    name: &'static str,
    vital: Vital,
    _parent: Parent,
    child: Child,
    /// Readable when the process has ended, however this process handles SIGCHLD.
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

/// The processes of one VM.
pub(crate) struct Processes {
    processes: Vec<Process>,
    vmm_stderr: PipeWriter,
    helper_stderr: PipeWriter,
    /// The lock that shows that the VM runs. Every process inherits it.
    alive: File,
    /// What belongs to the VM's user.
    granted: Vec<Granted>,
}

impl Processes {
    /// No processes yet. The stderr of the VMM and that of the helper processes are kept apart: the VMM's says why it failed.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub(crate) fn new(vmm_stderr: PipeWriter, helper_stderr: PipeWriter, alive: File) -> io::Result<Self> {
        clear_cloexec(&alive)?;
        Ok(Self { processes: Vec::new(), vmm_stderr, helper_stderr, alive, granted: Vec::new() })
    }

    /// Keeps what the VM's user has until the processes have ended.
    pub(crate) fn keep(&mut self, granted: Granted) {
        self.granted.push(granted);
    }

    /// Starts a helper process: a program in a jail. It inherits `fds` under the numbers that they have here.
    ///
    /// # Errors
    /// The program's name, and why it did not start.
    pub(crate) fn start_helper(
        &mut self,
        name: &'static str,
        vital: Vital,
        jail: &Jail,
        program: &Path,
        args: &[&OsStr],
        fds: &[OwnedFd],
    ) -> anyhow::Result<()> {
        let mut command = role::jailed(jail, program).context(name)?;
        command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(self.helper_stderr.try_clone()?);
        self.spawn(name, vital, command, fds).context(name)
    }

    /// Starts a helper process: this program in a role, which the JSON text describes. It inherits `fds`.
    ///
    /// # Errors
    /// Its name, and why it did not start.
    pub(crate) fn start_role(
        &mut self,
        name: &'static str,
        vital: Vital,
        role: &str,
        description: &str,
        stdin: Stdio,
        fds: &[OwnedFd],
    ) -> anyhow::Result<()> {
        let mut command = role::described(role, description);
        command.stdin(stdin).stdout(Stdio::null()).stderr(self.helper_stderr.try_clone()?);
        self.spawn(name, vital, command, fds).context(name)
    }

    /// Starts the VMM that the JSON text describes, with the guest's console on `console`. It inherits `fds`.
    ///
    /// # Errors
    /// The VMM's name, and why it did not start.
    pub(crate) fn start_vmm(
        &mut self,
        name: &'static str,
        description: &str,
        console: PipeWriter,
        fds: &[OwnedFd],
    ) -> anyhow::Result<()> {
        let mut command = role::described(role::VMM, description);
        command.stdin(Stdio::null()).stdout(console).stderr(self.vmm_stderr.try_clone()?);
        self.spawn(name, Vital::Yes, command, fds).context(name)
    }

    fn spawn(&mut self, name: &'static str, vital: Vital, command: Command, fds: &[OwnedFd]) -> io::Result<()> {
        for fd in fds {
            clear_cloexec(fd)?;
        }
        let spawned = in_new_pid_namespace(command);
        for fd in fds {
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        let (mut child, parent) = spawned?;
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error.into());
            }
        };
        log::note(format_args!("{name} started: process {}", child.id()));
        self.processes.push(Process { name, vital, _parent: parent, child, pidfd, status: None });
        Ok(())
    }

    /// A pidfd of the process that was started last.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(crate) fn last_pidfd(&self) -> io::Result<OwnedFd> {
        self.processes.last().ok_or(io::ErrorKind::NotFound)?.pidfd.try_clone()
    }

    /// The pidfds of the processes that have not been reaped.
    pub(crate) fn pidfds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.processes.iter().filter(|process| process.status.is_none()).map(|process| process.pidfd.as_fd())
    }

    /// Reaps the processes that have ended. Returns the name and status of a vital one that has: the VMM, if it is among them.
    pub(crate) fn reap(&mut self, vmm: &str) -> Option<(&'static str, ExitStatus)> {
        for process in self.processes.iter_mut().filter(|process| process.status.is_none()) {
            // An error means that the process was reaped elsewhere, so its status is unknown.
            process.status = process.child.try_wait().unwrap_or(Some(ExitStatus::default()));
            if let Some(status) = process.status {
                log::note(format_args!("{} {}", process.name, describe(status)));
            }
        }
        let vital = self.processes.iter().filter(|process| process.vital == Vital::Yes);
        let mut ended = vital.filter_map(|process| Some((process.name, process.status?)));
        ended.clone().find(|(name, _)| *name == vmm).or_else(|| ended.next())
    }

    /// Takes a process that was reaped, and that the VM can do without.
    pub(crate) fn take_lost(&mut self) -> Option<(&'static str, ExitStatus)> {
        let is_lost = |process: &Process| process.vital == Vital::No && process.status.is_some();
        let lost = self.processes.iter().position(is_lost)?;
        let process = self.processes.remove(lost);
        Some((process.name, process.status?))
    }

    /// The process ID of the process of this name, if it runs.
    pub(crate) fn id(&self, name: &str) -> Option<u32> {
        let running = self.processes.iter().find(|process| process.name == name && process.status.is_none());
        running.map(|process| process.child.id())
    }

    /// Kills the processes of this name.
    pub(crate) fn kill(&mut self, name: &str) {
        for process in self.processes.iter_mut().filter(|process| process.name == name && process.status.is_none()) {
            let _ = process.child.kill();
        }
    }

    /// Kills and reaps all processes.
    pub(crate) fn kill_all(&mut self) {
        for process in self.processes.iter_mut().rev().filter(|process| process.status.is_none()) {
            let _ = process.child.kill();
        }
        for process in self.processes.iter_mut().filter(|process| process.status.is_none()) {
            process.status = process.child.wait().ok();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
        let _ = msb::lock::release(&self.alive);
    }
}

/// Starts a process that is PID 1 of a new PID namespace: it can neither see nor signal other processes.
///
/// The namespace is that of the children of one thread. The root of a user namespace may not return to the host's PID namespace, so it
/// is a thread of its own. The kernel takes that thread for the parent of a process that asks for a signal at the death of its parent,
/// so the thread waits until the process was reaped.
fn in_new_pid_namespace(mut command: Command) -> io::Result<(Child, Parent)> {
    let (parent, reaped) = mpsc::channel::<Infallible>();
    let (report, reported) = mpsc::channel();
    let work = move || {
        let unshared = nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(io::Error::from);
        let spawned = unshared.and_then(|()| command.spawn());
        let is_parent = spawned.is_ok();
        let _ = report.send(spawned);
        if is_parent {
            let _ = reaped.recv();
        }
    };
    thread::Builder::new().name("parent".into()).stack_size(PARENT_STACK).spawn(work)?;
    let child = reported.recv().map_err(|_| io::Error::other("the thread that starts it panicked"))??;
    Ok((child, parent))
}

/// Lets children inherit the descriptor.
fn clear_cloexec(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// The flag of a command line with the number of a descriptor appended: `--fd=` gives `--fd=7`.
pub(crate) fn fd_flag(flag: &str, fd: &OwnedFd) -> OsString {
    format!("{flag}{}", InheritedFd::of(fd)).into()
}

/// Whether a process was killed by a signal that was sent to it. Its last messages are not the reason then.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    matches!(signal, Some(Signal::SIGHUP | Signal::SIGINT | Signal::SIGKILL | Signal::SIGTERM))
}

/// How a process ended, as a predicate: "ended with 1", "was killed by SIGKILL".
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
