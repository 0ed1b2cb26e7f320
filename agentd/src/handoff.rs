//! PID 1 goes to the image's init: this process forks, the parent becomes the init, the child goes on as the agent.
//!
//! Whoever is PID 1 may not end: the kernel panics over that, or, as libkrunfw's does, resets the machine without a word. So the
//! child traces the parent (`ptrace(2)`) while the init starts, and whenever the machine is to end: then an init that ends is
//! held at its last step, and the machine is ended in order, with words. An init has started when it waits for something for
//! the first time. In between nobody traces it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use msb::boot::Defaults;
use msb::script;
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, WaitOptions, WaitStatus};

use crate::init::Init;
use crate::sys::{self, Resume, Side};
use crate::{child, poweroff};

/// PID 1.
const INIT: i32 = 1;

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
    let mut command = Command::new(&init.path);
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

/// The init's environment: what PID 1 had from the kernel, the image's variables with the scripts in PATH, and what was asked for.
pub fn environment(defaults: &Defaults, wanted: &[msb::wire::exec::Text]) -> Vec<(OsString, OsString)> {
    let inherited = std::env::vars_os().collect();
    child::merge_environment(inherited, defaults.env.iter().chain(wanted).cloned())
}

/// Where systemd takes its services' variables from, for this boot alone: it gives them a PATH of its own otherwise.
const SYSTEMD_DROP_IN: &str = "/run/systemd/system.conf.d/50-msb.conf";

/// Hidden from systemd: it would wait for the console as a device for a minute and a half, where no udev says that it is there, and
/// nobody can log in on a log.
const SYSTEMD_CONSOLE: &str = "/run/systemd/system/serial-getty@hvc0.service";

/// Readies what an init takes from elsewhere than its environment.
pub fn prepare(init: &Init) {
    let program = std::fs::canonicalize(&init.path).unwrap_or_default();
    if program.file_name().is_some_and(|name| name == "systemd") {
        let _ = std::fs::create_dir_all("/run/systemd/system");
        let _ = std::os::unix::fs::symlink("/dev/null", SYSTEMD_CONSOLE);
        let path = child::DEFAULT_PATH;
        let words = format!("[Manager]\nDefaultEnvironment=PATH={}:{path}\n", script::GUEST_DIR);
        let dir = Path::new(SYSTEMD_DROP_IN).parent().unwrap_or(Path::new("/run"));
        let put = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(SYSTEMD_DROP_IN, words));
        if let Err(error) = put {
            crate::say(&format!("{SYSTEMD_DROP_IN}: {error}"));
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
        ptrace::seize(Pid::from_raw(INIT), options)?;
        Ok(Self)
    }

    fn stop(status: WaitStatus) -> io::Result<Stop> {
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        let Some(signal) = status.stopping_signal() else { return Ok(Stop::Other(0)) };
        Ok(match status.as_raw() >> 16 {
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            libc::PTRACE_EVENT_EXIT => Stop::Ending(ptrace::getevent(Pid::from_raw(INIT))? as i32),
            0 if signal == SYSTEM_CALL => match sys::begun_system_call(INIT)? {
                Some(number) => Stop::Call(number),
                None => Stop::Other(0),
            },
            // Of a fault that would be its end, the kernel says no more to whoever traces PID 1: it faults again and again.
            0 if FAULTS.contains(&signal)
                && !poweroff::catches(&std::fs::read_to_string("/proc/1/status")?, signal) =>
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
                let _ = sys::resume(INIT, Resume::Event, signal);
                None
            }
            _ => {
                let _ = sys::resume(INIT, Resume::Event, 0);
                None
            }
        }
    }
}

/// As the agent, before it has other children: lets PID 1 become the init, and waits until that has started.
///
/// # Errors
/// Words for an init that could not be run, ended at once, or hangs. Where it has ended, it is held.
pub fn start(gate: Gate, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let Gate(mut gate) = gate;
    let words = |error: io::Error| format!("trace PID 1: {error}");
    let _traced = Traced::seize().map_err(words)?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| words(error.into()))?;
    gate.write_all(&[0]).map_err(words)?;
    let (mut started, mut calls, mut open) = (false, 0, true);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!(
                "it hangs: after {} s it has not come so far as to wait for anything",
                limit.as_secs_f32()
            ));
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(gate.as_fd(), PollFlags::POLLIN));
        }
        // Rounded up, so that the limit is reached and not looked for again and again.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(words(error.into())),
        }
        let said = fds.get(1).and_then(PollFd::any) == Some(true);
        while let Ok(Some(_)) = signals.read_signal() {}
        if said {
            let mut why = String::new();
            gate.read_to_string(&mut why).map_err(words)?;
            if !why.is_empty() {
                return Err(why);
            }
            open = false;
        }
        while let Some((_, status)) = rustix::process::waitpid(Some(rustix::process::Pid::INIT), WaitOptions::NOHANG)
            .map_err(|e| words(e.into()))?
        {
            let (how, signal) = match Traced::stop(status).map_err(words)? {
                Stop::Ending(status) => return Err(format!("it ended at once ({})", describe(status))),
                Stop::Exec => {
                    started = true;
                    (Resume::SystemCall, 0)
                }
                Stop::Call(number) => {
                    calls += 1;
                    if WAITING.contains(&number) || calls >= ENOUGH_CALLS {
                        return sys::resume(INIT, Resume::Free, 0).map_err(words);
                    }
                    (Resume::SystemCall, 0)
                }
                Stop::Other(signal) => (if started { Resume::SystemCall } else { Resume::Event }, signal),
            };
            sys::resume(INIT, how, signal).map_err(words)?;
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
