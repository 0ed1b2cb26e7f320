//! The attributes of a file besides its type and content: owner, xattrs, mode and times.
//!
//! They are applied in this order, in which the kernel does not undo a step: a change of the owner clears set-id bits and capabilities,
//! a POSIX ACL changes the mode, and every change may change the times.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, Stat, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Dir, Entry, times_of};
use super::{marks, user_namespace, whiteout};

/// The xattr with the access control list of a file.
pub const ACCESS_ACL: &str = "system.posix_acl_access";
/// The xattr with the access control list that files made in a directory inherit.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
/// The xattr with the capabilities of a program. A change of the file's data removes it.
pub const CAPABILITY: &str = "security.capability";

/// The attributes of a file, without its xattrs.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits, set-id and sticky bits included. A symlink has none.
    pub mode: u32,
    /// Access and modification time; `None` leaves them alone.
    pub times: Option<Timestamps>,
}

impl Attributes {
    /// The attributes in a `stat`.
    pub fn of(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, times: Some(times_of(stat)) }
    }

    /// Applies the attributes to `to`, whose `stat` is now `current`, and calls `set_xattrs` for the xattrs. That returns whether it set
    /// any. Calls whose effect `current` already shows are skipped.
    ///
    /// # Errors
    /// The error of a system call or of `set_xattrs`.
    pub fn apply<E: From<io::Error>>(
        &self,
        to: &Entry,
        current: &Stat,
        set_xattrs: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let has_owner = (current.st_uid, current.st_gid) == (self.uid, self.gid);
        if !has_owner {
            self.set_owner(to)?;
        }
        let has_xattrs = set_xattrs()?;
        let is_symlink = to.file_type() == FileType::Symlink;
        if !is_symlink && (!has_owner || has_xattrs || current.st_mode & 0o7777 != self.mode) {
            to.set_mode(Mode::from_raw_mode(self.mode))?;
        }
        match &self.times {
            Some(times) => Ok(to.set_times(times)?),
            None => Ok(()),
        }
    }

    fn set_owner(&self, to: &Entry) -> io::Result<()> {
        to.set_owner(Some(self.uid), Some(self.gid)).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::INVAL) if !user_namespace::is_initial() => io::Error::other(format!(
                "{}:{}: the user namespace has no such owner (give the user more IDs in /etc/subuid and /etc/subgid)",
                self.uid, self.gid
            )),
            _ => error,
        })
    }
}

/// Which failures to set an xattr are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// None.
    Nothing,
    /// The file system does not support the xattr, and the xattr does not grant or restrict access. The kernel's copy-up does the same.
    Unsupported,
    /// The file system does not support the xattr, or the kernel refuses a `user.` xattr on a file that is neither a regular file
    /// nor a directory. docker does the same when it unpacks a layer.
    Refused,
}

impl Tolerance {
    fn ignores(self, name: &OsStr, errno: Option<Errno>) -> bool {
        let starts = |prefix: &str| name.as_bytes().starts_with(prefix.as_bytes());
        match (self, errno) {
            (Self::Unsupported, Some(Errno::NOTSUP)) => !starts("security.") && !starts("system.posix_acl_"),
            (Self::Refused, Some(Errno::NOTSUP)) => true,
            (Self::Refused, Some(Errno::PERM)) => starts("user."),
            _ => false,
        }
    }
}

/// Sets an xattr.
///
/// # Errors
/// The error of `setxattr(2)`, unless `tolerance` ignores it.
pub fn set_xattr(to: &Entry, name: &OsStr, value: &[u8], tolerance: Tolerance) -> io::Result<()> {
    match to.set_xattr(name, value, XattrFlags::empty()) {
        Err(error) if tolerance.ignores(name, Errno::from_io_error(&error)) => Ok(()),
        other => other,
    }
}

/// What a copy does with the xattrs by which overlayfs marks files of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverlayXattrs {
    /// Leaves them out: they belong to the original's place in its layer.
    Drop,
    /// Copies them: the copy takes the original's place.
    Keep,
    /// Copies them, except those of a metacopy: the copy takes the original's place and has its own data.
    KeepExceptMetacopy,
}

