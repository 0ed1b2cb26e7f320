//! Sizes on the command line: a number with K, M, G or T, in any case and with `B` or `iB` after it. It may have a decimal fraction, as in
//! docker and QEMU. Memory and disks are in MiB without a unit, as in QEMU, which the crates for sizes do not offer.

/// Parses a size of memory or of a disk into bytes. Without a unit it is in MiB.
///
/// # Errors
/// A text that is not a number, or an unknown unit. A size beyond 64 bits is the largest one.
pub fn parse(text: &str) -> Result<u64, String> {
    parse_with(text, 20)
}

/// Parses a size of files into bytes. Without a unit it is in bytes.
///
/// # Errors
/// As [`parse`].
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_with(text, 0)
}

fn parse_with(text: &str, default_shift: u32) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let shift = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" if unit.is_empty() => default_shift,
        "" if unit.eq_ignore_ascii_case("b") => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("unknown unit {unit:?} (K, M, G or T)")),
    };
    let bytes = match number.split_once('.') {
        None => number.parse().ok().map(|number: u64| number.saturating_mul(1 << shift)),
        // A conversion to an integer saturates.
        Some((whole, fraction)) if !whole.is_empty() && !fraction.is_empty() => {
            number.parse().ok().map(|number: f64| (number * (1u64 << shift) as f64) as u64)
        }
        Some(_) => None,
    };
    bytes.ok_or_else(|| "a size is a number with K, M, G or T".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_in_mib_or_has_a_unit() {
        for (text, bytes) in [
            ("5", 5 << 20),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("2GiB", 2 << 30),
            ("1tb", 1 << 40),
            ("1.5G", 3 << 29),
            ("0.25m", 1 << 18),
            ("1.5", 3 << 19),
            ("99999999999T", u64::MAX),
            ("99999999999.5T", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4096B"), Ok(4096));
        assert_eq!(parse("4096B"), Ok(4096));
        for bad in ["", "1i", "x", "1x", "-1", ".5G", "1.G", "1.2.3G", ".", "99999999999999999999"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
