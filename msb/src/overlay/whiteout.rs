//! Whiteouts and opaque directories: OCI layers say them in file names (`.wh.NAME`, `.wh..wh..opq`), overlayfs in a 0/0
//! character device and in xattrs, which [`super::marks`] reads.
//!
//! Sources: the OCI image specification's `layer.md`, "Whiteouts"; the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, Stat};

use super::beneath::{Dir, Entry, Name};
use super::marks::{self, Marks};

pub use super::marks::is_private_xattr;

const OCI_PREFIX: &[u8] = b".wh.";
const OCI_RESERVED: &[u8] = b".wh..wh.";
const OCI_OPAQUE: &[u8] = b".wh..wh..opq";

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

/// Whether a file in a layer is a whiteout in the form that we and the kernel write: a character device 0/0.
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

/// Whether a file in a layer is a whiteout in either form: a 0/0 device, or an empty file with an xattr.
///
/// # Errors
/// What reading xattrs says.
pub fn is_either_whiteout(entry: &Entry) -> io::Result<bool> {
    let may_be_marked = entry.file_type() == FileType::RegularFile && entry.stat().st_size == 0;
    Ok(is_whiteout(entry.stat()) || may_be_marked && Marks::of(entry)?.is_whiteout)
}

/// Whether a directory of a layer hides everything below it. No image and no guest can say that, so it is the writer of the layer
/// who did, with or without root.
///
/// # Errors
/// What reading xattrs says.
pub fn is_opaque(dir: &Dir) -> io::Result<bool> {
    Ok(Marks::of(&dir.to_entry()?)?.is_opaque)
}

/// Has a directory that is opaque by the xattr of a user without root say so by the one of root, too: a kernel that mounts as root
/// reads no other. What the layer shows stays the same.
///
/// # Errors
/// What `setxattr(2)` says.
pub fn promote_opaque(dir: &Entry) -> io::Result<()> {
    marks::promote_opaque(dir)
}

/// Makes a directory of a layer hide everything below it.
///
/// # Errors
/// What `setxattr(2)` says.
pub fn make_opaque(dir: &Dir) -> io::Result<()> {
    marks::set_opaque(&dir.to_entry()?)
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
}
