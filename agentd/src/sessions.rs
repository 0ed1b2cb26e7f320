//! How many execs there are: what a full descriptor table waits for.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The sessions of the moment, by the process ID of their command.
#[derive(Debug, Default)]
pub struct Sessions {
    running: Mutex<HashSet<i32>>,
    changed: Condvar,
}

/// One session's place; it is given back when this is dropped.
#[derive(Debug)]
pub struct Registered<'a> {
    sessions: &'a Sessions,
    pid: i32,
}

impl Sessions {
    /// Takes a place.
    pub fn enter(&self, pid: i32) -> Registered<'_> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Registered { sessions: self, pid }
    }

    /// Waits until a session ends.
    pub fn wait_for_change(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.is_empty() {
            drop(self.changed.wait(running).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.sessions.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        self.sessions.changed.notify_all();
    }
}
