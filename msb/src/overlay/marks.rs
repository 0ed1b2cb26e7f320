//! The xattrs by which overlayfs marks files of a layer: what they mean for the merge rule, and which are private.
//!
//! Each has two prefixes. Setting a `trusted.overlay.` xattr takes CAP_SYS_ADMIN, so the writer of the layer has set it. overlayfs reads
//! `user.overlay.` xattrs with its mount option `userxattr`. The owner of a file can set those, and so can a user of the root while it
//! is mounted without that option. Therefore a `user.` xattr can hide files of lower layers (`opaque`, `whiteout`), but not make files
//! from another path visible: `redirect` and `metacopy` are refused with that prefix, as the kernel refuses them.
//!
//! Source: the kernel's `Documentation/filesystems/overlayfs.rst` and `fs/overlayfs/{namei,util}.c`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Entry, Name};
use super::user_namespace;

const TRUSTED: &str = "trusted.overlay.";
const USER: &str = "user.overlay.";

const OPAQUE: &str = "opaque";
const REDIRECT: &str = "redirect";
const METACOPY: &str = "metacopy";
const ORIGIN: &str = "origin";
#[cfg(feature = "store")]
const IMPURE: &str = "impure";
const WHITEOUT: &str = "whiteout";
/// The value of [`OPAQUE`] on a directory that hides those of lower layers, and of [`IMPURE`].
const HIDES: &[u8] = b"y";
/// Its value on a directory that contains whiteouts that are empty files with the xattr [`WHITEOUT`].
const HAS_XATTR_WHITEOUTS: &[u8] = b"x";
/// Precedes the rest of a name if the xattr belongs to an overlayfs that is mounted inside this one.
const ESCAPE: &[u8] = b"overlay.";

/// The marks of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Of a directory: it hides the directories of lower layers.
    pub(super) is_opaque: bool,
    /// Of a directory: empty files in it may be whiteouts.
    pub(super) has_xattr_whiteouts: bool,
    /// Of an empty regular file: it is a whiteout.
    pub(super) is_whiteout: bool,
    /// Of a regular file: its data is in a lower layer.
    pub(super) is_metacopy: bool,
    /// Of a regular file: it has an `overlay.origin`.
    pub(super) has_origin: bool,
    /// The name of the file in lower layers, if it is another.
    pub(super) redirect: Option<Redirect>,
}

/// The name of a file in lower layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    /// Whether the names start at the root. Otherwise there is one name, in the directory of the file.
    pub(super) is_absolute: bool,
    /// Each is a valid [`Name`].
    pub(super) names: Vec<OsString>,
}

impl Redirect {
    /// Reads the value of the xattr: one name, or a slash and names with one slash between them.
    fn parse(value: &[u8]) -> Option<Self> {
        let is_absolute = value.starts_with(b"/");
        let names = if is_absolute { &value[1..] } else { value };
        let names: Vec<_> = names.split(|&byte| byte == b'/').map(|name| OsString::from_vec(name.to_vec())).collect();
        let are_names = names.iter().all(|name| Name::new(name).is_ok());
        (are_names && (is_absolute || names.len() == 1)).then_some(Self { is_absolute, names })
    }
}

