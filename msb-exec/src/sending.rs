//! The sending half of the connection. Several threads share it; each frame is written whole.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use msb::wire::Message;

/// The sending half.
#[derive(Clone)]
pub struct Sending(Arc<Mutex<UnixStream>>);

impl Sending {
    /// The sending half of `connection`.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn new(connection: &UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(connection.try_clone()?))))
    }

    /// Sends encoded frames.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn frames(&self, frames: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(frames)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn message(&self, message: &Message) -> io::Result<()> {
        self.frames(&message.to_frame())
    }
}
