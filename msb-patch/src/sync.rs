//! Bringing what was made to disk, before it shows. `syncfs(2)` writes all that anybody has written to the file system, which
//! may take seconds; so where little was made, it is that alone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb::overlay::beneath::{Dir, Name};
use rustix::fs::{FileType, Mode, OFlags};

/// How many files are little.
const FEW: usize = 16;

/// Syncs a directory and all below it.
///
/// # Errors
/// What opening, reading or syncing says.
pub fn tree(path: &Path) -> io::Result<()> {
    let mut few = Vec::new();
    if collect(Dir::open(path)?, &mut few)? {
        for file in few {
            file.sync_all()?;
        }
        return Ok(());
    }
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Opens the files and directories from `dir` on, each before the directory that names it. False: there are more than a few.
fn collect(dir: Dir, into: &mut Vec<File>) -> io::Result<bool> {
    let mut names: Vec<OsString> = Vec::new();
    for child in dir.read()? {
        names.push(OsStr::from_bytes(child?.file_name().to_bytes()).to_owned());
        if names.len() + into.len() > FEW + 2 {
            return Ok(false);
        }
    }
    for name in &names {
        let Ok(name) = Name::new(name) else { continue };
        let Some(entry) = dir.entry(name)? else { continue };
        if entry.file_type() == FileType::RegularFile {
            into.push(entry.open(OFlags::RDONLY)?);
        } else if entry.is_dir() && !collect(entry.into_dir()?, into)? {
            return Ok(false);
        }
    }
    into.push(
        rustix::fs::openat(&dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?.into(),
    );
    Ok(into.len() <= FEW)
}
