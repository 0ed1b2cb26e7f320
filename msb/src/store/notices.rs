//! Warnings about the host that are shown once, and again when their text changes.

use std::fs;

use super::publish::{make_private_dir, write_file};
use super::{home, layout};

/// Whether a message was not shown before on this machine; it counts as shown from now on. `subject` is a file name, one for each kind
/// of message. If the state directory cannot be written, every message is new.
pub fn is_new(subject: &str, text: &str) -> bool {
    let Ok(file) = home::home().map(|home| layout::notice(&home, subject)) else { return true };
    if fs::read(&file).is_ok_and(|shown| shown == text.as_bytes()) {
        return false;
    }
    let made = file.parent().map_or(Ok(()), make_private_dir);
    let _ = made.and_then(|()| write_file(&file, text.as_bytes(), 0o600));
    true
}
