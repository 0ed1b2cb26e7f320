//! Stdout or stderr of this process: a queue, and a thread that writes it and grants credit for what it has written. The thread starts with
//! the first bytes: most commands write nothing to one of the two.

use std::cell::OnceCell;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use msb::wire::sequence::{FromGuest, OwedCredit};
use msb::wire::{Message, Stream};

use crate::blocking;
use crate::sending::Sending;

/// How many bytes of an output may be in flight. Both together are less than a Linux guest buffers on a vsock connection
/// (256 KiB) and than a Unix socket holds (208 KiB), so that a stopped msb-exec never blocks the VMM.
pub fn credit(stream: Stream) -> u32 {
    match stream {
        Stream::Stderr => 62 << 10,
        _ => 124 << 10,
    }
}

/// The state of what the guest may send; writers grant credit in it.
pub type Turn = Arc<Mutex<FromGuest>>;

/// An output stream of this process.
pub struct Output {
    target: Arc<Target>,
    writer: OnceCell<Writer>,
}

/// What the thread works on.
struct Target {
    to: OwnedFd,
    stream: Stream,
    connection: UnixStream,
    sending: Sending,
    turn: Turn,
}

/// The thread, as its owner sees it.
struct Writer {
    queue: Sender<Vec<u8>>,
    written: Receiver<io::Result<()>>,
}

impl Output {
    /// An output to `to`. If writing fails, it closes the connection, which ends the command.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn new(
        to: impl AsFd,
        stream: Stream,
        connection: &UnixStream,
        sending: &Sending,
        turn: &Turn,
    ) -> io::Result<Self> {
        // A separate descriptor: the standard library's stdout buffers until a newline.
        let to = to.as_fd().try_clone_to_owned()?;
        let (connection, sending, turn) = (connection.try_clone()?, sending.clone(), Arc::clone(turn));
        Ok(Self { target: Arc::new(Target { to, stream, connection, sending, turn }), writer: OnceCell::new() })
    }

    /// Queues bytes that the guest had credit for.
    pub fn queue(&self, bytes: Vec<u8>) {
        // A failed writer has closed the connection, so the next read fails.
        let _ = self.writer.get_or_init(|| Writer::start(&self.target)).queue.send(bytes);
    }

    /// Waits until everything is written, but at most for `limit`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self, limit: Option<Duration>) -> io::Result<()> {
        let Some(Writer { queue, written }) = self.writer.into_inner() else { return Ok(()) };
        drop(queue);
        match limit {
            Some(limit) => written.recv_timeout(limit).unwrap_or(Ok(())),
            None => written.recv().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended"))),
        }
    }
}

impl Writer {
    fn start(target: &Arc<Target>) -> Self {
        let (queue, queued) = channel();
        let (done, written) = channel();
        let target = Arc::clone(target);
        thread::spawn(move || _ = done.send(target.write(queued)));
        Self { queue, written }
    }
}

impl Target {
    /// Writes what is queued.
    fn write(&self, queued: Receiver<Vec<u8>>) -> io::Result<()> {
        let mut owed = OwedCredit::in_batches_of(credit(self.stream) / 3);
        for bytes in queued {
            blocking::write_all(&self.to, &bytes).inspect_err(|_| _ = self.connection.shutdown(Shutdown::Both))?;
            if let Some(owed) = owed.add(bytes.len()) {
                self.turn.lock().unwrap_or_else(PoisonError::into_inner).grant(self.stream, owed);
                // This fails if the command has ended and the agent has closed the connection.
                let _ = self.sending.message(&Message::Credit(self.stream, owed));
            }
        }
        Ok(())
    }
}
