//! A shutdown that the host has asked for, and what the host is told while it goes on.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msb::wire::Message;
use msb::wire::exec::{Failure, Stopping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the host is told that data is still being written back.
pub const WRITING_INTERVAL: Duration = Duration::from_millis(500);

/// The request, if there is one.
#[derive(Debug, Default)]
pub struct ShutdownRequest(Mutex<Option<Request>>);

#[derive(Debug)]
struct Request {
    grace: Duration,
    host: UnixStream,
}

/// What is killed at the end of the grace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// Commands.
    pub commands: u32,
    /// Other processes.
    pub others: u32,
}

impl ShutdownRequest {
    fn lock(&self) -> MutexGuard<'_, Option<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the main thread for a shutdown. Only the first request counts.
    pub fn ask(&self, grace: Duration, host: UnixStream) {
        // A host that does not read must not delay the shutdown.
        let _ = host.set_write_timeout(Some(WRITING_INTERVAL));
        self.lock().get_or_insert(Request { grace, host });
        // The main thread waits for signals and nothing else.
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }

    /// How long the whole shutdown may take. `None`: the host has not asked for one.
    pub fn grace(&self) -> Option<Duration> {
        self.lock().as_ref().map(|request| request.grace)
    }

    /// Closes the connection. The host then waits for the end of the VMM.
    pub fn hang_up(&self) {
        if let Some(Request { host, .. }) = self.lock().as_ref() {
            let _ = host.shutdown(Shutdown::Both);
        }
    }

    /// Tells the host that the shutdown is not orderly.
    pub fn tell_failure(&self, message: &str) {
        self.tell(&Message::Failure(Failure::new(1, message)));
    }

    /// Tells the host what had to be killed, and after how long. Nothing is sent if nothing was killed.
    pub fn tell_killed(&self, killed: Killed, after: Duration) {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let Killed { commands, others } = killed;
        if commands + others > 0 {
            self.tell(&Message::Stopping(Stopping {
                killed: commands,
                killed_others: others,
                after_ms,
                writing: false,
            }));
        }
    }

    /// Tells the host that data is still being written back.
    pub fn tell_writing(&self) {
        self.tell(&Message::Stopping(Stopping { writing: true, ..Stopping::default() }));
    }

    fn tell(&self, message: &Message) {
        if let Some(Request { host, .. }) = self.lock().as_mut() {
            let _ = message.send(host);
        }
    }
}
