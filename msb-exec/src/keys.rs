//! The keys that detach from a command, and finding them in terminal input.

use std::fmt;

/// A sequence of keys in docker's notation: characters, or `ctrl-` and a letter or one of `@[\]^_`, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

impl Keys {
    /// Parses a sequence. An empty one never matches.
    ///
    /// # Errors
    /// A word that is not a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

impl Keys {
    /// The last key of the sequence.
    pub fn last(&self) -> Option<u8> {
        self.0.last().copied()
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, key) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match key {
                0..32 => write!(f, "{comma}ctrl-{}", (key + 64).to_ascii_lowercase() as char)?,
                key => write!(f, "{comma}{}", *key as char)?,
            }
        }
        Ok(())
    }
}

fn key(word: &str) -> Result<u8, String> {
    match word.strip_prefix("ctrl-").unwrap_or(word).as_bytes() {
        [letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')] if word.starts_with("ctrl-") => {
            Ok(letter.to_ascii_uppercase() - 64)
        }
        [character @ 33..=126] if word.len() == 1 => Ok(*character),
        _ => Err(format!("{word:?} is not a key (a character, or ctrl- and a letter or one of @[\\]^_)")),
    }
}

/// Finds [`Keys`] in bytes that arrive in pieces.
#[derive(Debug)]
pub struct Watch {
    keys: Vec<u8>,
    /// How many keys of the sequence the latest input matches.
    matched: usize,
    /// How many of those were passed on already.
    released: usize,
}

impl Watch {
    /// Watches for `keys`.
    pub fn new(keys: Keys) -> Self {
        Self { keys: keys.0, matched: 0, released: 0 }
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.matched - self.released
    }

    /// Passes on the bytes that are held back. The sequence may still continue.
    pub fn release(&mut self, out: &mut impl Extend<u8>) {
        out.extend(self.keys[self.released..self.matched].iter().copied());
        self.released = self.matched;
    }

    /// Appends the part of `bytes` that is for the command to `out`: everything except the keys. What may be the beginning of the
    /// sequence is held back until the next key, or until [`Self::release`]. Returns whether the sequence was typed; bytes after it
    /// are dropped.
    pub fn pass(&mut self, bytes: &[u8], out: &mut impl Extend<u8>) -> bool {
        for &byte in bytes {
            if self.keys.is_empty() {
                out.extend([byte]);
                continue;
            }
            // The longest prefix of the sequence that is a suffix of the held bytes and this one; the rest is passed on.
            let held = [&self.keys[..self.matched], &[byte]].concat();
            let surplus = (0..=held.len()).find(|&from| self.keys.starts_with(&held[from..])).unwrap_or(held.len());
            out.extend(held[self.released.min(surplus)..surplus].iter().copied());
            self.released = self.released.saturating_sub(surplus);
            self.matched = held.len() - surplus;
            if self.matched == self.keys.len() {
                (self.matched, self.released) = (0, 0);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_parsed_in_dockers_notation() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", &b"\x10\x11"[..]),
            ("a", b"a"),
            ("ctrl-@,ctrl-[,~,.", b"\0\x1b~."),
            ("ctrl-a,ctrl-z,ctrl-_", b"\x01\x1a\x1f"),
            ("", b""),
        ] {
            let parsed = Keys::parse(text).unwrap();
            assert_eq!(parsed.0, keys, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        for bad in ["ctrl-", "ctrl-ab", "ab", ",", "ctrl-1", "a,,b", "ü"] {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_released_prefix_is_not_sent_twice_and_the_sequence_may_continue() {
        for (keys, portions, passed, found) in [
            ("ctrl-p,ctrl-q", &[&b"\x10"[..], b"\x11"][..], &b"\x10"[..], true),
            ("ctrl-p,ctrl-q", &[b"\x10", b"\x10", b"\x11"], b"\x10\x10", true),
            ("ctrl-p,ctrl-q", &[b"\x10", b"a", b"\x11"], b"\x10a\x11", false),
            ("a,a,b", &[b"a", b"a", b"a", b"b"], b"aaa", true),
            ("a,b,a,c", &[b"aba", b"bac"], b"aba", true),
            ("a,b,a,c", &[b"aba", b"x"], b"abax", false),
            ("x", &[b"y", b"x"], b"y", true),
        ] {
            let mut watch = Watch::new(Keys::parse(keys).unwrap());
            let mut out = Vec::new();
            let mut was_found = false;
            for portion in portions {
                was_found = watch.pass(portion, &mut out);
                watch.release(&mut out);
                assert_eq!(watch.held(), 0);
            }
            assert_eq!((was_found, out.as_slice()), (found, passed), "{keys} in {portions:?}");
        }
    }

    #[test]
    fn the_sequence_is_found_in_any_pieces_and_everything_else_passes() {
        for (keys, typed, passed, found) in [
            ("ctrl-p,ctrl-q", &b"ls\r\x10\x11rest"[..], &b"ls\r"[..], true),
            ("ctrl-p,ctrl-q", b"\x10\x10\x11", b"\x10", true),
            ("ctrl-p,ctrl-q", b"\x10a\x11", b"\x10a\x11", false),
            ("a,a,b", b"aaab", b"a", true),
            ("a,b,a,c", b"ababac", b"ab", true),
            ("", b"\x10\x11", b"\x10\x11", false),
        ] {
            for portion in 1..=typed.len() {
                let mut watch = Watch::new(Keys::parse(keys).unwrap());
                let mut out = Vec::new();
                let was_found = typed.chunks(portion).any(|bytes| watch.pass(bytes, &mut out));
                assert_eq!((was_found, out.as_slice()), (found, passed), "{keys} in {typed:?} by {portion}");
            }
        }
    }
}
