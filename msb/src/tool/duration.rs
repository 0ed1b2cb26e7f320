//! Durations on the command line. humantime and jiff accept neither a bare number nor fractions of every unit, which sleep(1) and
//! timeout(1) do, so this is a parser of our own.

use std::time::Duration;

/// Parses a duration: seconds, or a sequence of numbers with units (`ms`, `s`, `m`, `h`, `d`): `90`, `1.5m`, `1m30s`, `2h`.
///
/// # Errors
/// A message with the wrong part.
pub fn parse(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = split_at(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, after) = split_at(after, |c| !c.is_ascii_alphabetic());
        if number.is_empty() {
            return Err("a number with a unit is expected (90, 500ms, 1m30s)".to_owned());
        }
        let scale = match unit {
            "" if number.len() == text.len() => 1.0,
            "s" => 1.0,
            "ms" => 0.001,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            "" => return Err(format!("{number} has no unit (ms, s, m, h or d)")),
            unit => return Err(format!("unknown unit {unit:?} (ms, s, m, h or d)")),
        };
        let number: f64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
        let part = Duration::try_from_secs_f64(number * scale).map_err(|_| format!("{text:?} is too long"))?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long"))?;
        rest = after;
    }
    Ok(total)
}

fn split_at(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_numbers_with_units() {
        for (text, milliseconds) in [
            ("0", 0),
            ("90", 90_000),
            ("1.5", 1500),
            ("2s", 2000),
            ("1.5m", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("1m30s", 90_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("0.5h1m", 1_860_000),
        ] {
            assert_eq!(parse(text).map(|duration| duration.as_millis()), Ok(milliseconds), "{text}");
        }
        for (bad, message) in [
            ("", "a number with a unit"),
            ("s", "a number with a unit"),
            ("-1", "a number with a unit"),
            ("1 s", "no unit"),
            ("1y", "unknown unit \"y\""),
            ("1m30", "30 has no unit"),
            ("1.2.3s", "\"1.2.3\" is not a number"),
            (".s", "\".\" is not a number"),
            ("nan", "a number with a unit"),
            ("1e300", "unknown unit \"e\""),
            ("1s2", "2 has no unit"),
            ("99999999999999999999d", "too long"),
            ("18446744073709551615s1s", "too long"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(message), "{bad:?}: {error}");
        }
    }
}