impl Marks {
    /// Reads the marks of a directory or a regular file. Those of other files are ignored.
    ///
    /// # Errors
    /// The error of reading xattrs; [`io::ErrorKind::InvalidData`] for a redirect that is not a path, and
    /// [`io::ErrorKind::PermissionDenied`] for a redirect or metacopy with the prefix `user.`.
    pub(super) fn of(entry: &Entry) -> io::Result<Self> {
        let mut marks = Self::default();
        if !matches!(entry.file_type(), FileType::Directory | FileType::RegularFile) {
            return Ok(marks);
        }
        for name in entry.xattr_names()? {
            let (is_trusted, mark) = match split(&name) {
                Some((TRUSTED, mark)) => (true, mark),
                Some((_, mark)) => (false, mark),
                None => continue,
            };
            let refused = |what| {
                let error = format!("{name:?}: a {what} that any user of the root could have set is not followed");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
            };
            match (entry.is_dir(), mark) {
                (true, mark) if mark == OPAQUE.as_bytes() => {
                    let value = entry.xattr(&name)?;
                    marks.is_opaque |= value == HIDES;
                    marks.has_xattr_whiteouts |= value == HAS_XATTR_WHITEOUTS;
                }
                (false, mark) if mark == WHITEOUT.as_bytes() => marks.is_whiteout = entry.stat().st_size == 0,
                (false, mark) if mark == METACOPY.as_bytes() => match is_trusted {
                    true => marks.is_metacopy = true,
                    false => return refused("metacopy"),
                },
                (false, mark) if mark == ORIGIN.as_bytes() => marks.has_origin = true,
                (is_dir, mark) if mark == REDIRECT.as_bytes() => match (is_trusted, is_dir) {
                    (true, _) => {
                        let value = entry.xattr(&name)?;
                        let redirect = Redirect::parse(&value).ok_or_else(|| {
                            let value = String::from_utf8_lossy(&value);
                            io::Error::new(io::ErrorKind::InvalidData, format!("{name:?}: {value:?} is not a path"))
                        })?;
                        marks.redirect = Some(redirect);
                    }
                    // On a file it only means something together with a metacopy.
                    (false, true) => return refused("redirect"),
                    (false, false) => {}
                },
                _ => {}
            }
        }
        Ok(marks)
    }

    /// Whether there is no mark but `opaque=y`. Guests and older kernels read no others.
    pub(super) fn are_plain(&self) -> bool {
        !self.has_xattr_whiteouts && !self.is_whiteout && !self.is_metacopy && self.redirect.is_none()
    }
}

/// The prefix of an overlayfs xattr, and the rest of its name.
fn split(name: &OsStr) -> Option<(&'static str, &[u8])> {
    [TRUSTED, USER].into_iter().find_map(|prefix| Some((prefix, name.as_bytes().strip_prefix(prefix.as_bytes())?)))
}

/// Whether an xattr is one of overlayfs itself. Those are neither shown nor settable, nor copied from a lower layer.
pub fn is_private_xattr(name: &OsStr) -> bool {
    split(name).is_some()
}

/// Whether an xattr is one of an overlayfs that is mounted inside this one. It is copied with the file.
pub(super) fn is_escaped_xattr(name: &OsStr) -> bool {
    split(name).is_some_and(|(_, mark)| mark.starts_with(ESCAPE))
}

/// Whether an xattr belongs to a metacopy, and must be removed when the file gets its own data.
pub(super) fn is_of_metacopy(name: &OsStr) -> bool {
    split(name).is_some_and(|(_, mark)| mark == METACOPY.as_bytes() || mark == REDIRECT.as_bytes())
}

/// Makes a directory opaque. Without CAP_SYS_ADMIN, sets `user.overlay.opaque`, which the kernel honours under `userxattr`.
///
/// # Errors
/// The error of `setxattr(2)`.
pub(super) fn set_opaque(dir: &Entry) -> io::Result<()> {
    set(dir, OPAQUE, HIDES)
}

/// Sets the name of a directory in lower layers. The xattr is in `trusted.`, which only root may set: the kernel does not follow redirects
/// in xattrs of a user, who could make other files visible with them.
///
/// # Errors
/// The error of `setxattr(2)`.
pub(super) fn set_redirect(dir: &Entry, value: &OsStr) -> io::Result<()> {
    dir.set_xattr((TRUSTED.to_owned() + REDIRECT).as_ref(), value.as_bytes(), XattrFlags::empty())
}

/// Sets a mark with the prefix that is permitted.
fn set(dir: &Entry, mark: &str, value: &[u8]) -> io::Result<()> {
    let set = |prefix: &str| dir.set_xattr((prefix.to_owned() + mark).as_ref(), value, XattrFlags::empty());
    match set(TRUSTED) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => set(USER),
        other => other,
    }
}

/// Marks a directory as copied up from an origin that is not known, which an empty value means.
///
/// # Errors
/// The error of `setxattr(2)`.
pub(super) fn set_unknown_origin(dir: &Entry) -> io::Result<()> {
    set(dir, ORIGIN, b"")
}

