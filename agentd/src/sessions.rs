//! The connections that are being served: their number is limited, and the end of the machine waits for them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A session's stack, in bytes: its buffers are on the heap.
const STACK: usize = 128 << 10;
// A panic must end one session and not PID 1, which would end the machine.
const _: () = assert!(cfg!(panic = "unwind"));
/// The most connections at a time. Each takes a thread and up to six descriptors.
const MAX: usize = 4096;

/// The number of connections.
#[derive(Debug, Default)]
pub struct Sessions {
    count: Mutex<usize>,
    changed: Condvar,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct Guard<'a>(&'a Sessions);

impl Sessions {
    /// Waits until there are fewer connections than the limit.
    pub fn wait_for_room(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= MAX {
            count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Serves a connection in a new thread. A panic ends only that thread, and its message goes to stderr.
    ///
    /// # Errors
    /// Those of starting the thread.
    pub fn serve<A: AsRef<Self> + Send + Sync + 'static>(
        agent: &Arc<A>,
        work: impl FnOnce(&A) + Send + 'static,
    ) -> io::Result<()> {
        let agent = Arc::clone(agent);
        let serve = move || {
            let sessions: &Self = (*agent).as_ref();
            let _guard = sessions.enter();
            // Shared state is behind locks, and no lock is held over an incomplete change.
            let _ = catch_unwind(AssertUnwindSafe(|| work(&agent)));
        };
        thread::Builder::new().name("session".into()).stack_size(STACK).spawn(serve).map(drop)
    }

    /// Counts a connection.
    fn enter(&self) -> Guard<'_> {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Guard(self)
    }

    /// Waits until no connection is left, but not longer than `limit`.
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

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[derive(Default)]
    struct Agent(Sessions);

    impl AsRef<Sessions> for Agent {
        fn as_ref(&self) -> &Sessions {
            &self.0
        }
    }

    /// Gives word when it is dropped, as a session closes its connection.
    struct Connection(std::sync::mpsc::Sender<bool>);

    impl Drop for Connection {
        fn drop(&mut self) {
            let _ = self.0.send(thread::panicking());
        }
    }

    #[test]
    fn a_panic_ends_its_own_session_and_gives_its_guard_back() {
        let agent = Arc::new(Agent::default());
        let (sender, said) = channel();
        for bad in [true, false, true] {
            let connection = Connection(sender.clone());
            Sessions::serve(&agent, move |_| {
                let _connection = connection;
                assert!(!bad, "a session's own fault");
            })
            .unwrap();
            assert_eq!(said.recv(), Ok(bad), "its connection is closed");
        }
        agent.0.wait_until_none(Duration::from_secs(60));
        assert_eq!(*agent.0.count.lock().unwrap(), 0);
    }
}
