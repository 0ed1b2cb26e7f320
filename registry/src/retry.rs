//! When a failed request is repeated: with exponential back-off and jitter, or when the registry says.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// How often a request is made again before its error counts.
const MAX_TIMES: usize = 5;
const MIN_DELAY: Duration = Duration::from_millis(300);
const MAX_DELAY: Duration = Duration::from_secs(20);
/// The longest wait that a registry may ask for. Quotas of hours are reported instead.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The attempts of one request.
pub struct Retry(ExponentialBackoff);

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Retry {
    /// As many attempts as a request has that nothing else can serve.
    pub fn new() -> Self {
        Self::with_times(MAX_TIMES)
    }

    /// One retry, for a request that the caller can also make elsewhere or begin again.
    pub fn once() -> Self {
        Self::with_times(1)
    }

    /// No retry, for a request whose failure the next one explains.
    pub fn none() -> Self {
        Self::with_times(0)
    }

    fn with_times(times: usize) -> Self {
        let builder = ExponentialBuilder::new().with_factor(2.5).with_min_delay(MIN_DELAY).with_max_delay(MAX_DELAY);
        Self(builder.with_max_times(times).with_jitter().build())
    }

    /// How long to wait before the next attempt; `None` for no more attempts. `after` is the registry's `Retry-After`.
    pub fn next(&mut self, after: Option<Duration>) -> Option<Duration> {
        let delay = self.0.next()?;
        match after {
            Some(after) if after > MAX_RETRY_AFTER => None,
            Some(after) => Some(after.max(delay.min(Duration::from_secs(1)))),
            None => Some(delay),
        }
    }
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds or a date.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end() {
        let mut retry = Retry::new();
        let delays: Vec<Duration> = std::iter::from_fn(|| retry.next(None)).collect();
        assert_eq!(delays.len(), MAX_TIMES);
        let mut once = Retry::once();
        assert!(once.next(None).is_some() && once.next(None).is_none());
        assert!(Retry::none().next(None).is_none());
        assert!(delays.iter().all(|delay| *delay >= MIN_DELAY && *delay <= MAX_DELAY * 2), "{delays:?}");
    }

    #[test]
    fn a_registry_may_ask_for_a_wait_but_not_for_hours() {
        let mut retry = Retry::new();
        assert_eq!(retry.next(Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert!(retry.next(Some(Duration::ZERO)).unwrap() > Duration::ZERO);
        assert_eq!(retry.next(Some(MAX_RETRY_AFTER)), Some(MAX_RETRY_AFTER));
        assert_eq!(retry.next(Some(MAX_RETRY_AFTER + Duration::from_secs(1))), None);
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse_retry_after(value, now), expected.map(Duration::from_secs), "{value}");
        }
    }
}
