//! Where a path of an operation leads, and how messages call what is there.

use std::io;
use std::path::Path;

use anyhow::bail;
use msb::overlay::resolve::{End, Error, Last, Resolved};
use msb::overlay::{Layer, Leaf};
use rustix::fs::{FileType, Stat};

use crate::member::RawPath;
use crate::target::Target;

impl Target {
    /// Follows a path. One that ends with a slash names a directory, or nothing yet.
    ///
    /// # Errors
    /// A message without the path.
    pub(crate) fn look_up(&mut self, path: &RawPath, last: Last) -> anyhow::Result<Resolved> {
        let at = self.trail.resolve(&self.root, Path::new(&**path), last)?;
        if path.ends_with_slash() && matches!(at.end, End::Leaf(..)) {
            bail!("{:?} is not a directory", at.path());
        }
        Ok(at)
    }

    /// The same, and `None` for a path that nothing can be at, as below a file.
    ///
    /// # Errors
    /// As [`Self::look_up`].
    pub(crate) fn look_up_any(&mut self, path: &RawPath, last: Last) -> anyhow::Result<Option<Resolved>> {
        match self.look_up(path, last) {
            Err(error) => match error.downcast_ref() {
                Some(Error::NotDirectory(_) | Error::Missing(_)) => Ok(None),
                _ => Err(error),
            },
            found => found.map(Some),
        }
    }
}

/// What `stat(2)` says of what is at the end of a way that is not missing.
pub(crate) fn stat_of(at: &Resolved) -> io::Result<Stat> {
    match &at.end {
        End::Leaf(_, leaf) => leaf.entry.stat_now(),
        _ => at.steps.last().expect("the root stays").dir.top().0.stat(),
    }
}

/// That something is there and stays.
pub(crate) fn exists(leaf: &Leaf) -> String {
    format!("exists{} (set \"replace\": true to overwrite it)", whereabouts(leaf))
}

/// Where something is, behind "exists".
pub(crate) fn whereabouts(leaf: &Leaf) -> &'static str {
    match leaf.layer {
        Layer::Lower(_) => " in the image",
        Layer::Upper => "",
    }
}

/// What something is, if it is no directory.
pub(crate) fn kind(leaf: &Leaf) -> &'static str {
    match leaf.entry.file_type() {
        FileType::RegularFile => "a file",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}
