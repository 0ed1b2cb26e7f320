//! An EROFS image in the store, opened for its use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::superblock;
use crate::lock::{self, Lock};
use crate::overlay::error::At;
use crate::store::{Error, layout};

/// An open image. A shared lock on it says that it is in use.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub file: File,
    /// Where it is; `None` for one without a name, which is gone once it is closed.
    pub path: Option<PathBuf>,
    /// Whether this call made it.
    pub made: bool,
}

/// Opens an image that [`super::Mkfs::kept`] made, with a shared lock.
///
/// # Errors
/// [`Error::Host`] for one that is gone or damaged.
pub fn open(path: &Path) -> Result<File, Error> {
    let subject = || format!("image {path:?}");
    let file = open_valid(path, &superblock::uuid(path)).at(subject)?;
    file.ok_or_else(|| Error::Host("gone or damaged (boot again, and it is made again)".into())).at(subject)
}

/// The IDs of the layers that a kept image was made of.
///
/// # Errors
/// The error of reading.
pub fn layers_of(image: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(layout::image_lock(image))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Opens a kept image with a shared lock; `None` if it is missing or not the image that its name says.
pub(super) fn open_valid(path: &Path, uuid: &str) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    lock::take(&file, Lock::Shared)?;
    // msb-store may have removed it while this process waited.
    let is_there = fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok((is_there && superblock::is_complete(&file, uuid)?).then_some(file))
}
