//! supervisor.log: what the supervisor did and saw. Its stderr is /dev/null, so a panic is logged here too.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};

use msb::tool::{exit, timestamp};

use crate::rotated::Rotated;

/// The size at which it is rotated, in bytes.
const LIMIT: usize = 256 << 10;

/// A global, because the panic hook has no other access to the log. A process has one supervisor.
static LOG: Mutex<Option<Rotated>> = Mutex::new(None);

/// Opens the log, and installs a panic hook that writes to it. If the log cannot be opened, nothing is logged.
pub(crate) fn open(path: &Path) {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Rotated::begin(path, LIMIT).ok();
    std::panic::set_hook(Box::new(|panic| note(format_args!("panic: {panic}"))));
}

/// Writes a line.
pub(crate) fn note(event: impl Display) {
    let mut log = match LOG.try_lock() {
        Ok(log) => log,
        Err(TryLockError::Poisoned(log)) => log.into_inner(),
        // Another thread is writing, or this one panicked while it was. Losing a line is better than a deadlock.
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(log) = log.as_mut() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = timestamp::rfc3339(now.as_secs().cast_signed(), Some(now.subsec_millis()));
        log.add(format!("{time} {}\n", exit::printable(&event.to_string())).as_bytes());
    }
}
