//! The rate at which a log may grow. A guest can write to its console without an end, and each byte would be one that the host writes to
//! a disk or keeps in memory.

use std::time::Duration;

/// A token bucket of bytes.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: u64,
    burst: u64,
    /// How many bytes may be written, as of `since`.
    left: u64,
    since: Duration,
    dropped: u64,
}

impl RateLimit {
    /// A limit in bytes per second, after `burst` bytes at any speed.
    pub(super) fn new(per_second: u64, burst: u64, now: Duration) -> Self {
        Self { per_second, burst, left: burst, since: now, dropped: 0 }
    }

    /// Whether `bytes`, which are at most the burst, may be written at the time `now`. Then it returns how many bytes were dropped since
    /// the last ones that were written.
    pub(super) fn admit(&mut self, bytes: usize, now: Duration) -> Option<u64> {
        let bytes = bytes as u64;
        let gained = now.saturating_sub(self.since).as_millis() * u128::from(self.per_second) / 1000;
        if gained > 0 {
            self.left = u64::try_from(gained).unwrap_or(self.burst).saturating_add(self.left).min(self.burst);
            self.since = now;
        }
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.dropped))
            }
            None => {
                self.dropped = self.dropped.saturating_add(bytes);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_is_written_and_then_as_much_as_the_rate_allows() {
        let mut limit = RateLimit::new(1000, 500, at(7));
        assert_eq!(limit.admit(300, at(7)), Some(0));
        assert_eq!(limit.admit(200, at(7)), Some(0));
        assert_eq!(limit.admit(1, at(7)), None);
        assert_eq!(limit.admit(100, at(106)), None);
        assert_eq!(limit.admit(100, at(107)), Some(101));
        assert_eq!(limit.admit(1, at(107)), None);
    }

    #[test]
    fn no_more_than_the_burst_is_saved_up() {
        let mut limit = RateLimit::new(1000, 500, at(0));
        assert_eq!(limit.admit(500, at(3_600_000)), Some(0));
        assert_eq!(limit.admit(1, at(3_600_000)), None);
        // A clock that goes back gives nothing.
        assert_eq!(limit.admit(1, at(0)), None);
        assert_eq!(limit.admit(1, at(3_600_001)), Some(2));
    }
}
