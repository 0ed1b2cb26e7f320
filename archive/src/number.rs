//! The numeric fields of a tar header. Pure.

/// A numeric field: octal digits between blanks, or GNU's base-256 in two's complement. A blank field is 0, as GNU tar,
/// libarchive and Go read it.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // The first bit marks the format, the second is the sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let start = if negative { -1 } else { 0 };
        let mut bytes = std::iter::once(first).chain(field[1..].iter().copied());
        return bytes.try_fold(start, |value: i64, byte| value.checked_mul(256)?.checked_add(byte.into()));
    }
    let is_blank = |byte: &u8| matches!(byte, 0 | b' ');
    let digits = &field[field.iter().take_while(|byte| is_blank(byte)).count()..];
    let digits = &digits[..digits.iter().position(is_blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add((byte - b'0').into()),
        _ => None,
    })
}

/// A numeric field that is not negative.
pub(crate) fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|number| u64::try_from(number).ok())
}

/// Half of a device number.
pub(crate) fn device(field: &[u8]) -> Option<u32> {
    number(field).and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_field_is_octal_or_base_256_and_may_be_blank() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"644\0\0\0\0\0", Some(0o644)),
            (b"77777777", Some(0o77777777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\0      \0", Some(0)),
            (b"0000648\0", None),
            (b"-0000644", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\x7f\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn what_cannot_be_negative_has_its_own_range() {
        for (field, expected) in [
            (&b"0000644\0"[..], (Some(0o644), Some(0o644))),
            (b"\x80\0\0\0\xff\xff\xff\xff", (Some(u32::MAX.into()), Some(u32::MAX))),
            (b"\x80\0\0\x01\0\0\0\0", (Some(1 << 32), None)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", (None, None)),
        ] {
            assert_eq!((unsigned(field), device(field)), expected, "{field:?}");
        }
    }
}
