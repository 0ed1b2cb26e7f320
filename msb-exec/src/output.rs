//! An output of ours: a queue, and a thread that writes it and gives credit for what is written.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use msb::wire::turn::{FromGuest, Owed};
use msb::wire::{Message, Stream};

use crate::blocking;
use crate::sending::Sending;

/// How many bytes of an output may be on their way. Both together are less than a Linux guest sends ahead on a vsock
/// connection (256 KiB) and than a Unix socket holds (208 KiB), so that even a stopped msb-exec makes no VMM wait.
pub fn credit(stream: Stream) -> u32 {
    match stream {
        Stream::Stderr => 62 << 10,
        _ => 124 << 10,
    }
}

/// What the guest may send, which writers give credit for.
pub type Turn = Arc<Mutex<FromGuest>>;

/// An output.
pub struct Output {
    queue: Sender<Vec<u8>>,
    written: Receiver<io::Result<()>>,
}

impl Output {
    /// Where `to` fails, the thread ends the connection, and so the command.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn start(
        to: impl AsFd,
        stream: Stream,
        connection: &UnixStream,
        sending: &Sending,
        turn: &Turn,
    ) -> io::Result<Self> {
        // A descriptor of our own: the standard library's stdout would hold bytes back until a newline.
        let to = to.as_fd().try_clone_to_owned()?;
        let (queue, queued): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = channel();
        let (sending, connection, turn) = (sending.clone(), connection.try_clone()?, Arc::clone(turn));
        let (done, written) = channel();
        thread::spawn(move || {
            let mut result = Ok(());
            let mut owed = Owed::in_portions_of(credit(stream) / 3);
            for bytes in queued {
                result = blocking::write_all(&to, &bytes);
                if result.is_err() {
                    let _ = connection.shutdown(Shutdown::Both);
                    break;
                }
                if let Some(owed) = owed.add(bytes.len()) {
                    turn.lock().unwrap_or_else(PoisonError::into_inner).give(stream, owed);
                    // The command may have ended, and the connection with it.
                    let _ = sending.message(&Message::Credit(stream, owed));
                }
            }
            let _ = done.send(result);
        });
        Ok(Self { queue, written })
    }

    /// Takes bytes that the guest has credit for.
    pub fn queue(&self, bytes: Vec<u8>) {
        // A writer that failed has ended the connection, which the next read shows.
        let _ = self.queue.send(bytes);
    }

    /// Waits until all is written, or for `limit` at most.
    ///
    /// # Errors
    /// What writing said.
    pub fn finish(self, limit: Option<Duration>) -> io::Result<()> {
        drop(self.queue);
        match limit {
            Some(limit) => self.written.recv_timeout(limit).unwrap_or(Ok(())),
            None => self.written.recv().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended"))),
        }
    }
}
