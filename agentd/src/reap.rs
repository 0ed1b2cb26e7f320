//! Collecting the dead: ours, whose sessions wait for them, and the orphans that PID 1 inherits.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use msb::wire::exec::Exit;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::WaitOptions;

/// A child that a session waits for.
#[derive(Debug)]
pub struct Awaited {
    /// Its process ID, which is also that of its group and session.
    pub pid: i32,
    exit: Mutex<Option<Exit>>,
    event: EventFd,
}

impl Awaited {
    /// How the child ended, once [`Self::event`] can be read.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable when the child has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// All children, by process ID.
#[derive(Debug, Default)]
pub struct Reaper {
    awaited: Mutex<HashMap<i32, Arc<Awaited>>>,
    /// Whether a process was reaped since, and whether any is left.
    childless: Mutex<bool>,
    changed: Condvar,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Awaited>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child. Nobody but [`Self::run`] may wait for it.
    ///
    /// # Errors
    /// What starting says: ENOENT, EACCES.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Arc<Awaited>> {
        let event = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)?;
        // Held while the child starts: one that ends at once must find its entry, and one whose exec fails is waited
        // for by the standard library itself.
        let mut awaited = self.lock();
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        let entry = Arc::new(Awaited { pid, exit: Mutex::new(None), event });
        awaited.insert(pid, Arc::clone(&entry));
        Ok(entry)
    }

    /// Reaps on SIGCHLD until another signal of `signals` comes, and returns that. They must be blocked in every thread.
    pub fn run(&self, signals: &SigSet) -> Signal {
        loop {
            match signals.wait() {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(other) => return other,
                Err(_) => {}
            }
        }
    }

    fn reap(&self) {
        let mut awaited = self.lock();
        let childless = loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => break false,
                Err(Errno::INTR) => continue,
                Err(_) => break true,
            };
            let code = status.exit_status().map(|code| code as u8);
            let exit = Exit { code, signal: status.terminating_signal() };
            if let Some(entry) = awaited.remove(&pid.as_raw_nonzero().get()) {
                *entry.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
                let _ = entry.event.write(1);
            }
        };
        drop(awaited);
        *self.childless.lock().unwrap_or_else(PoisonError::into_inner) = childless;
        self.changed.notify_all();
    }

    /// Waits until no process is left, for `limit` at most. Says whether that came true.
    pub fn wait_childless(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut childless = self.childless.lock().unwrap_or_else(PoisonError::into_inner);
        while !*childless {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            childless = self.changed.wait_timeout(childless, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
