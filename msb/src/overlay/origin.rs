//! Where a file of an upper was copied from: the handle of the lower file, in the xattr `overlay.origin`, as the kernel's overlayfs
//! writes it. With it a file shows the inode number of the lower file in every mount of the upper, also under another name.
//!
//! The value is the kernel's `struct ovl_fb` (`fs/overlayfs/overlayfs.h`): version, magic number, length, flags, the type of the handle,
//! the UUID of its file system, and the handle. User space has no general way to the UUID, so it is left empty: the kernel follows such
//! an origin with its mount option `uuid=null` only, and the UUID of one that the kernel wrote is not compared here. A wrong origin
//! only shows a wrong number.

use std::fs::File;
use std::path::Path;

use name_to_handle_at::{AT_EMPTY_PATH, FileHandle, name_to_handle_at, open_by_handle_at};
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::beneath::{Dir, Entry};
use super::marks;
use super::merged::{Layer, Leaf, Merged};

/// `OVL_FH_MAGIC`.
const MAGIC: u8 = 0xfb;
/// What precedes the handle.
const HEADER: usize = 21;
/// `OVL_FH_FLAG_BIG_ENDIAN`, as it is on this machine.
const BYTE_ORDER: u8 = if cfg!(target_endian = "big") { 1 } else { 0 };
/// `OVL_FH_FLAG_ANY_ENDIAN`.
const ANY_ORDER: u8 = 2;

/// The file systems of the lower layers, on which origins are looked up.
#[derive(Debug)]
pub struct Origins {
    /// A directory on each, and its device.
    file_systems: Vec<(u64, File)>,
}

impl Origins {
    /// Those of a root. Without CAP_DAC_READ_SEARCH on the host no origin is found later.
    pub fn new(root: &Merged) -> Self {
        let mut file_systems: Vec<(u64, File)> = Vec::new();
        for part in root.roots.iter() {
            let Ok(stat) = part.dir.stat() else { continue };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if !file_systems.iter().any(|(device, _)| *device == stat.st_dev)
                && let Ok(dir) = rustix::fs::openat(&part.dir, c".", flags, Mode::empty())
            {
                file_systems.push((stat.st_dev, dir.into()));
            }
        }
        Self { file_systems }
    }

    /// The `stat` of the lower file that a file of the upper was copied from, if that is known and still there.
    pub fn find(&self, leaf: &Leaf) -> Option<Stat> {
        if leaf.layer != Layer::Upper || !leaf.may_have_origin {
            return None;
        }
        let handle = parse(&marks::origin(&leaf.entry)?)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        self.file_systems.iter().find_map(|(device, dir)| {
            let file = open_by_handle_at(dir, &handle, flags.bits().cast_signed()).ok()?;
            let stat = rustix::fs::fstat(&file).ok()?;
            let is_it = stat.st_dev == *device && FileType::from_raw_mode(stat.st_mode) == leaf.entry.file_type();
            is_it.then_some(stat)
        })
    }
}

/// Notes the file that `copy` was copied from. Not every file system has handles or xattrs, and only root may set this one, so errors are
/// ignored: the number then changes with the next mount. A file with several names has no origin, as in the kernel, since its copy has
/// one of them.
pub fn note(copy: &Entry, from: &Entry) {
    if from.stat().st_nlink == 1
        && let Ok((handle, _)) = name_to_handle_at(from, Path::new(""), AT_EMPTY_PATH)
        && let Some(value) = format(&handle)
    {
        let _ = marks::set_origin(copy, &value);
    }
}

/// Notes that a directory of the upper has files with an origin, as the kernel does.
pub fn note_in(dir: &Dir) {
    if let Ok(dir) = dir.to_entry() {
        let _ = marks::set_impure(&dir);
    }
}

/// Whether a directory of the upper may have files with an origin.
pub fn may_be_in(dir: &Dir) -> bool {
    dir.to_entry().is_ok_and(|dir| marks::is_impure(&dir))
}

fn format(handle: &FileHandle) -> Option<Vec<u8>> {
    let length = u8::try_from(HEADER + handle.handle.len()).ok()?;
    let mut value = vec![0, MAGIC, length, BYTE_ORDER, u8::try_from(handle.handle_type).ok()?];
    value.resize(HEADER, 0);
    value.extend(&handle.handle);
    Some(value)
}

/// Reads a handle; `None` for what the kernel does not follow either.
fn parse(value: &[u8]) -> Option<FileHandle> {
    let &[version, magic, length, flags, handle_type] = value.first_chunk()?;
    // A further flag says that the file is in an upper.
    if version != 0 || magic != MAGIC || ![BYTE_ORDER, BYTE_ORDER | ANY_ORDER].contains(&flags) {
        return None;
    }
    let handle = value.get(HEADER..usize::from(length))?.to_vec();
    Some(FileHandle { handle_type: handle_type.into(), handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_written_as_the_kernel_writes_it() {
        let handle = FileHandle { handle_type: 1, handle: vec![7, 0, 0, 0, 9, 0, 0, 0] };
        let value = format(&handle).unwrap();
        assert_eq!(value[..5], [0, 0xfb, 29, BYTE_ORDER, 1]);
        assert_eq!(value[5..21], [0; 16]);
        assert_eq!(value[21..], [7, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(parse(&value).unwrap(), handle);
        // Whatever the UUID is.
        let mut of_kernel = value.clone();
        of_kernel[5..21].fill(3);
        assert_eq!(parse(&of_kernel).unwrap(), handle);
        let mut of_any_order = value;
        of_any_order[3] = BYTE_ORDER | ANY_ORDER;
        assert_eq!(parse(&of_any_order).unwrap(), handle);
        assert!(format(&FileHandle { handle_type: 1, handle: vec![0; 235] }).is_none());
    }

    #[test]
    fn what_is_no_handle_is_no_origin() {
        let value = format(&FileHandle { handle_type: 1, handle: vec![1; 8] }).unwrap();
        for (place, byte) in [(0, 1), (1, 0xfa), (2, 30), (2, 20), (3, 4), (3, BYTE_ORDER ^ 1)] {
            let mut other = value.clone();
            other[place] = byte;
            assert!(parse(&other).is_none(), "{place}: {byte}");
        }
        assert!(parse(b"").is_none() && parse(&value[..20]).is_none());
    }
}
