//! Bytes in base64 (RFC 4648, section 4). White space is allowed anywhere, as in the output of base64(1) and in PEM files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error};

/// Bytes that are given in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        decode(String::deserialize(from)?).map(Self).map_err(|why| Error::custom(format!("not base64: {why}")))
    }
}

/// Decodes a text.
///
/// # Errors
/// The reason, with the offset in bytes.
fn decode(mut text: String) -> Result<Vec<u8>, String> {
    // Most texts have no white space and are not copied.
    let is_spaced = text.bytes().any(|byte| byte.is_ascii_whitespace());
    let original = if is_spaced { text.clone() } else { String::new() };
    if is_spaced {
        text.retain(|c| !c.is_ascii_whitespace());
    }
    STANDARD.decode(&text).map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            let kind = match error {
                // The invalid byte may be part of a longer character.
                base64::DecodeError::InvalidByte(..) if text[at..].starts_with('=') => "padding before the end,",
                base64::DecodeError::InvalidByte(..) => "invalid character",
                _ => "cut off after",
            };
            let character = text[at..].chars().next().map_or_else(String::new, |c| c.to_string());
            let whole = if is_spaced { &original } else { &text };
            let mut written = whole.bytes().enumerate().filter(|(_, byte)| !byte.is_ascii_whitespace());
            let offset = written.nth(at).map_or(0, |(offset, _)| offset);
            format!("{kind} {character:?} at offset {offset}")
        }
        base64::DecodeError::InvalidLength(length) => {
            format!("{length} characters, which is not a multiple of 4 (is it cut off?)")
        }
        base64::DecodeError::InvalidPadding => "the padding at the end is wrong".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_counts_for_nothing_and_mistakes_have_a_place() {
        for (text, decoded) in [
            ("AAH/", Ok(&[0u8, 1, 255][..])),
            ("AA\nH/\r\n", Ok(&[0, 1, 255])),
            (" A\tA H /\u{c} ", Ok(&[0, 1, 255])),
            ("", Ok(&[])),
            ("\n", Ok(&[])),
            ("AA==", Ok(&[0])),
            ("AA=\n=", Ok(&[0])),
            ("A@==", Err("invalid character \"@\" at offset 1")),
            ("A\n\nA\n@=", Err("invalid character \"@\" at offset 5")),
            ("é===", Err("invalid character \"é\" at offset 0")),
            ("AA\u{a0}/", Err("invalid character \"\\u{a0}\" at offset 2")),
            ("AAH_", Err("invalid character \"_\" at offset 3")),
            ("A===AAAA", Err("padding before the end, \"=\" at offset 1")),
        ] {
            assert_eq!(decode(text.to_owned()), decoded.map(<[u8]>::to_vec).map_err(str::to_owned), "{text:?}");
        }
        for (text, message) in [("AAH", "padding"), ("AAHAA", "not a multiple of 4"), ("AB==", "cut off after")] {
            let error = decode(text.to_owned()).unwrap_err();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }
}
