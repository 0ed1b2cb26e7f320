//! Waiting for child processes: commands, for which sessions wait, and orphans, which PID 1 inherits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use msb::wire::exec::{Exit, Usage};
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::not_started::NotStarted;
use crate::sys::{self, Dead, Launch};

/// A child that a session waits for.
#[derive(Debug)]
pub struct Awaited {
    /// Its process ID, which is also that of its process group and session.
    pub pid: i32,
    /// Whether signals go to it alone, as to the first process of a container, and not to its process group.
    is_contained: bool,
    started: Instant,
    exit: Mutex<Option<Exit>>,
    event: EventFd,
}

/// A child between fork and exec. No lock is held meanwhile: on storage that hangs, exec takes for ever.
#[derive(Debug, Default)]
struct Starting {
    /// Its process ID, set before the child runs; 0 until then.
    pid: AtomicI32,
    /// Its exit, if it ended before its start returned.
    dead: OnceLock<Dead>,
}

impl Awaited {
    fn signal(&self, signal: i32) {
        if self.is_contained { sys::signal_process(self.pid, signal) } else { sys::signal_group(self.pid, signal) }
    }

    fn end(&self, dead: &Dead) {
        let wall_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let usage = Some(Usage { wall_us, ..dead.usage });
        let code = libc::WIFEXITED(dead.status).then(|| libc::WEXITSTATUS(dead.status) as u8);
        let signal = libc::WIFSIGNALED(dead.status).then(|| libc::WTERMSIG(dead.status));
        let exit = Exit { code, signal, usage, oom: false };
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        let _ = self.event.write(1);
    }

    /// Its exit. It is set when [`Self::event`] becomes readable.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable when the child has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// The children of the agent.
#[derive(Debug)]
pub struct Reaper {
    children: Mutex<Children>,
    changed: Condvar,
}

#[derive(Debug)]
struct Children {
    /// Children for which a session waits, by process ID.
    awaited: HashMap<i32, Arc<Awaited>>,
    /// Children that are being started.
    starting: Vec<Arc<Starting>>,
    /// Whether wait(2) reported that there are no children at all.
    none_left: bool,
}

impl Children {
    /// Whether this child is awaited. One that is not was reaped, and its ID may be that of another process.
    fn has(&self, child: &Awaited) -> bool {
        self.awaited.get(&child.pid).is_some_and(|awaited| std::ptr::eq(&raw const **awaited, child))
    }
}

impl Default for Reaper {
    fn default() -> Self {
        let children = Children { awaited: HashMap::new(), starting: Vec::new(), none_left: true };
        Self { children: Mutex::new(children), changed: Condvar::new() }
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child, or prepares it if the launch has a barrier. Only [`Self::reap`] and [`Self::reap_child`] may wait for it.
    ///
    /// # Errors
    /// See [`NotStarted`].
    pub fn spawn(&self, launch: &Launch<'_>) -> Result<Arc<Awaited>, NotStarted> {
        let event = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
            .map_err(|error| NotStarted::at("eventfd", error))?;
        let starting = Arc::new(Starting::default());
        self.lock().starting.push(Arc::clone(&starting));
        let started = Instant::now();
        let result = launch.start(&starting.pid);
        let mut children = self.lock();
        children.starting.retain(|other| !Arc::ptr_eq(other, &starting));
        let pid = result?;
        let entry =
            Arc::new(Awaited { pid, is_contained: launch.contained.is_some(), started, exit: Mutex::new(None), event });
        match starting.dead.get() {
            Some(dead) => entry.end(dead),
            None => {
                children.awaited.insert(pid, Arc::clone(&entry));
                children.none_left = false;
            }
        }
        Ok(entry)
    }

    /// Sends a signal, by its number, to a child's process group, or to the child alone if it is in a container, unless the child has been
    /// reaped. Returns the process group to which it was sent, if it was sent to one.
    pub fn signal(&self, child: &Awaited, signal: i32) -> Option<i32> {
        let children = self.lock();
        if !children.has(child) {
            return None;
        }
        child.signal(signal);
        (!child.is_contained).then_some(child.pid)
    }

    /// Sends a signal to the process groups of all children for which a session waits.
    pub fn signal_all(&self, signal: i32) {
        self.signal_if(signal, |_| true);
    }

    /// Sends a signal to the process groups of the children for which `is_selected` is true.
    pub fn signal_if(&self, signal: i32, is_selected: impl Fn(i32) -> bool) {
        self.lock().awaited.values().filter(|child| is_selected(child.pid)).for_each(|child| child.signal(signal));
    }

    /// The number of children for which a session waits.
    pub fn awaited(&self) -> u32 {
        u32::try_from(self.lock().awaited.len()).unwrap_or(u32::MAX)
    }

    /// Reaps on SIGCHLD until another signal of `signals` arrives, and returns that. All threads must block these signals.
    pub fn run(&self, signals: &SigSet) -> Signal {
        loop {
            match signals.wait() {
                Ok(Signal::SIGCHLD) => drop(self.reap()),
                Ok(other) => return other,
                Err(_) => {}
            }
        }
    }

    /// Reaps all children that have ended. `Some`: the status of PID 1, which is traced and has stopped.
    pub fn reap(&self) -> Option<i32> {
        let mut children = self.lock();
        let mut traced = None;
        children.none_left = loop {
            let dead = match sys::reap_one(None) {
                Ok(Some(dead)) => dead,
                Ok(None) => break false,
                Err(Errno::INTR) => continue,
                Err(_) => break true,
            };
            if dead.pid == Pid::INIT.as_raw_nonzero().get() {
                traced = Some(dead.status);
                continue;
            }
            if let Some(entry) = children.awaited.remove(&dead.pid) {
                entry.end(&dead);
            } else if let Some(starting) = children.starting.iter().find(|one| one.pid.load(Relaxed) == dead.pid) {
                let _ = starting.dead.set(dead);
            }
        };
        drop(children);
        self.changed.notify_all();
        traced
    }

    /// Reaps one child if it has ended, for a session that would otherwise wait for the thread that reaps all.
    pub fn reap_child(&self, child: &Awaited) {
        let mut children = self.lock();
        if children.has(child)
            && let Ok(Some(dead)) = sys::reap_one(Some(child.pid))
        {
            children.awaited.remove(&child.pid);
            child.end(&dead);
            drop(children);
            self.changed.notify_all();
        }
    }

    /// Waits until there are no children, but not longer than `limit`. True: there are none.
    pub fn wait_childless(&self, limit: Duration) -> bool {
        self.wait_until(limit, |children| children.none_left && children.starting.is_empty())
    }

    /// The same for the children for which a session waits.
    pub fn wait_unawaited(&self, limit: Duration) -> bool {
        self.wait_until(limit, |children| children.awaited.is_empty())
    }

    fn wait_until(&self, limit: Duration, is_done: impl Fn(&Children) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut children = self.lock();
        while !is_done(&children) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            children = self.changed.wait_timeout(children, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
