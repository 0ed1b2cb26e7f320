//! Tracing PID 1 with ptrace(2). If it exited, the kernel would panic or reset the machine; a traced PID 1 is stopped before that.

use std::io;

use nix::libc::{self, c_long};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::WaitOptions;

use super::pid_1::PID;
use crate::process;
use crate::sys::{self, Resume};

/// The signals for faults of the program itself.
const FAULTS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// Why a traced PID 1 has stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has executed a program.
    Exec,
    /// It enters this system call.
    Call(c_long),
    /// It is about to exit, with this status of `wait(2)`.
    Exiting(i32),
    /// Anything else. It has to be resumed with this signal.
    Other(i32),
}

/// PID 1, traced by this thread.
pub struct Traced;

impl Traced {
    /// Starts tracing.
    ///
    /// # Errors
    /// Those of `ptrace(2)`: EPERM if another process traces it.
    pub fn seize() -> io::Result<Self> {
        let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(Pid::from_raw(PID), options)?;
        Ok(Self)
    }

    /// Stops tracing. The init runs freely afterwards.
    ///
    /// # Errors
    /// How it exits, if it is about to.
    pub fn detach(self) -> Result<(), String> {
        let failed = |error: io::Error| format!("trace PID 1: {error}");
        ptrace::interrupt(Pid::from_raw(PID)).map_err(|error| failed(error.into()))?;
        let stopped = rustix::process::waitpid(Some(rustix::process::Pid::INIT), WaitOptions::empty());
        let signal = match stopped.map_err(|error| failed(error.into()))? {
            Some((_, status)) => match Self::stop(status.as_raw()).map_err(failed)? {
                Stop::Exiting(status) => return Err(describe(status)),
                Stop::Other(signal) => signal,
                Stop::Exec | Stop::Call(_) => 0,
            },
            None => 0,
        };
        sys::resume(PID, Resume::Detach, signal).map_err(failed)
    }

    /// Why it has stopped, from the status of `wait(2)`.
    ///
    /// # Errors
    /// Those of `ptrace(2)`.
    pub fn stop(status: i32) -> io::Result<Stop> {
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        if !libc::WIFSTOPPED(status) {
            return Ok(Stop::Other(0));
        }
        let signal = libc::WSTOPSIG(status);
        Ok(match status >> 16 {
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            libc::PTRACE_EVENT_EXIT => Stop::Exiting(ptrace::getevent(Pid::from_raw(PID))? as i32),
            0 if signal == SYSTEM_CALL => match sys::entered_system_call(PID)? {
                Some(number) => Stop::Call(number),
                None => Stop::Other(0),
            },
            // A traced PID 1 is not ended by a fault: the instruction faults again and again.
            0 if FAULTS.contains(&signal) && !process::catches(&std::fs::read_to_string("/proc/1/status")?, signal) => {
                Stop::Exiting(signal)
            }
            0 => Stop::Other(signal),
            _ => Stop::Other(0),
        })
    }

    /// Handles a stop that the reaper has found, while only the exit of PID 1 matters. `Some`: how it exits; it stays stopped.
    pub fn exiting(&self, status: i32) -> Option<String> {
        match Self::stop(status) {
            Ok(Stop::Exiting(status)) => Some(describe(status)),
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

/// Describes how a process ends, from the status of `wait(2)`.
pub fn describe(status: i32) -> String {
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
    fn an_end_is_described_with_its_status_or_signal() {
        assert_eq!(describe(0), "exit status 0");
        assert_eq!(describe(3 << 8), "exit status 3");
        assert_eq!(describe(libc::SIGSEGV), "killed by SIGSEGV");
        assert_eq!(describe(libc::SIGSEGV | 0x80), "killed by SIGSEGV");
    }
}
