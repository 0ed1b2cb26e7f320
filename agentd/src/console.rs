//! The console, which is the host's kernel.log.

use std::io::{self, Write};

/// Writes a line to the console. A console that does not take it is ignored.
pub fn log(message: &str) {
    let _ = io::stderr().write_all(format!("agentd: {message}\n").as_bytes());
}
