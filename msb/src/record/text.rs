//! Strings of the operating system in JSON, and strings of a guest on a terminal.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

/// A string of the operating system in JSON: a string if it is UTF-8, otherwise an array of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Text {
    /// UTF-8.
    Utf8(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        text.to_str().map_or_else(|| Self::Bytes(text.as_bytes().to_vec()), |text| Self::Utf8(text.to_owned()))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Utf8(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Utf8(text)
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> Self {
        match text {
            Text::Utf8(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

/// Replaces every control character, so that a message of a guest or a registry can neither drive the terminal nor pass for a
/// line of the tool's own.
pub fn printable(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_that_is_not_utf_8_is_its_bytes_in_json() {
        for (bytes, json) in [(&b"caf\xc3\xa9"[..], "\"caf\u{e9}\""), (b"\xff/", "[255,47]"), (b"", "\"\"")] {
            let text = Text::from(OsStr::from_bytes(bytes));
            assert_eq!(serde_json::to_string(&text).unwrap(), json);
            assert_eq!(OsString::from(serde_json::from_str::<Text>(json).unwrap()).as_bytes(), bytes);
        }
    }

    #[test]
    fn a_message_of_a_guest_cannot_drive_the_terminal() {
        assert_eq!(printable("no\u{1b}[2Jfile\n"), "no\u{fffd}[2Jfile\u{fffd}");
    }
}
