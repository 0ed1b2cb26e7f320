//! `--prepare-fd`: a byte from the caller starts a command that is prepared.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use msb::wire::Message;

use crate::sending::Sending;

/// Waits in a thread for the byte, and starts the command. At end-of-file it sets `given_up` and closes the connection, which ends the
/// command.
///
/// # Errors
/// Those of `dup(2)`.
pub fn forward(
    mut from: File,
    sending: &Sending,
    connection: &UnixStream,
    given_up: &Arc<AtomicBool>,
) -> io::Result<()> {
    let (sending, connection, given_up) = (sending.clone(), connection.try_clone()?, Arc::clone(given_up));
    thread::spawn(move || {
        let mut byte = [0];
        loop {
            match from.read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(1) => {
                    // If this fails, so does the thread that reads the connection.
                    let _ = sending.message(&Message::Go);
                    return;
                }
                _ => {
                    given_up.store(true, Ordering::Relaxed);
                    let _ = connection.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    });
    Ok(())
}
