//! The handoff of PID 1 to the image's init: agentd forks, the parent executes the init, and the child stays the agent.
//!
//! PID 1 must not exit: the kernel would panic or, as libkrunfw's does, reset the machine silently. So the child traces the parent while
//! the init starts, and again while the machine is being stopped: an init that exits then is stopped at its exit, and the machine ends
//! in order, with a message. An init has started when it waits for something for the first time, and is usable when its [`Probe`]
//! succeeds. It is not traced otherwise.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use msb::vm::boot::Defaults;
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Resource, Rlimit, WaitOptions};

use super::find::Init;
use super::pid_1::PID;
use super::systemd;
use super::trace::{Stop, Traced, describe};
use super::usable::{POLL_INTERVAL, Probe};
use crate::sys::{self, Resume, Side};
use crate::{clock, environment};

/// System calls in which a program waits for an event, as an init does that has started.
const WAITING: &[c_long] = &[
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// After this many system calls an init counts as started: it works, and each traced call costs two stops.
const ENOUGH_CALLS: usize = 1000;

/// The connection between parent and child: the parent waits for a byte of the child, and reports why it could not execute the init.
pub struct Gate(UnixStream);

/// Forks. Both sides get their end of the gate.
///
/// # Errors
/// Those of `socketpair(2)` and `fork(2)`.
pub fn fork() -> io::Result<(Side, Gate)> {
    let (parent, child) = UnixStream::pair()?;
    let side = sys::fork()?;
    Ok(match side {
        Side::Parent => (side, Gate(parent)),
        Side::Child => (side, Gate(child)),
    })
}

/// As PID 1: waits for the other side and then executes the init. Returns only if the other side is gone.
pub fn become_init(gate: Gate, init: &Init, env: Vec<(OsString, OsString)>) -> io::Error {
    let Gate(mut gate) = gate;
    if let Err(error) = gate.read_exact(&mut [0]) {
        return error;
    }
    let files = Rlimit { current: Some(sys::SOFT_OPEN_FILES), maximum: Some(sys::OPEN_FILES) };
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let mut command = Command::new(init.file());
    if let Some((name, args)) = init.argv.split_first() {
        command.arg0(name).args(args);
    }
    let _ = SigSet::empty().thread_set_mask();
    // Command::exec resets SIGPIPE to its default.
    let error = command.env_clear().envs(env).current_dir("/").exec();
    let _ = gate.write_all(error.to_string().as_bytes());
    drop(gate);
    // The other side will end the machine.
    loop {
        nix::unistd::pause();
    }
}

/// The init's environment: what the kernel gave PID 1, `$NOTIFY_SOCKET` for systemd, the image's variables with the scripts in PATH, and
/// the requested variables.
pub fn environment(
    defaults: &Defaults,
    wanted: &[msb::wire::exec::Text],
    is_systemd: bool,
) -> Vec<(OsString, OsString)> {
    let socket = is_systemd.then(|| (NOTIFY_VARIABLE.into(), systemd::NOTIFY_SOCKET.into()));
    let inherited = std::env::vars_os().chain(socket).collect();
    environment::merge(inherited, defaults.env.iter().chain(wanted).cloned())
}

/// The variable in which `sd_notify(3)` finds the socket.
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// The probe of an init that needs one before it starts. `None`: the probe depends on the program that PID 1 will be.
///
/// # Errors
/// Those of `bind(2)`.
pub fn probe_before_start(init: &Init, env: &[(OsString, OsString)]) -> io::Result<Option<Probe>> {
    // The caller may have set another socket.
    let is_ours = env.iter().any(|(name, value)| name == NOTIFY_VARIABLE && value == systemd::NOTIFY_SOCKET);
    let wants_socket = init.is_systemd() && is_ours;
    wants_socket.then(|| systemd::bind_notify_socket().map(Probe::Notification)).transpose()
}

/// How long an init may take.
pub struct Limits {
    /// Until it has started.
    pub start: Duration,
    /// Until it is usable. `None`: it need not become usable.
    pub usable: Option<Duration>,
}

/// An init that has started.
#[derive(Debug, PartialEq, Eq)]
pub struct Started {
    /// When it had started, in milliseconds since power-on.
    pub since_ms: u64,
    /// What failed, although the init is usable.
    pub warning: Option<String>,
}

/// As the agent, before it has other children: lets PID 1 execute the init, and waits until the init has started or is usable. `probe`
/// is the one from [`probe_before_start`].
///
/// # Errors
/// Why the init could not be executed, how it exited, or what it still does when its time is over. After an exit it stays stopped.
pub fn start(gate: Gate, limits: &Limits, probe: Option<Probe>) -> Result<Started, String> {
    let began = Instant::now();
    let Gate(mut gate) = gate;
    let failed = |error: io::Error| format!("trace PID 1: {error}");
    let traced = Traced::seize().map_err(failed)?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| failed(error.into()))?;
    gate.write_all(&[0]).map_err(failed)?;
    let (mut has_executed, mut calls, mut open) = (false, 0, true);
    // The system call that PID 1 has entered, while system calls are traced.
    let mut call = None;
    let mut progress =
        Progress { probe, since_ms: None, missing: String::new(), wants_usable: limits.usable.is_some() };
    loop {
        let limit = if progress.since_ms.is_some() { limits.usable.unwrap_or_default() } else { limits.start };
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(progress.late(limit));
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(gate.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(progress.probe.as_ref().and_then(Probe::as_fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up, so that the poll does not end just before the limit.
        let left = left + Duration::from_millis(1);
        let left = if progress.needs_polling() { left.min(POLL_INTERVAL) } else { left };
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let has_failed = open && fds.get(1).and_then(PollFd::any) == Some(true);
        while let Ok(Some(_)) = signals.read_signal() {}
        if has_failed {
            let mut why = String::new();
            gate.read_to_string(&mut why).map_err(failed)?;
            if !why.is_empty() {
                return Err(why);
            }
            open = false;
        }
        while let Some((_, status)) = rustix::process::waitpid(Some(rustix::process::Pid::INIT), WaitOptions::NOHANG)
            .map_err(|error| failed(error.into()))?
        {
            let mut passed_on = 0;
            call = None;
            match Traced::stop(status.as_raw()).map_err(failed)? {
                Stop::Exiting(status) if progress.since_ms.is_some() => {
                    return Err(format!("it ended before it was usable ({})", describe(status)));
                }
                Stop::Exiting(status) => return Err(format!("it ended at once ({})", describe(status))),
                Stop::Exec => has_executed = true,
                Stop::Call(number) => {
                    call = Some(number);
                    calls += 1;
                    if WAITING.contains(&number) || calls >= ENOUGH_CALLS {
                        progress.set_started();
                    }
                    if progress.is_usable(Some(number)) {
                        sys::resume(PID, Resume::Detach, 0).map_err(failed)?;
                        return Ok(progress.started());
                    }
                }
                Stop::Other(signal) => passed_on = signal,
            }
            let how = if has_executed && progress.needs_system_calls() { Resume::SystemCall } else { Resume::Event };
            sys::resume(PID, how, passed_on).map_err(failed)?;
        }
        if progress.is_usable(call) {
            return match traced.detach() {
                Ok(()) => Ok(progress.started()),
                Err(how) => Err(format!("it ended ({how})")),
            };
        }
    }
}

/// How far the start of an init has come.
struct Progress {
    probe: Option<Probe>,
    /// When it had started, in milliseconds since power-on.
    since_ms: Option<u64>,
    /// What was missing at the last check.
    missing: String,
    wants_usable: bool,
}

impl Progress {
    fn set_started(&mut self) {
        if self.since_ms.is_some() {
            return;
        }
        self.since_ms = Some(clock::uptime_ms());
        if !self.wants_usable {
            self.probe = Some(Probe::Started);
        }
        self.probe.get_or_insert_with(Probe::of_pid_1);
    }

    /// Whether it is usable, while PID 1 is in this system call.
    fn is_usable(&mut self, call: Option<c_long>) -> bool {
        let (Some(_), Some(probe)) = (self.since_ms, &self.probe) else { return false };
        match probe.check(call) {
            Ok(()) => true,
            Err(missing) => {
                self.missing = missing;
                false
            }
        }
    }

    /// Whether system calls have to be traced.
    fn needs_system_calls(&self) -> bool {
        self.since_ms.is_none() || self.probe.as_ref().is_some_and(Probe::needs_system_calls)
    }

    /// Whether the probe has to be checked at intervals.
    fn needs_polling(&self) -> bool {
        self.since_ms.is_some() && self.probe.as_ref().is_some_and(Probe::needs_polling)
    }

    fn started(&self) -> Started {
        let warning = self.probe.as_ref().filter(|_| self.wants_usable).and_then(Probe::warning);
        Started { since_ms: self.since_ms.unwrap_or_default(), warning }
    }

    /// The message about an init that has not become usable in time.
    fn late(self, limit: Duration) -> String {
        let seconds = limit.as_secs_f32();
        match (self.since_ms, &self.probe) {
            (Some(_), Some(probe)) => {
                let missing = probe.explain(self.missing);
                format!("it is not usable after {seconds:.0} s: {missing} (give it more --timeout, or --no-wait-init)")
            }
            _ => format!("it hangs: after {seconds:.0} s it has not waited for anything yet"),
        }
    }
}
