//! The log of what was denied: lines of JSON, each distinct one at most once a minute, and no more than so many bytes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::rule::Protocol;

/// How long a denial is counted before it is logged again.
const PERIOD: Duration = Duration::from_secs(60);
/// How many distinct denials are counted at once. Others are not logged until the period is over.
const MAX_DISTINCT: usize = 256;
/// The most that is written, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Something that was denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Denial {
    /// The protocol; of a name that was asked for, `udp`.
    pub protocol: Protocol,
    /// Where the guest wanted to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The rule or the mode that denied it, or another reason.
    pub reason: String,
}

#[derive(Serialize)]
struct Line<'d> {
    /// Seconds since 1970.
    time: u64,
    #[serde(flatten)]
    denial: &'d Denial,
    /// How often it was denied since its last line.
    count: u64,
}

/// The log.
#[derive(Debug, Default)]
pub struct Log {
    counts: HashMap<Denial, u64>,
    /// When the present period began.
    since: Duration,
    written: usize,
}

impl Log {
    /// Takes a denial at `now`, the time since 1970. Returns the lines to write, if there are any.
    pub fn add(&mut self, denial: Denial, now: Duration) -> Vec<u8> {
        let mut lines = self.flush(now);
        let has_room = self.counts.len() < MAX_DISTINCT;
        match self.counts.get_mut(&denial) {
            Some(count) => *count += 1,
            None if has_room => {
                self.write(&denial, 1, now, &mut lines);
                self.counts.insert(denial, 0);
            }
            None => {}
        }
        lines
    }

    /// Whether there are counts that [`Log::flush`] will write one day.
    pub fn has_counts(&self) -> bool {
        self.counts.values().any(|&count| count > 0)
    }

    /// The counts of a period that is over.
    pub fn flush(&mut self, now: Duration) -> Vec<u8> {
        let mut lines = Vec::new();
        if now.saturating_sub(self.since) >= PERIOD {
            self.since = now;
            for (denial, count) in std::mem::take(&mut self.counts) {
                if count > 0 {
                    self.write(&denial, count, now, &mut lines);
                }
            }
        }
        lines
    }

    fn write(&mut self, denial: &Denial, count: u64, now: Duration, lines: &mut Vec<u8>) {
        let Ok(line) = serde_json::to_vec(&Line { time: now.as_secs(), denial, count }) else { return };
        if self.written + line.len() < MAX_BYTES {
            self.written += line.len() + 1;
            lines.extend(line);
            lines.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(port: u16) -> Denial {
        Denial {
            protocol: Protocol::Tcp,
            address: Some("10.9.9.9".parse().unwrap()),
            port: Some(port),
            name: None,
            reason: "public".into(),
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn a_denial_is_logged_once_a_period_with_its_count() {
        let mut log = Log::default();
        let line = |time: u64, count: u64| {
            format!(
                "{{\"time\":{time},\"protocol\":\"tcp\",\"address\":\"10.9.9.9\",\"port\":80,\"reason\":\"public\",\"count\":{count}}}\n"
            )
        };
        assert_eq!(String::from_utf8(log.add(denial(80), at(0))).unwrap(), line(1_800_000_000, 1));
        assert_eq!(log.add(denial(80), at(1)), b"");
        assert_eq!(log.add(denial(80), at(59)), b"");
        assert_eq!(String::from_utf8(log.flush(at(60))).unwrap(), line(1_800_000_060, 2));
        assert_eq!(log.flush(at(120)), b"");
    }

    #[test]
    fn only_what_was_denied_again_is_left_to_be_written() {
        let mut log = Log::default();
        log.add(denial(80), at(0));
        assert!(!log.has_counts());
        assert_eq!(log.flush(at(60)), b"");
        for _ in 0..2 {
            log.add(denial(80), at(60));
        }
        assert!(log.has_counts());
        assert!(!log.flush(at(120)).is_empty());
        assert!(!log.has_counts());
    }

    #[test]
    fn the_last_line_fits_as_a_whole() {
        let length = Log::default().add(denial(80), at(0)).len();
        for (written, expected) in [(MAX_BYTES - length, length), (MAX_BYTES - length + 1, 0)] {
            let mut log = Log { written, ..Log::default() };
            assert_eq!(log.add(denial(80), at(0)).len(), expected, "{written}");
        }
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut log = Log::default();
        let mut bytes = 0;
        for second in 0..60_000 {
            for port in 0..20 {
                bytes += log.add(denial((second * 20 + port) as u16), at(second)).len();
            }
            assert!(log.counts.len() <= MAX_DISTINCT);
        }
        assert!((MAX_BYTES - 200..=MAX_BYTES).contains(&bytes), "{bytes}");
    }
}
