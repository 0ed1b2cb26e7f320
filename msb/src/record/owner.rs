//! IDs of users and groups. They are checked where they are parsed: on a command line, in an image, a passwd file, a message or an
//! operation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A uid or gid: 0 to 4294967294. The next number, -1 in 32 bits, is not an ID: for chown(2) and setresuid(2) it means "unchanged", so
/// a process that asks for it would stay root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

/// Why a number or text is not an [`Id`]. The message is the reason alone; the caller adds the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnId {
    /// 4294967295.
    #[error("4294967295 is reserved (for the kernel it means \"unchanged\")")]
    Reserved,
    /// More than 32 bits, or negative.
    #[error("not a number from 0 to 4294967294")]
    OutOfRange,
    /// Something else than digits.
    #[error("not a decimal number")]
    NotANumber,
}

impl Id {
    /// The ID of root.
    pub const ROOT: Self = Self(0);

    /// Checks a number.
    ///
    /// # Errors
    /// See [`NotAnId`].
    pub const fn new(number: u64) -> Result<Self, NotAnId> {
        match number {
            0..=0xffff_fffe => Ok(Self(number as u32)),
            0xffff_ffff => Err(NotAnId::Reserved),
            _ => Err(NotAnId::OutOfRange),
        }
    }

    /// The number, which is never 4294967295.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Id {
    type Err = NotAnId;

    /// Accepts decimal digits only: no sign and no spaces.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAnId::NotANumber);
        }
        Self::new(text.parse().map_err(|_| NotAnId::OutOfRange)?)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Checks `user[:group]` as far as possible without the guest's passwd and group files: a part that is a number must be an [`Id`].
///
/// # Errors
/// A message with the wrong part and the reason.
pub fn check_user(spec: &str) -> Result<(), String> {
    let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
    for (what, part) in [("user", user), ("group", group)] {
        if let Err(why @ (NotAnId::Reserved | NotAnId::OutOfRange)) = part.parse::<Id>() {
            return Err(format!("{what} {part:?}: {why}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_group_by_number_are_ids_and_names_are_anything() {
        for good in ["", "root", "0", "1000:1000", ":100", "4294967294:4294967294", "app:staff", "-1", "a:4294967295x"]
        {
            assert_eq!(check_user(good), Ok(()), "{good}");
        }
        for (bad, message) in [
            ("4294967295", "user \"4294967295\": 4294967295 is reserved"),
            ("4294967295:0", "user \"4294967295\""),
            ("0:4294967295", "group \"4294967295\": 4294967295 is reserved"),
            (":04294967295", "group \"04294967295\""),
            ("4294967296", "user \"4294967296\": not a number from 0"),
            ("root:99999999999999999999", "group \"99999999999999999999\": not a number from 0"),
        ] {
            let error = check_user(bad).unwrap_err();
            assert!(error.starts_with(message), "{bad}: {error}");
        }
    }

    #[test]
    fn every_number_is_an_id_except_the_one_that_means_unchanged() {
        for (text, id) in [
            ("0", Ok(0)),
            ("007", Ok(7)),
            ("4294967294", Ok(u32::MAX - 1)),
            ("4294967295", Err(NotAnId::Reserved)),
            ("04294967295", Err(NotAnId::Reserved)),
            ("4294967296", Err(NotAnId::OutOfRange)),
            ("18446744073709551616", Err(NotAnId::OutOfRange)),
            ("", Err(NotAnId::NotANumber)),
            ("-1", Err(NotAnId::NotANumber)),
            ("+1", Err(NotAnId::NotANumber)),
            ("0x1", Err(NotAnId::NotANumber)),
            (" 1", Err(NotAnId::NotANumber)),
            ("root", Err(NotAnId::NotANumber)),
            ("\u{661}", Err(NotAnId::NotANumber)),
        ] {
            assert_eq!(text.parse::<Id>().map(Id::get), id, "{text:?}");
        }
    }

    #[test]
    fn json_accepts_and_returns_the_same_numbers() {
        for (json, message) in [
            ("4294967295", "reserved"),
            ("4294967296", "0 to 4294967294"),
            ("-1", "invalid value"),
            ("1.5", "invalid type"),
            ("\"1\"", "invalid type"),
        ] {
            let error = serde_json::from_str::<Id>(json).unwrap_err().to_string();
            assert!(error.contains(message), "{json}: {error}");
        }
        let id: Id = serde_json::from_str("4294967294").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "4294967294");
        assert_eq!(id.to_string(), "4294967294");
        assert_eq!(Id::default(), Id::ROOT);
    }
}
