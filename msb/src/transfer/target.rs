//! Where a copy goes, by the rules of `docker cp`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::at;
use crate::overlay::beneath::{Dir, Name};

/// The most symlinks that are followed in one path.
const MAX_SYMLINKS: usize = 40;

/// The place of a copy.
#[derive(Debug)]
pub enum Target {
    /// What the source contains goes into this directory.
    Into(Dir),
    /// The source gets this name in the directory.
    As(Dir, OsString),
}

/// Finds the place of a copy in a root. Symlinks in `path` are followed inside the root.
///
/// - A directory goes into the directory at `path`: itself, or with `contents` what it contains. If nothing is there, it gets that name.
/// - A file goes into the directory at `path`, replaces the file there, or gets that name if nothing is there.
///
/// # Errors
/// A parent that does not exist, a directory for a file, and the reverse.
pub fn find(root: &Dir, path: &Path, name: &OsStr, is_dir: bool, contents: bool) -> io::Result<Target> {
    let bytes = path.as_os_str().as_bytes();
    let must_be_dir = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || path.file_name().is_none();
    let mut path = path.to_owned();
    for _ in 0..=MAX_SYMLINKS {
        let Some(last) = path.file_name().map(OsStr::to_owned) else {
            return existing(root.entry_in_root(&path)?.into_dir()?, name, is_dir, contents);
        };
        let parent_path =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/")).to_owned();
        let parent = root.entry_in_root(&parent_path).and_then(|parent| parent.into_dir());
        let parent = parent.map_err(at(format_args!("the directory {parent_path:?}")))?;
        let Some(there) = parent.entry(Name::new(&last)?)? else {
            if must_be_dir && !is_dir {
                return Err(io::Error::other("there is no such directory"));
            }
            return Ok(Target::As(parent, last));
        };
        match there.file_type() {
            FileType::Symlink => path = parent_path.join(PathBuf::from(there.read_link()?)),
            FileType::Directory => return existing(there.into_dir()?, name, is_dir, contents),
            _ if is_dir => return Err(io::Error::other("a file is there, and the source is a directory")),
            _ if must_be_dir => return Err(Errno::NOTDIR.into()),
            _ => return Ok(Target::As(parent, last)),
        }
    }
    Err(Errno::LOOP.into())
}

fn existing(dir: Dir, name: &OsStr, is_dir: bool, contents: bool) -> io::Result<Target> {
    match contents {
        true if is_dir => Ok(Target::Into(dir)),
        true => Err(io::Error::other("the source is not a directory")),
        false => Ok(Target::As(dir, name.to_owned())),
    }
}
