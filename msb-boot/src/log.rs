//! supervisor.log: what the supervisor did and saw. Its stderr is /dev/null, so a panic is logged here too.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        log.add(format!("{} {}\n", timestamp(now), msb::tool::exit::printable(&event.to_string())).as_bytes());
    }
}

/// Formats a time since 1970 as in RFC 3339, in UTC.
fn timestamp(since_1970: Duration) -> String {
    let (seconds, millis) = (since_1970.as_secs(), since_1970.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years that begin in March, so that the leap day is the last day of a year (Howard Hinnant's
    // "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year + era * 400) } else { (month - 9, year + era * 400 + 1) };
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_as_date_prints_them() {
        // From "date -u -d @N +%FT%TZ".
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_709_164_800, "2024-02-29T00:00:00.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
            (1_764_415_867, "2025-11-29T11:31:07.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(timestamp(Duration::from_millis(seconds * 1000 + 7)), expected);
        }
    }
}
