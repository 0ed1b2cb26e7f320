//! supervisor.log: what the supervisor did and saw. Nobody reads its stderr, so this is all that is left of a panic.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::rotated::Rotated;

/// The most bytes that it has; then it becomes supervisor.log.1.
const LIMIT: usize = 256 << 10;

/// There is one supervisor in a process, and its panic hook has no other way to the log.
static LOG: Mutex<Option<Rotated>> = Mutex::new(None);

/// Opens the log, and has a panic of this process written to it. Without a log everything works.
pub(super) fn open(path: &Path) {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Rotated::begin(path, LIMIT).ok();
    std::panic::set_hook(Box::new(|panic| note(format_args!("panic: {panic}"))));
}

/// Writes a line.
pub(super) fn note(event: impl Display) {
    let mut log = match LOG.try_lock() {
        Ok(log) => log,
        Err(TryLockError::Poisoned(log)) => log.into_inner(),
        // Another thread writes, or this one panicked while it did: a line less is better than to wait for ever.
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(log) = log.as_mut() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        log.add(format!("{} {}\n", timestamp(now), msb::tool::exit::printable(&event.to_string())).as_bytes());
    }
}

/// A time since 1970 as RFC 3339 has it, in UTC.
fn timestamp(since_1970: Duration) -> String {
    let (seconds, millis) = (since_1970.as_secs(), since_1970.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years that begin in March, so that the leap day is the last of a year (the algorithm of Howard Hinnant's
    // "chrono-Compatible Low-Level Date Algorithms").
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
    fn a_timestamp_is_that_of_date() {
        // As "date -u -d @N +%FT%TZ" has them.
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
