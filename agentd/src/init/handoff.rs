//! PID 1 goes to the image's init: this process forks, the parent becomes the init, the child goes on as the agent.
//!
//! PID 1 must not end: the kernel panics if it does, or, as libkrunfw's, resets the machine silently. So the
//! child traces the parent (`ptrace(2)`) while the init starts, and again while the machine is being stopped: an init that ends then
//! is held at its last step, and the machine is ended in order, with a message. An init has started when it waits for something
//! for the first time, and is usable when its [`Sign`] says so. In between nobody traces it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use msb::record::script;
use msb::vm::boot::Defaults;
use msb::wire::exec::DEFAULT_PATH;
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, WaitOptions, WaitStatus};

use super::find::Init;
use super::usable::{self, Sign};
use super::{pid_1::PID, power_off};
use crate::sys::{self, Resume, Side};
use crate::{child, sysctl};

/// System calls in which a program waits for something to happen: what an init that has started does.
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

/// The signals of a program that did what it cannot.
const FAULTS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// After so many system calls an init has started too: it does something, and each one costs two stops.
const ENOUGH_CALLS: usize = 1000;

/// The two sides' connection: the parent waits for the child's word, and says on it what keeps it from becoming the init.
pub struct Gate(UnixStream);

/// Forks. The parent, PID 1, gets the gate as it waits for the child.
///
/// # Errors
/// What `socketpair(2)` or `fork(2)` says.
pub fn fork() -> io::Result<(Side, Gate)> {
    let (parent, child) = UnixStream::pair()?;
    let side = sys::fork()?;
    Ok(match side {
        Side::Parent => (side, Gate(parent)),
        Side::Child => (side, Gate(child)),
    })
}

/// As PID 1: waits for the other side, then becomes the init. Returns only where there is no other side.
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
    // It gives SIGPIPE back its meaning.
    let error = command.env_clear().envs(env).current_dir("/").exec();
    let _ = gate.write_all(error.to_string().as_bytes());
    drop(gate);
    // The other side ends the machine.
    loop {
        nix::unistd::pause();
    }
}

/// The init's environment: what PID 1 had from the kernel, for systemd its socket, the image's variables with the scripts in PATH, and
/// what was asked for.
pub fn environment(
    defaults: &Defaults,
    wanted: &[msb::wire::exec::Text],
    is_systemd: bool,
) -> Vec<(OsString, OsString)> {
    let socket = is_systemd.then(|| (NOTIFY.into(), usable::NOTIFY_SOCKET.into()));
    let inherited = std::env::vars_os().chain(socket).collect();
    child::merge_environment(inherited, defaults.env.iter().chain(wanted).cloned())
}

/// Where `sd_notify(3)` finds the socket.
const NOTIFY: &str = "NOTIFY_SOCKET";

/// The sign by which an init with this environment is usable; `None` if only its start can tell.
///
/// # Errors
/// What `bind(2)` says.
pub fn sign_of(init: &Init, env: &[(OsString, OsString)]) -> io::Result<Option<Sign>> {
    // Somebody else may want to hear systemd.
    let is_ours = env.iter().any(|(name, value)| name == NOTIFY && value == usable::NOTIFY_SOCKET);
    if init.is_systemd() && is_ours { Sign::of_systemd().map(Some) } else { Ok(None) }
}

/// Where systemd takes its services' variables from, for this boot alone: it gives them a PATH of its own otherwise.
const SYSTEMD_DROP_IN: &str = "/run/systemd/system.conf.d/50-msb.conf";

/// Hidden from systemd: it would wait for the console as a device for a minute and a half, where no udev says that it is there, and
/// nobody can log in on a log.
const SYSTEMD_CONSOLE: &str = "/run/systemd/system/serial-getty@hvc0.service";

/// Readies what an init takes from elsewhere than its environment.
pub fn prepare(init: &Init) {
    if init.is_systemd() {
        let _ = std::fs::create_dir_all("/run/systemd/system");
        let _ = std::os::unix::fs::symlink("/dev/null", SYSTEMD_CONSOLE);
        let path = DEFAULT_PATH;
        let words = format!("[Manager]\nDefaultEnvironment=PATH={}:{path}\n", script::GUEST_DIR);
        let dir = Path::new(SYSTEMD_DROP_IN).parent().unwrap_or(Path::new("/run"));
        let put = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(SYSTEMD_DROP_IN, words));
        if let Err(error) = put {
            crate::say(&format!("{SYSTEMD_DROP_IN}: {error}"));
        }
        if let Err(error) = sysctl::override_pid_max() {
            crate::say(&format!("kernel.pid_max: {error}"));
        }
    }
}

