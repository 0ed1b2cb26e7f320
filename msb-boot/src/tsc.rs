//! The frequency of the processor's time-stamp counter. An emulated guest reads the host's counter. Its kernel would measure the frequency
//! with an emulated timer, which fails on a busy host; the guest's clock then counts the interrupts of that timer, and loses time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::krun::ffi;

/// The least time between two readings for a useful result.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// How often the counter is read to find a reading that was not interrupted.
const TRIES: usize = 16;
/// The largest error that is accepted: one part in so many.
const PRECISION: u64 = 1000;

/// The counter at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reading {
    ticks: u64,
    /// On the monotonic clock.
    at: Duration,
    /// How far the two may be apart, in ticks.
    error: u64,
}

impl Reading {
    /// Reads the counter and the clock. `None`: this processor has no such counter.
    pub(crate) fn take() -> Option<Self> {
        let read = || {
            let before = ffi::time_stamp()?;
            let now = clock_gettime(ClockId::Monotonic);
            let error = ffi::time_stamp()?.checked_sub(before)?;
            let at = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).ok()?);
            Some(Self { ticks: before + error / 2, at, error })
        };
        (0..TRIES).filter_map(|_| read()).min_by_key(|reading| reading.error)
    }

    /// The counter's frequency in kHz, by this reading and a later one. `None`: they are too close, or not precise enough.
    pub(crate) fn khz_until(self, later: Self) -> Option<u32> {
        let interval = later.at.checked_sub(self.at).filter(|&interval| interval >= MIN_INTERVAL)?;
        let ticks = later.ticks.checked_sub(self.ticks)?;
        if (self.error + later.error).checked_mul(PRECISION)? > ticks {
            return None;
        }
        u32::try_from(u128::from(ticks) * 1_000_000 / interval.as_nanos()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_give_the_frequency_if_they_are_precise() {
        let reading = |ticks, ms, error| Reading { ticks, at: Duration::from_millis(ms), error };
        let first = reading(5_000_000, 1000, 100);
        assert_eq!(first.khz_until(reading(55_000_000, 1020, 100)), Some(2_500_000));
        assert_eq!(first.khz_until(reading(7_499_999, 1001, 0)), None, "too close");
        assert_eq!(first.khz_until(reading(15_000_000, 1005, 0)), Some(2_000_000));
        assert_eq!(first.khz_until(reading(55_000_000, 1020, 60_000)), None, "interrupted");
        assert_eq!(first.khz_until(reading(4_000_000, 1020, 0)), None, "the counter went back");
        assert_eq!(first.khz_until(reading(6_000_000, 900, 0)), None, "the clock went back");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn this_processor_has_the_counter() {
        let (first, second) = (Reading::take().unwrap(), Reading::take().unwrap());
        assert!(first.ticks < second.ticks);
    }
}
