//! Whiteouts and opaque directories. In OCI layers they are files with the names `.wh.NAME` and `.wh..wh..opq`; in overlayfs they are
//! 0/0 character devices, and xattrs, which `marks` reads.
//!
//! Sources: the OCI image specification's `layer.md`, "Whiteouts"; the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{FileType, Mode, Stat};

use super::beneath::{Dir, Entry, Name};
use super::marks::{self, Marks};

pub use super::marks::is_private_xattr;

const OCI_PREFIX: &[u8] = b".wh.";
const OCI_RESERVED: &[u8] = b".wh..wh.";
const OCI_OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// The meaning of a file name in an OCI layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OciName<'a> {
    /// An ordinary file.
    Plain,
    /// The file of this name in lower layers is removed.
    Whiteout(&'a OsStr),
    /// The directory hides those of lower layers.
    Opaque,
    /// A name that AUFS reserves; to be skipped.
    Reserved,
}

/// Reads a file name of an OCI layer.
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

/// The name of the file that makes a directory of an OCI layer opaque.
pub fn oci_opaque() -> &'static OsStr {
    OsStr::from_bytes(OCI_OPAQUE)
}

/// The directory at a layer's top where aufs kept the files that have several names. The layers of old images have it: its files are
/// unpacked like others, because hardlinks lead to them, and removed when the layer is complete.
pub fn aufs_links() -> &'static OsStr {
    OsStr::from_bytes(AUFS_LINKS)
}

/// The name of the file that hides `name` in an OCI layer. It may be too long for a file system.
pub fn oci_whiteout(name: Name<'_>) -> OsString {
    OsString::from_vec([OCI_PREFIX, name.as_os_str().as_bytes()].concat())
}

/// Whether a file in a layer is a whiteout in the form that we and the kernel make: a character device 0/0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes a whiteout at a free name.
///
/// # Errors
/// The error of `mknod(2)`: EEXIST if the name is taken, EPERM without CAP_MKNOD.
pub fn make_whiteout(dir: &Dir, name: Name<'_>) -> io::Result<()> {
    dir.mknod(name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether a file in a layer is a whiteout in either form: a 0/0 device, or an empty file with the xattr `overlay.whiteout`.
///
/// # Errors
/// The error of reading xattrs.
pub fn is_either_whiteout(entry: &Entry) -> io::Result<bool> {
    let may_be_marked = entry.file_type() == FileType::RegularFile && entry.stat().st_size == 0;
    Ok(is_whiteout(entry.stat()) || may_be_marked && Marks::of(entry)?.is_whiteout)
}

/// Whether a directory of a layer is opaque. Neither an image nor a guest can set these xattrs, so the writer of the layer has.
///
/// # Errors
/// The error of reading xattrs.
pub fn is_opaque(dir: &Dir) -> io::Result<bool> {
    Ok(Marks::of(&dir.to_entry()?)?.is_opaque)
}

/// Copies `user.overlay.opaque` of a directory to `trusted.overlay.opaque`, the only one that the kernel reads without `userxattr`.
///
/// # Errors
/// The error of `setxattr(2)`.
pub fn promote_opaque(dir: &Entry) -> io::Result<()> {
    marks::promote_opaque(dir)
}

/// Makes a directory of a layer opaque, so that it hides those of lower layers.
///
/// # Errors
/// The error of `setxattr(2)`.
pub fn make_opaque(dir: &Dir) -> io::Result<()> {
    marks::set_opaque(&dir.to_entry()?)
}

/// Lets the kernel hide the whiteouts of a directory of a lower layer also if no layer below has the directory, or if it is opaque. In a
/// directory that is merged with no other, the kernel looks for whiteouts only if it seems to be copied up (`ovl_get_inode` in
/// `fs/overlayfs/inode.c`); otherwise they are listed as names of files that do not exist.
///
/// # Errors
/// The error of `setxattr(2)`.
pub fn hide_whiteouts(dir: &Dir) -> io::Result<()> {
    marks::set_unknown_origin(&dir.to_entry()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_and_a_directory_without_marks_hide_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        let dir = Dir::open(dir.path()).unwrap();
        assert!(!is_opaque(&dir).unwrap());
        let empty = dir.entry(Name::new(OsStr::new("empty")).unwrap()).unwrap().unwrap();
        assert!(!is_either_whiteout(&empty).unwrap());
    }

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
        assert_eq!(read_oci_name(oci_opaque()), OciName::Opaque);
        let hidden = OsStr::new("a");
        assert_eq!(read_oci_name(&oci_whiteout(Name::new(hidden).unwrap())), OciName::Whiteout(hidden));
    }
}
