//! A path of any bytes except NUL: a string, or base64 in the member `…_base64`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A path as it was given. `crate::parse` decodes base64.
#[derive(Clone, PartialEq, Eq)]
pub struct RawPath(OsString);

impl RawPath {
    /// Whether it ends with a slash, so that it has to be a directory or missing.
    pub fn ends_with_slash(&self) -> bool {
        self.as_bytes().ends_with(b"/")
    }
}

impl fmt::Debug for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Deref for RawPath {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        &self.0
    }
}

impl From<String> for RawPath {
    fn from(path: String) -> Self {
        Self(path.into())
    }
}

impl From<Vec<u8>> for RawPath {
    fn from(path: Vec<u8>) -> Self {
        Self(OsString::from_vec(path))
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct AnyPath;
        impl Visitor<'_> for AnyPath {
            type Value = RawPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<RawPath, E> {
                Ok(RawPath(path.into()))
            }

            fn visit_string<E: Error>(self, path: String) -> Result<RawPath, E> {
                Ok(path.into())
            }

            fn visit_byte_buf<E: Error>(self, path: Vec<u8>) -> Result<RawPath, E> {
                Ok(path.into())
            }
        }
        from.deserialize_string(AnyPath)
    }
}
