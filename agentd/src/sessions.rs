//! How many connections are served: a bound on threads and descriptors, and what the end of the machine waits for.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most connections at a time. Each takes a thread and up to six descriptors.
const MAX: usize = 4096;

/// The connections of the moment.
#[derive(Debug, Default)]
pub struct Sessions {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One connection's place; it is given back when this is dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a Sessions);

impl Sessions {
    /// Waits until there is a place for one more.
    pub fn wait_for_room(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= MAX {
            count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a place.
    pub fn enter(&self) -> Place<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Place(self)
    }

    /// Waits until no connection is served, for `limit` at most.
    pub fn wait_until_none(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            count = self.changed.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}
