//! Paths that a record can hold. A record is JSON, so they are UTF-8, and they are absolute, so they mean the same to each tool.

use std::io;
use std::path::{Path, PathBuf};

/// Makes a caller's path absolute for a record. Tools call this before they create anything.
///
/// # Errors
/// The error of `getcwd(2)`; [`io::ErrorKind::InvalidInput`] for an empty path or one that is not UTF-8.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    require_utf8(&path)?;
    Ok(path)
}

/// Checks that a record can hold a path.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a path that is not UTF-8.
pub fn require_utf8(path: &Path) -> io::Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not UTF-8, and a record cannot hold such a path (choose another)"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_record_cannot_hold_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(absolute(Path::new("/a/b")).unwrap(), Path::new("/a/b"));
        assert!(absolute(Path::new("\u{fc}")).unwrap().is_absolute());
        for bad in [&b"/a/\xff"[..], b"\xff/a", b"/a\xc3"] {
            let refused = absolute(Path::new(OsStr::from_bytes(bad))).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
            assert!(refused.to_string().contains("is not UTF-8"), "{refused}");
        }
    }
}