impl OverlayXattrs {
    fn drops(self, name: &OsStr) -> bool {
        whiteout::is_private_xattr(name)
            && !marks::is_escaped_xattr(name)
            && match self {
                Self::Drop => true,
                Self::Keep => false,
                Self::KeepExceptMetacopy => marks::is_of_metacopy(name),
            }
    }
}

/// Copies the xattrs of `from` that `select` accepts to `to`, except those of overlayfs itself. Returns whether there were any.
///
/// # Errors
/// The error of reading or setting, with [`Tolerance::Unsupported`].
pub fn copy_xattrs(from: &Entry, to: &Entry, select: impl Fn(&OsStr) -> bool) -> io::Result<bool> {
    copy_xattrs_with(from, to, OverlayXattrs::Drop, select)
}

pub(super) fn copy_xattrs_with(
    from: &Entry,
    to: &Entry,
    overlay_xattrs: OverlayXattrs,
    select: impl Fn(&OsStr) -> bool,
) -> io::Result<bool> {
    let mut is_any = false;
    for name in from.xattr_names()? {
        if overlay_xattrs.drops(&name) || !select(&name) {
            continue;
        }
        let value = match from.xattr(&name) {
            // It was removed after it was listed.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODATA) => continue,
            value => value?,
        };
        set_xattr(to, &name, &value, Tolerance::Unsupported)?;
        is_any = true;
    }
    Ok(is_any)
}

/// Gives `to` the owner, xattrs, mode and times of `from`.
///
/// # Errors
/// The error of a system call.
pub fn copy_attributes(from: &Entry, to: &Entry) -> io::Result<()> {
    Attributes::of(from.stat()).apply(to, to.stat(), || copy_xattrs(from, to, |_| true))
}

/// As [`copy_attributes`], for a directory of an upper that takes the place of `from`: the xattrs of overlayfs are copied too.
///
/// # Errors
/// The error of a system call.
pub fn clone_attributes(from: &Entry, to: &Entry) -> io::Result<()> {
    Attributes::of(from.stat()).apply(to, to.stat(), || copy_xattrs_with(from, to, OverlayXattrs::Keep, |_| true))
}

/// Removes the ACLs of a directory. It inherited them from a directory of the caller's, and they do not belong to the image.
///
/// # Errors
/// The error of `removexattr(2)`.
pub fn remove_acls(dir: &Entry) -> io::Result<()> {
    for acl in [DEFAULT_ACL, ACCESS_ACL] {
        if dir.xattr(acl.as_ref()).is_ok() {
            dir.remove_xattr(acl.as_ref())?;
        }
    }
    Ok(())
}

/// Runs `change`, and restores the times that `dir` had before.
///
/// # Errors
/// The error of `change` or of `utimensat(2)`.
pub fn keeping_times<T>(dir: &Dir, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = dir.stat()?;
    let changed = change()?;
    dir.to_entry()?.set_times(&times_of(&before))?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_set_an_xattr_are_ignored_as_the_tolerance_says() {
        for (tolerance, name, errno, ignored) in [
            (Tolerance::Nothing, "user.a", Errno::NOTSUP, false),
            (Tolerance::Unsupported, "user.a", Errno::NOTSUP, true),
            (Tolerance::Unsupported, "user.a", Errno::PERM, false),
            (Tolerance::Unsupported, "security.capability", Errno::NOTSUP, false),
            (Tolerance::Unsupported, ACCESS_ACL, Errno::NOTSUP, false),
            (Tolerance::Refused, "security.capability", Errno::NOTSUP, true),
            (Tolerance::Refused, "user.a", Errno::PERM, true),
            (Tolerance::Refused, "trusted.a", Errno::PERM, false),
            (Tolerance::Refused, "user.a", Errno::NOSPC, false),
        ] {
            assert_eq!(tolerance.ignores(OsStr::new(name), Some(errno)), ignored, "{tolerance:?} {name} {errno}");
        }
    }
}
