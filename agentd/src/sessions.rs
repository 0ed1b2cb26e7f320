//! The threads that accept connections and serve them. A thread serves the connection that it has accepted, and then accepts the next one,
//! so a new connection neither waits for a new thread nor for a switch to another one. At least one thread waits for a connection, as
//! long as there are not too many. The end of the machine waits for the connections that are being served.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::console;

/// A session's stack, in bytes: its buffers are on the heap.
const STACK: usize = 128 << 10;
// A panic must end one session and not PID 1, which would end the machine.
const _: () = assert!(cfg!(panic = "unwind"));
/// The most connections at a time. Each takes a thread and up to twelve descriptors.
const MAX: usize = 4096;
/// The most threads that wait for a connection.
const MAX_IDLE: usize = 4;

/// The number of connections and threads.
#[derive(Debug, Default)]
pub struct Sessions {
    counts: Mutex<Counts>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Connections that are being served.
    served: usize,
    /// Threads that wait for a connection.
    idle: usize,
}

/// How connections are accepted and served, by threads that share the agent.
pub struct Server<A, C> {
    /// What the sessions share.
    pub agent: Arc<A>,
    /// Prepares a thread.
    pub begin: fn(),
    /// Waits for a connection.
    pub accept: Box<dyn Fn() -> C + Send + Sync>,
    /// Serves one.
    pub serve: fn(C, &A),
}

impl<A: AsRef<Sessions> + Send + Sync + 'static, C: 'static> Server<A, C> {
    /// Starts a thread that waits for a connection.
    ///
    /// # Errors
    /// Those of starting the thread.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        self.sessions().lock().idle += 1;
        let server = Arc::clone(self);
        let started = thread::Builder::new().name("session".into()).stack_size(STACK).spawn(move || server.run());
        if started.is_err() {
            self.sessions().lock().idle -= 1;
        }
        started.map(drop)
    }

    fn sessions(&self) -> &Sessions {
        (*self.agent).as_ref()
    }

    /// Accepts connections and serves them, until enough other threads wait for one.
    fn run(self: &Arc<Self>) {
        (self.begin)();
        loop {
            let connection = (self.accept)();
            let started = if self.sessions().begin() { self.start() } else { Ok(()) };
            match started {
                // Shared state is behind locks, and no lock is held over an incomplete change.
                Ok(()) => drop(catch_unwind(AssertUnwindSafe(|| (self.serve)(connection, &self.agent)))),
                // While this thread serves, there would be none for the next connection, which may be the one that frees memory.
                Err(error) => {
                    drop(connection);
                    console::log(&format!("start a thread: {error}"));
                }
            }
            if !self.sessions().end() {
                return;
            }
        }
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A waiting thread has a connection. True: another thread must wait in its place.
    fn begin(&self) -> bool {
        let mut counts = self.lock();
        counts.idle -= 1;
        counts.served += 1;
        counts.idle == 0 && counts.served < MAX
    }

    /// A connection has ended. True: its thread must wait for the next one.
    fn end(&self) -> bool {
        let mut counts = self.lock();
        counts.served -= 1;
        let waits = counts.idle < MAX_IDLE;
        counts.idle += usize::from(waits);
        drop(counts);
        self.ended.notify_all();
        waits
    }

    /// Waits until no connection is left, but not longer than `limit`.
    pub fn wait_until_none(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut counts = self.lock();
        while counts.served > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            counts = self.ended.wait_timeout(counts, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    #[derive(Default)]
    struct Agent(Sessions);

    impl AsRef<Sessions> for Agent {
        fn as_ref(&self) -> &Sessions {
            &self.0
        }
    }

    /// A connection of a test: it is served until `hold` has no sender, and reports its end when it is dropped.
    struct Connection {
        panics: bool,
        hold: Receiver<()>,
        ended: Sender<bool>,
    }

    impl Drop for Connection {
        fn drop(&mut self) {
            let _ = self.ended.send(thread::panicking());
        }
    }

    /// A server, and the sender of its connections.
    fn server() -> (Arc<Server<Agent, Connection>>, Sender<Connection>) {
        let (connect, connections) = channel();
        let connections = Mutex::new(connections);
        let accept = move || match connections.lock().unwrap().recv() {
            Ok(connection) => connection,
            Err(_) => loop {
                thread::park();
            },
        };
        let serve = |connection: Connection, _: &Agent| {
            let _ = connection.hold.recv();
            assert!(!connection.panics, "a session's own fault");
        };
        let server = Arc::new(Server { agent: Arc::default(), begin: || (), accept: Box::new(accept), serve });
        server.start().unwrap();
        (server, connect)
    }

    #[test]
    fn a_panic_ends_its_own_session_and_the_next_one_is_served() {
        let (server, connect) = server();
        let (ended, report) = channel();
        for panics in [true, false, true, true, false] {
            connect.send(Connection { panics, hold: channel().1, ended: ended.clone() }).unwrap();
            assert_eq!(report.recv(), Ok(panics), "its connection is closed");
        }
        server.agent.0.wait_until_none(Duration::from_secs(60));
        assert_eq!(server.agent.0.lock().served, 0);
    }

    #[test]
    fn a_thread_waits_however_many_connections_there_are_and_few_wait_afterwards() {
        let (server, connect) = server();
        let sessions = &server.agent.0;
        let (ended, report) = channel();
        let holds: Vec<Sender<()>> = (0..20)
            .map(|_| {
                let (keep, hold) = channel();
                connect.send(Connection { panics: false, hold, ended: ended.clone() }).unwrap();
                keep
            })
            .collect();
        // All of them are being served at the same time.
        while sessions.lock().served < holds.len() {
            thread::yield_now();
        }
        // The one that is served last starts the thread that waits for more.
        let deadline = Instant::now() + Duration::from_secs(60);
        while sessions.lock().idle == 0 {
            assert!(Instant::now() < deadline, "no thread waits");
            thread::yield_now();
        }
        drop(holds);
        sessions.wait_until_none(Duration::from_secs(60));
        assert_eq!(sessions.lock().served, 0);
        assert_eq!(report.try_iter().collect::<Vec<_>>(), [false; 20]);
        assert!((1..=MAX_IDLE).contains(&sessions.lock().idle));
    }

    #[test]
    fn at_the_limit_no_thread_is_added_until_a_connection_ends() {
        let sessions = Sessions::default();
        *sessions.lock() = Counts { served: MAX - 2, idle: 1 };
        assert!(sessions.begin());
        sessions.lock().idle += 1;
        assert!(!sessions.begin(), "this is the last one");
        assert!(sessions.end(), "its thread waits");
        assert!(!sessions.begin());
        *sessions.lock() = Counts { served: 9, idle: MAX_IDLE };
        assert!(!sessions.end(), "enough threads wait");
        *sessions.lock() = Counts { served: 9, idle: MAX_IDLE - 1 };
        assert!(sessions.end());
        assert_eq!(sessions.lock().idle, MAX_IDLE);
        assert!(!sessions.begin(), "others wait");
    }
}