/// The origin of a file, as [`super::origin`] reads it. Only one that root has set counts.
#[cfg(feature = "store")]
pub(super) fn origin(file: &Entry) -> Option<Vec<u8>> {
    file.xattr((TRUSTED.to_owned() + ORIGIN).as_ref()).ok()
}

/// Sets the origin of a file.
///
/// # Errors
/// The error of `setxattr(2)`.
#[cfg(feature = "store")]
pub(super) fn set_origin(file: &Entry, value: &[u8]) -> io::Result<()> {
    file.set_xattr((TRUSTED.to_owned() + ORIGIN).as_ref(), value, XattrFlags::empty())
}

/// Marks a directory as having files with an origin.
///
/// # Errors
/// The error of `setxattr(2)`.
#[cfg(feature = "store")]
pub(super) fn set_impure(dir: &Entry) -> io::Result<()> {
    match dir.set_xattr((TRUSTED.to_owned() + IMPURE).as_ref(), HIDES, XattrFlags::CREATE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Whether a directory may have files with an origin.
#[cfg(feature = "store")]
pub(super) fn is_impure(dir: &Entry) -> bool {
    dir.xattr((TRUSTED.to_owned() + IMPURE).as_ref()).is_ok()
}

/// Copies `user.overlay.opaque` to `trusted.overlay.opaque`, the only one that the kernel reads without `userxattr`. In a user namespace,
/// where layers are always mounted with `userxattr`, does nothing.
///
/// # Errors
/// The error of `setxattr(2)`.
pub(super) fn promote_opaque(dir: &Entry) -> io::Result<()> {
    if !user_namespace::is_initial() {
        return Ok(());
    }
    let has = |prefix: &str| dir.xattr((prefix.to_owned() + OPAQUE).as_ref()).is_ok_and(|value| value == HIDES);
    if has(USER) && !has(TRUSTED) {
        dir.set_xattr((TRUSTED.to_owned() + OPAQUE).as_ref(), HIDES, XattrFlags::empty())?;
    }
    Ok(())
}

/// Removes the mark of a metacopy from a file that has its own data now.
///
/// # Errors
/// The error of `removexattr(2)`.
pub(super) fn remove_metacopy(file: &Entry) -> io::Result<()> {
    match file.remove_xattr((TRUSTED.to_owned() + METACOPY).as_ref()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODATA) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_one_name_or_an_absolute_path() {
        let read = |value: &str| {
            let Redirect { is_absolute, names } = Redirect::parse(value.as_bytes())?;
            Some((is_absolute, names.join(OsStr::new("|")).into_string().unwrap()))
        };
        for (value, expected) in [
            ("a", Some((false, "a"))),
            ("a b", Some((false, "a b"))),
            ("...", Some((false, "..."))),
            ("/a", Some((true, "a"))),
            ("/a/b/c", Some((true, "a|b|c"))),
            ("", None),
            ("/", None),
            ("//a", None),
            ("/a//b", None),
            ("/a/", None),
            ("a/b", None),
            (".", None),
            ("..", None),
            ("/a/../b", None),
            ("/./a", None),
            ("a\0b", None),
        ] {
            assert_eq!(read(value), expected.map(|(absolute, names)| (absolute, names.to_owned())), "{value:?}");
        }
        assert!(Redirect::parse(&[b'x'; 255]).is_some());
        assert!(Redirect::parse(&[b'x'; 256]).is_none());
    }

    #[test]
    fn the_xattrs_of_overlayfs_are_told_from_others() {
        for (name, private, escaped, of_metacopy) in [
            ("trusted.overlay.opaque", true, false, false),
            ("user.overlay.origin", true, false, false),
            ("trusted.overlay.overlay.opaque", true, true, false),
            ("user.overlay.overlay.redirect", true, true, false),
            ("trusted.overlay.metacopy", true, false, true),
            ("trusted.overlay.redirect", true, false, true),
            ("trusted.overlayopaque", false, false, false),
            ("trusted.other", false, false, false),
            ("security.capability", false, false, false),
        ] {
            let name = OsStr::new(name);
            assert_eq!(is_private_xattr(name), private, "{name:?}");
            assert_eq!(is_escaped_xattr(name), escaped, "{name:?}");
            assert_eq!(is_of_metacopy(name), of_metacopy, "{name:?}");
        }
    }
}
