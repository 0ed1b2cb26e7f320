//! One component of a path.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// The longest name that Linux takes, in bytes.
pub const NAME_MAX: usize = 255;

/// One component of a path: not empty, not `.` or `..`, without slash and NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Checks a component.
    ///
    /// # Errors
    /// EINVAL for what is not a component, ENAMETOOLONG for more than [`NAME_MAX`] bytes.
    pub fn new(name: &'a OsStr) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        if bytes.len() > NAME_MAX {
            return Err(rustix::io::Errno::NAMETOOLONG.into());
        }
        Ok(Self(name))
    }

    /// The component.
    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(Name::new(OsStr::new(bad)).is_err(), "{bad:?}");
        }
        assert!(Name::new(OsStr::new(&"x".repeat(255))).is_ok());
        assert!(Name::new(OsStr::new(&"x".repeat(256))).is_err());
    }
}
