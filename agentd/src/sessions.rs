//! How many connections are served: a bound on threads and descriptors, and what the end of the machine waits for.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A session's stack, in bytes: its buffers are on the heap.
const STACK: usize = 128 << 10;
// A panic ends one session, and not PID 1 and so the machine.
const _: () = assert!(cfg!(panic = "unwind"));
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

    /// Serves a connection in a thread of its own. A panic there ends that thread alone; what it says goes to stderr.
    ///
    /// # Errors
    /// What starting the thread says.
    pub fn serve<A: AsRef<Self> + Send + Sync + 'static>(
        agent: &Arc<A>,
        work: impl FnOnce(&A) + Send + 'static,
    ) -> io::Result<()> {
        let agent = Arc::clone(agent);
        let serve = move || {
            let sessions: &Self = (*agent).as_ref();
            let _place = sessions.enter();
            // What a session shares with others is behind locks, none of which is left in the middle of a change.
            let _ = catch_unwind(AssertUnwindSafe(|| work(&agent)));
        };
        thread::Builder::new().name("session".into()).stack_size(STACK).spawn(serve).map(drop)
    }

    /// Takes a place.
    fn enter(&self) -> Place<'_> {
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
    fn a_panic_ends_its_own_session_and_gives_its_place_back() {
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