/// What a traced PID 1 has come to.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// It runs another program.
    Exec,
    /// It begins a system call.
    Call(c_long),
    /// It is about to end, with this status of `wait(2)`.
    Ending(i32),
    /// Something else, and it goes on with this signal.
    Other(i32),
}

/// PID 1 as this thread traces it.
pub struct Traced;

impl Traced {
    /// Begins to trace.
    ///
    /// # Errors
    /// What `ptrace(2)` says: EPERM where somebody else traces it.
    pub fn seize() -> io::Result<Self> {
        let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(Pid::from_raw(PID), options)?;
        Ok(Self)
    }

    /// Traces no more, once the init runs freely.
    ///
    /// # Errors
    /// How it has ended, if it is about to.
    fn let_go(self) -> Result<(), String> {
        let failed = |error: io::Error| format!("trace PID 1: {error}");
        ptrace::interrupt(Pid::from_raw(PID)).map_err(|error| failed(error.into()))?;
        let stopped = rustix::process::waitpid(Some(rustix::process::Pid::INIT), WaitOptions::empty());
        let signal = match stopped.map_err(|error| failed(error.into()))? {
            Some((_, status)) => match Self::stop(status).map_err(failed)? {
                Stop::Ending(status) => return Err(describe(status)),
                Stop::Other(signal) => signal,
                Stop::Exec | Stop::Call(_) => 0,
            },
            None => 0,
        };
        sys::resume(PID, Resume::Free, signal).map_err(failed)
    }

    fn stop(status: WaitStatus) -> io::Result<Stop> {
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        let Some(signal) = status.stopping_signal() else { return Ok(Stop::Other(0)) };
        Ok(match status.as_raw() >> 16 {
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            libc::PTRACE_EVENT_EXIT => Stop::Ending(ptrace::getevent(Pid::from_raw(PID))? as i32),
            0 if signal == SYSTEM_CALL => match sys::begun_system_call(PID)? {
                Some(number) => Stop::Call(number),
                None => Stop::Other(0),
            },
            // Of a fault that would be its end, the kernel says no more to whoever traces PID 1: it faults again and again.
            0 if FAULTS.contains(&signal)
                && !power_off::catches(&std::fs::read_to_string("/proc/1/status")?, signal) =>
            {
                Stop::Ending(signal)
            }
            0 => Stop::Other(signal),
            _ => Stop::Other(0),
        })
    }

    /// Takes what the reaper found of PID 1 while nothing but its end is of interest. `Some`: it is about to end, in words, and
    /// is held there.
    pub fn ending(&self, status: WaitStatus) -> Option<String> {
        match Self::stop(status) {
            Ok(Stop::Ending(status)) => Some(describe(status)),
            Ok(Stop::Other(signal)) => {
                let _ = sys::resume(PID, Resume::Event, signal);
                None
            }
            _ => {
                let _ = sys::resume(PID, Resume::Event, 0);
                None
            }
        }
    }
}

/// How long an init may take.
pub struct Limits {
    /// Until it waits for something for the first time.
    pub start: Duration,
    /// Until it is usable; `None` not to wait for that.
    pub usable: Option<Duration>,
}

/// An init that has started.
#[derive(Debug, PartialEq, Eq)]
pub struct Started {
    /// When it waited for something for the first time, in milliseconds since power-on.
    pub since_ms: u64,
    /// What is not as it should be, though it is usable.
    pub warning: Option<String>,
}

