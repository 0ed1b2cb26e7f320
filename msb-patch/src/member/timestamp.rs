//! A time: a number of seconds since 1970, or a string in the format of RFC 3339.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970 in UTC, without leap seconds.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

const WANTED: &str = "seconds since 1970 or a time as in \"2026-01-31T12:00:00Z\" (RFC 3339)";

impl Timestamp {
    /// Parses `date-time` of RFC 3339. A space is allowed in place of the `T`. Digits after nanoseconds are ignored.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let (time, rest) = rest.split_at_checked(8)?;
        let (year, month, day) = three(date, b'-', [4, 2, 2])?;
        let (hour, minute, second) = three(time, b':', [2, 2, 2])?;
        let (nanoseconds, zone) = match rest.strip_prefix('.') {
            Some(rest) => {
                let (digits, zone) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
                let padded = format!("{digits:0<9}");
                (number(&padded[..9]).filter(|_| !digits.is_empty())?, zone)
            }
            None => (0, rest),
        };
        let offset = match zone.split_at_checked(1)? {
            ("Z" | "z", "") => 0,
            (sign @ ("+" | "-"), zone) => {
                let (hours, minutes) = zone.split_once(':').filter(|_| zone.len() == 5)?;
                let (hours, minutes) = (number(hours)?, number(minutes)?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                (hours * 60 + minutes) * if sign == "-" { -60 } else { 60 }
            }
            _ => return None,
        };
        // A leap second becomes the next second, as in the kernel.
        if !(1..=12).contains(&month)
            || day < 1
            || day > days_of(year, month)
            || hour > 23
            || minute > 59
            || second > 60
        {
            return None;
        }
        let days = days_since_1970(year, month, day);
        Some(Self {
            seconds: ((days * 24 + hour) * 60 + minute) * 60 + second - offset,
            nanoseconds: nanoseconds as u32,
        })
    }
}

/// Parses three numbers with the given digits and separator.
fn three(text: &str, separator: u8, digits: [usize; 3]) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(char::from(separator));
    let mut next = |digits| parts.next().filter(|part| part.len() == digits).and_then(number);
    let found = (next(digits[0])?, next(digits[1])?, next(digits[2])?);
    parts.next().is_none().then_some(found)
}

fn number(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // The number of leap days before a year, from year 0.
    let leap_days = |year: i64| (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    let in_months: i64 = (1..month).map(|month| days_of(year, month)).sum();
    (year - 1970) * 365 + leap_days(year) - leap_days(1970) + in_months + day - 1
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct SecondsOrText;
        impl Visitor<'_> for SecondsOrText {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(WANTED)
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<Timestamp, E> {
                Ok(Timestamp { seconds, nanoseconds: 0 })
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Timestamp, E> {
                i64::try_from(seconds)
                    .map_err(|_| E::custom(format!("{seconds}: out of range")))
                    .and_then(|seconds| self.visit_i64(seconds))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::from_rfc3339(text).ok_or_else(|| E::custom(format!("{text:?}: {WANTED} is expected")))
            }
        }
        from.deserialize_any(SecondsOrText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_date_reads_them() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1970-01-01t00:00:00z", 0, 0),
            ("1970-01-01 00:00:01Z", 1, 0),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("2000-02-29T12:34:56Z", 951_827_696, 0),
            ("1900-03-01T00:00:00Z", -2_203_891_200, 0),
            ("2024-12-31T23:59:60Z", 1_735_689_600, 0),
            ("2026-01-31T12:00:00.5Z", 1_769_860_800, 500_000_000),
            ("2026-01-31T12:00:00.123456789999Z", 1_769_860_800, 123_456_789),
            ("2026-01-31T12:00:00+01:30", 1_769_855_400, 0),
            ("2026-01-31T12:00:00-00:30", 1_769_862_600, 0),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
            ("2100-03-01T00:00:00Z", 4_107_542_400, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ] {
            assert_eq!(Timestamp::from_rfc3339(text), Some(Timestamp { seconds, nanoseconds }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "now",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.5",
            "2026-01-31T12:00:00Zx",
            "2026-01-31T12:00:00+0130",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+01:60",
            "2026-01-31T12:00:00+1:300",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:61Z",
            "2026-00-31T12:00:00Z",
            "2026-13-31T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "1900-02-29T12:00:00Z",
            "2026-04-31T12:00:00Z",
            "2026-01-00T12:00:00Z",
            "2026-1-031T12:00:00Z",
            "+026-01-31T12:00:00Z",
            "2026-01-31X12:00:00Z",
            "é026-01-31T12:00:00Z",
            "2026/01/31T12:00:00Z",
            "2026-01-31T12-00-00Z",
        ] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
    }
}
