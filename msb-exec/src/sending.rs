//! The sending half of the connection, which several threads share: frames are written whole.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use msb::wire::Message;

/// The sending half.
#[derive(Clone)]
pub struct Sending(Arc<Mutex<UnixStream>>);

impl Sending {
    /// Of this connection.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn new(connection: &UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(connection.try_clone()?))))
    }

    /// Sends frames that are made already.
    ///
    /// # Errors
    /// What writing says.
    pub fn frames(&self, frames: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(frames)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// What writing says.
    pub fn message(&self, message: &Message) -> io::Result<()> {
        self.frames(&message.to_frame())
    }
}
