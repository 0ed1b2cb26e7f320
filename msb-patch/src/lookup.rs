//! Resolving the path of an operation, and describing what is there in messages.

use std::io;
use std::path::Path;

use anyhow::bail;
use msb::overlay::resolve::{End, Error, Last, Resolved};
use msb::overlay::{Layer, Leaf};
use rustix::fs::{FileType, Stat};

use crate::member::RawPath;
use crate::target::Target;

impl Target {
    /// Resolves a path. With a slash at its end, it has to be a directory or missing.
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

    /// The same, with `None` for a path at which nothing can exist, such as one below a file.
    ///
    /// # Errors
    /// As [`Self::look_up`].
    pub(crate) fn look_up_optional(&mut self, path: &RawPath, last: Last) -> anyhow::Result<Option<Resolved>> {
        match self.look_up(path, last) {
            Err(error) => match error.downcast_ref() {
                Some(Error::NotDirectory(_) | Error::Missing(_)) => Ok(None),
                _ => Err(error),
            },
            found => found.map(Some),
        }
    }
}

impl Target {
    /// The message that something exists.
    pub(crate) fn exists(&self, leaf: &Leaf) -> String {
        format!("exists{} (set \"replace\": true to overwrite it)", self.whereabouts(leaf))
    }

    /// Where something is, to follow "exists".
    pub(crate) fn whereabouts(&self, leaf: &Leaf) -> &'static str {
        match self.shown_layer(leaf.layer) {
            Layer::Lower(_) => " in the image",
            Layer::Upper => "",
        }
    }
}

/// The `stat(2)` of what is at a resolved path.
pub(crate) fn stat_of(at: &Resolved) -> io::Result<Stat> {
    match &at.end {
        End::Leaf(_, leaf) => leaf.entry.stat_now(),
        _ => at.steps.last().expect("the root stays").dir.top().0.stat(),
    }
}

/// What kind of file something is.
pub(crate) fn kind(leaf: &Leaf) -> &'static str {
    match leaf.entry.file_type() {
        FileType::RegularFile => "a file",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}
