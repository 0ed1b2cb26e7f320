//! Stdout or stderr of this process: a queue, and a thread that writes it and grants credit for what it has written.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
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
    queue: Sender<Vec<u8>>,
    written: Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the thread. If writing to `to` fails, it closes the connection, which ends the command.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn start(
        to: impl AsFd,
        stream: Stream,
        connection: &UnixStream,
        sending: &Sending,
        turn: &Turn,
    ) -> io::Result<Self> {
        // A separate descriptor: the standard library's stdout buffers until a newline.
        let to = to.as_fd().try_clone_to_owned()?;
        let (queue, queued): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = channel();
        let (sending, connection, turn) = (sending.clone(), connection.try_clone()?, Arc::clone(turn));
        let (done, written) = channel();
        thread::spawn(move || {
            let mut result = Ok(());
            let mut owed = OwedCredit::in_batches_of(credit(stream) / 3);
            for bytes in queued {
                result = blocking::write_all(&to, &bytes);
                if result.is_err() {
                    let _ = connection.shutdown(Shutdown::Both);
                    break;
                }
                if let Some(owed) = owed.add(bytes.len()) {
                    turn.lock().unwrap_or_else(PoisonError::into_inner).grant(stream, owed);
                    // This fails if the command has ended and the agent has closed the connection.
                    let _ = sending.message(&Message::Credit(stream, owed));
                }
            }
            let _ = done.send(result);
        });
        Ok(Self { queue, written })
    }

    /// Queues bytes that the guest had credit for.
    pub fn queue(&self, bytes: Vec<u8>) {
        // A failed writer has closed the connection, so the next read fails.
        let _ = self.queue.send(bytes);
    }

    /// Waits until everything is written, but at most for `limit`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self, limit: Option<Duration>) -> io::Result<()> {
        drop(self.queue);
        match limit {
            Some(limit) => self.written.recv_timeout(limit).unwrap_or(Ok(())),
            None => self.written.recv().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended"))),
        }
    }
}
