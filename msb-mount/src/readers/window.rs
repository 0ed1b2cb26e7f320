//! How long a thread polls for the next request before it sleeps, as KVM does for a halted processor (the kernel's
//! `Documentation/virt/kvm/halt-polling.rst`): the window grows when a request comes soon after it, and shrinks when one comes late.
//!
//! KVM does not poll while another process wants the processor. A process cannot see that, only that its polls fail: on a busy host the
//! client cannot run before this thread sleeps, or this thread waits in the middle of a poll. So each request that comes in time earns
//! credit, and each other one costs some. Without credit the window closes, and each time it takes twice as many requests until the next
//! try. After an interrupted poll it takes most.

use std::time::Duration;

/// The first window, and the shortest.
const FIRST: Duration = Duration::from_micros(10);
/// The longest window.
const LONGEST: Duration = Duration::from_micros(100);
/// What comes later than this comes late. It is longer than [`LONGEST`] because a thread that slept is woken late.
const SOON: Duration = Duration::from_micros(200);
/// The credit of a try.
const CREDIT: u32 = 4;
/// The most credit. With it all earlier tries are forgotten.
const MOST_CREDIT: u32 = 8;
/// The most doublings of the requests until the next try.
const MOST_DOUBLINGS: u32 = 6;
/// How many requests must come soon after another process has run. To wait for it costs as much as a hundred sleeps.
const UNTIL_FREE: u32 = 250;

/// The time to poll for.
#[derive(Debug, Default)]
pub(super) struct Window {
    length: Duration,
    credit: u32,
    /// How many requests must come soon before the next try.
    until_try: u32,
    failed_tries: u32,
}

impl Window {
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// A request came this long after the last one was answered.
    pub(super) fn arrived(&mut self, after: Duration) {
        if self.length.is_zero() {
            return self.arrived_unpolled(after);
        }
        if after <= self.length {
            self.credit = (self.credit + 1).min(MOST_CREDIT);
            if self.credit == MOST_CREDIT {
                self.failed_tries = 0;
            }
            return;
        }
        self.credit -= 1;
        if self.credit == 0 {
            self.length = Duration::ZERO;
            self.until_try = 1 << self.failed_tries;
            self.failed_tries = (self.failed_tries + 1).min(MOST_DOUBLINGS);
        } else if after <= SOON && self.length < LONGEST {
            self.length = (self.length * 2).min(LONGEST);
        } else {
            self.length = (self.length / 2).max(FIRST);
        }
    }

    /// Another process has run on the processor that polled. A process that polls uses up its share, and then waits for all others.
    pub(super) fn lost_processor(&mut self) {
        (self.length, self.until_try) = (Duration::ZERO, UNTIL_FREE);
    }

    fn arrived_unpolled(&mut self, after: Duration) {
        if after > SOON {
            return;
        }
        self.until_try = self.until_try.saturating_sub(1);
        if self.until_try == 0 {
            (self.length, self.credit) = (FIRST, CREDIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window after each request that came after so many microseconds.
    fn lengths(window: &mut Window, arrivals: &[u64]) -> Vec<u128> {
        let each = arrivals.iter().map(|&after| {
            window.arrived(Duration::from_micros(after));
            window.length().as_micros()
        });
        each.collect()
    }

    #[test]
    fn the_window_grows_while_requests_come_soon_and_shrinks_when_they_come_late() {
        for (arrivals, expected) in [
            // Nothing is polled for before a request has come soon.
            (&[201, 5000, 200][..], &[0, 0, 10][..]),
            // In time: it stays as it is.
            (&[200, 10, 1, 0], &[10, 10, 10, 10]),
            // Too late for this window, not for a longer one.
            (&[30, 11, 20, 21, 40], &[10, 20, 20, 40, 40]),
            (&[30, 200, 1, 200, 1, 200, 1, 200, 100], &[10, 20, 20, 40, 40, 80, 80, 100, 100]),
            // Late for the longest.
            (&[30, 1, 1, 1, 200, 200, 200, 200, 101], &[10, 10, 10, 10, 20, 40, 80, 100, 50]),
            // The requests have ended.
            (&[30, 11, 11, 1000, 1000], &[10, 20, 20, 10, 10]),
            (&[30, 201], &[10, 10]),
        ] {
            assert_eq!(lengths(&mut Window::default(), arrivals), expected, "{arrivals:?}");
        }
    }

    #[test]
    fn requests_that_come_in_time_less_than_half_of_the_time_close_the_window() {
        let polled = |arrivals: &[u64]| {
            let mut window = Window::default();
            let lengths = lengths(&mut window, &arrivals.repeat(1000));
            lengths.iter().filter(|length| **length > 0).count()
        };
        assert_eq!(polled(&[5, 1000]), 2000);
        assert_eq!(polled(&[5, 5, 1000]), 3000);
        assert!(polled(&[5, 1000, 1000]) < 300);
        assert!(polled(&[150]) < 100);
    }

    #[test]
    fn a_lost_processor_closes_the_window_for_long() {
        let mut window = Window::default();
        assert_eq!(lengths(&mut window, &[50, 50]), [10, 20]);
        window.lost_processor();
        let lengths = lengths(&mut window, &[50; 251]);
        assert!(lengths[..249].iter().all(|length| *length == 0));
        assert_eq!(lengths[249..], [10, 20]);
    }

    #[test]
    fn each_further_failed_try_doubles_the_requests_until_the_next() {
        let mut window = Window::default();
        let mut until_try = || {
            let mut requests = 0;
            while window.length().is_zero() {
                window.arrived(Duration::from_micros(100));
                requests += 1;
            }
            (0..CREDIT).for_each(|_| window.arrived(Duration::from_secs(1)));
            requests
        };
        let tries: Vec<_> = (0..12).map(|_| until_try()).collect();
        assert_eq!(tries, [1, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64]);
        // So many in time make up for all.
        for (in_time, until_next) in [(3, 64), (4, 1)] {
            while window.length().is_zero() {
                window.arrived(Duration::from_micros(100));
            }
            (0..in_time).for_each(|_| window.arrived(Duration::ZERO));
            (0..CREDIT + in_time).for_each(|_| window.arrived(Duration::from_secs(1)));
            assert_eq!(lengths(&mut window, &vec![100; until_next])[until_next - 1], 10, "{in_time}");
        }
    }
}
