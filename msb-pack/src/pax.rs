//! Records of PAX extended headers (POSIX.1-2024, pax, "pax Extended Header"), for what a ustar header cannot hold. Pure.

/// The records of one extended header.
#[derive(Debug, Default)]
pub(crate) struct Records(Vec<u8>);

impl Records {
    /// Adds a record of `LENGTH KEY=VALUE\n`, where the length counts all of it.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + digits(length) != length {
            length = rest + digits(length);
        }
        self.0.extend(format!("{length} ").as_bytes());
        self.0.extend(key);
        self.0.push(b'=');
        self.0.extend(value);
        self.0.push(b'\n');
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// A time in seconds, with as many digits of its fraction as it has.
pub(crate) fn time(seconds: i64, nanoseconds: u32) -> String {
    // The fraction counts forward from the second before.
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, nanoseconds) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
        (false, nanoseconds) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    let fraction = format!(".{nanoseconds:09}");
    let fraction = if nanoseconds == 0 { "" } else { fraction.trim_end_matches('0') };
    format!("{sign}{seconds}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_counts_its_own_digits() {
        for (value, record) in
            [("", "5 k=\n"), ("abc", "8 k=abc\n"), ("abcd", "9 k=abcd\n"), ("a=b\nc", "11 k=a=b\nc\n")]
        {
            let mut records = Records::default();
            records.add(b"k", value.as_bytes());
            assert_eq!(records.bytes(), record.as_bytes());
        }
        let mut records = Records::default();
        records.add(b"k", &[b'x'; 92]);
        assert!(records.bytes().starts_with(b"98 ") && records.bytes().len() == 98, "{}", records.bytes().len());
        let mut records = Records::default();
        records.add(b"k", &[b'x'; 94]);
        assert!(records.bytes().starts_with(b"101 ") && records.bytes().len() == 101);
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (seconds, nanoseconds, text) in
            [(0, 0, "0"), (1, 500_000_000, "1.5"), (7, 1, "7.000000001"), (-1, 0, "-1"), (-2, 750_000_000, "-1.25")]
        {
            assert_eq!(time(seconds, nanoseconds), text);
        }
    }
}
