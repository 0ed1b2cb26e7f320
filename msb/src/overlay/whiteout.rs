//! Whiteouts and opaque directories, in the two spellings the world has: OCI layers say them in file names (`.wh.NAME`,
//! `.wh..wh..opq`), overlayfs in a 0/0 character device and an xattr. Nobody outside this file knows either spelling.
//!
//! Sources: the OCI image specification's `layer.md`, "Whiteouts"; the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use super::beneath::{Dir, Name};

const OCI_PREFIX: &[u8] = b".wh.";
const OCI_RESERVED: &[u8] = b".wh..wh.";
const OCI_OPAQUE: &[u8] = b".wh..wh..opq";

const PRIVATE_XATTR: &[u8] = b"trusted.overlay.";
const PRIVATE_USER_XATTR: &[u8] = b"user.overlay.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const OPAQUE_USER_XATTR: &str = "user.overlay.opaque";

/// What the last component of a layer entry's path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OciName<'a> {
    /// The entry is what it looks like.
    Plain,
    /// The named sibling of a lower layer is gone.
    Whiteout(&'a OsStr),
    /// All siblings of lower layers are gone.
    Opaque,
    /// A name that AUFS kept for itself; to be skipped.
    Reserved,
}

/// Reads the last component of a layer entry's path.
pub fn read_oci_name(name: &OsStr) -> OciName<'_> {
    let bytes = name.as_bytes();
    if bytes == OCI_OPAQUE {
        OciName::Opaque
    } else if bytes.starts_with(OCI_RESERVED) || bytes == OCI_PREFIX {
        OciName::Reserved
    } else if let Some(hidden) = bytes.strip_prefix(OCI_PREFIX) {
        OciName::Whiteout(OsStr::from_bytes(hidden))
    } else {
        OciName::Plain
    }
}

/// Whether a file in a layer is a whiteout: a character device 0/0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Puts a whiteout at a free name.
///
/// # Errors
/// What `mknod(2)` says: EEXIST where something is there, EPERM without CAP_MKNOD.
pub fn make_whiteout(dir: &Dir, name: Name<'_>) -> io::Result<()> {
    dir.mknod(name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether a directory of a layer hides everything below it, by either of the xattrs that say so: no image and no guest can
/// set them, so who did was the writer of the layer, as root or without.
///
/// # Errors
/// What `getxattr(2)` says, but for a file system without xattrs.
pub fn is_opaque(dir: &Dir) -> io::Result<bool> {
    Ok(says_opaque(dir, OPAQUE_XATTR)? || says_opaque(dir, OPAQUE_USER_XATTR)?)
}

fn says_opaque(dir: &Dir, xattr: &str) -> io::Result<bool> {
    let mut value = [0u8; 2];
    match rustix::fs::getxattr(dir.proc_path(), xattr, &mut value[..]) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory of a layer hide everything below it. Who may not set the xattr that only root may sets the one that the
/// kernel reads with the mount option `userxattr`.
///
/// # Errors
/// What `setxattr(2)` says.
pub fn make_opaque(dir: &Dir) -> io::Result<()> {
    let set = |xattr| rustix::fs::setxattr(dir.proc_path(), xattr, b"y", rustix::fs::XattrFlags::empty());
    match set(OPAQUE_XATTR) {
        Err(Errno::PERM) => Ok(set(OPAQUE_USER_XATTR)?),
        other => Ok(other?),
    }
}

/// Has a directory of a layer say by root's xattr what a user without root has said by the other one: a kernel that mounts with
/// the rights of root reads no other. What the layer shows stays the same.
///
/// # Errors
/// What `setxattr(2)` says.
pub fn spell_for_root(dir: &Dir) -> io::Result<()> {
    if !says_opaque(dir, OPAQUE_XATTR)? && says_opaque(dir, OPAQUE_USER_XATTR)? {
        rustix::fs::setxattr(dir.proc_path(), OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// Whether an xattr is overlayfs's own bookkeeping: it is neither shown nor copied up.
pub fn is_private_xattr(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PRIVATE_XATTR) || name.as_bytes().starts_with(PRIVATE_USER_XATTR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_oci_names() {
        for (name, meaning) in [
            ("etc", OciName::Plain),
            (".wh", OciName::Plain),
            (".whatever", OciName::Plain),
            (".wh.a", OciName::Whiteout(OsStr::new("a"))),
            (".wh..hidden", OciName::Whiteout(OsStr::new(".hidden"))),
            (".wh..wh..opq", OciName::Opaque),
            (".wh..wh.plnk", OciName::Reserved),
            (".wh..wh.aufs", OciName::Reserved),
            (".wh.", OciName::Reserved),
        ] {
            assert_eq!(read_oci_name(OsStr::new(name)), meaning, "{name}");
        }
    }

    #[test]
    fn private_xattrs_are_overlayfs_own() {
        assert!(is_private_xattr(OsStr::new("trusted.overlay.opaque")));
        assert!(is_private_xattr(OsStr::new("user.overlay.origin")));
        assert!(!is_private_xattr(OsStr::new("trusted.other")));
        assert!(!is_private_xattr(OsStr::new("security.capability")));
    }
}