/// As the agent, before it has other children: lets PID 1 become the init, and waits until that has started, or is usable. `sign` is
/// what tells that, if it is known before.
///
/// # Errors
/// Why the init could not be run, that it has ended, or what it does after its time. If it has ended, it is held.
pub fn start(gate: Gate, limits: &Limits, sign: Option<Sign>) -> Result<Started, String> {
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
    // The system call that PID 1 is in, as far as that is followed.
    let mut call = None;
    let mut progress = Progress { sign, since_ms: None, missing: String::new(), wants_usable: limits.usable.is_some() };
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
        fds.extend(progress.sign.as_ref().and_then(Sign::as_fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up, so that the limit is reached and not looked for again and again.
        let left = left + Duration::from_millis(1);
        let left = if progress.has_ticks() { left.min(usable::TICK) } else { left };
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
            match Traced::stop(status).map_err(failed)? {
                Stop::Ending(status) if progress.since_ms.is_some() => {
                    return Err(format!("it ended before it was usable ({})", describe(status)));
                }
                Stop::Ending(status) => return Err(format!("it ended at once ({})", describe(status))),
                Stop::Exec => has_executed = true,
                Stop::Call(number) => {
                    call = Some(number);
                    calls += 1;
                    if WAITING.contains(&number) || calls >= ENOUGH_CALLS {
                        progress.has_started();
                    }
                    if progress.is_usable(Some(number)) {
                        sys::resume(PID, Resume::Free, 0).map_err(failed)?;
                        return Ok(progress.started());
                    }
                }
                Stop::Other(signal) => passed_on = signal,
            }
            let how = if has_executed && progress.wants_calls() { Resume::SystemCall } else { Resume::Event };
            sys::resume(PID, how, passed_on).map_err(failed)?;
        }
        if progress.is_usable(call) {
            return match traced.let_go() {
                Ok(()) => Ok(progress.started()),
                Err(how) => Err(format!("it ended ({how})")),
            };
        }
    }
}

/// How far an init has come.
struct Progress {
    sign: Option<Sign>,
    /// When it had started.
    since_ms: Option<u64>,
    /// What it lacked when its sign was looked for last.
    missing: String,
    wants_usable: bool,
}

impl Progress {
    fn has_started(&mut self) {
        if self.since_ms.is_some() {
            return;
        }
        self.since_ms = Some(crate::uptime_ms());
        if !self.wants_usable {
            self.sign = Some(Sign::Started);
        }
        self.sign.get_or_insert_with(Sign::of_pid_1);
    }

    /// Whether it is usable now, in this system call.
    fn is_usable(&mut self, call: Option<c_long>) -> bool {
        let (Some(_), Some(sign)) = (self.since_ms, &self.sign) else { return false };
        match sign.look(call) {
            Ok(()) => true,
            Err(missing) => {
                self.missing = missing;
                false
            }
        }
    }

    /// Whether system calls tell anything.
    fn wants_calls(&self) -> bool {
        self.since_ms.is_none() || matches!(self.sign, Some(Sign::Call(_) | Sign::SysV(_)))
    }

    /// Whether the sign has to be looked for at intervals.
    fn has_ticks(&self) -> bool {
        self.since_ms.is_some() && matches!(self.sign, Some(Sign::Look(_) | Sign::Call(_) | Sign::SysV(_)))
    }

    fn started(&self) -> Started {
        let warning = self.sign.as_ref().filter(|_| self.wants_usable).and_then(Sign::warning);
        Started { since_ms: self.since_ms.unwrap_or_default(), warning }
    }

    /// The message about an init whose time is over.
    fn late(self, limit: Duration) -> String {
        let seconds = limit.as_secs_f32();
        match (self.since_ms, &self.sign) {
            (Some(_), Some(sign)) => {
                let missing = sign.explain(self.missing);
                format!("it is not usable after {seconds:.0} s: {missing} (give it more --timeout, or --no-wait-init)")
            }
            _ => format!("it hangs: after {seconds:.0} s it has not come so far as to wait for anything"),
        }
    }
}

/// How a process ends, by the status of `wait(2)`.
fn describe(status: i32) -> String {
    match status & 0x7f {
        0 => format!("exit status {}", status >> 8 & 0xff),
        signal => match Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}"),
            Err(_) => format!("killed by signal {signal}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_a_shell_tells_it() {
        assert_eq!(describe(0), "exit status 0");
        assert_eq!(describe(3 << 8), "exit status 3");
        assert_eq!(describe(libc::SIGSEGV), "killed by SIGSEGV");
        assert_eq!(describe(libc::SIGSEGV | 0x80), "killed by SIGSEGV");
    }
}
