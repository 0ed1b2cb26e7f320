//! Copy-up: a file of a lower layer becomes a file of the upper, before it is changed.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, CAPABILITY, OverlayXattrs, copy_attributes, copy_xattrs_with, keeping_times};
use super::beneath::{Dir, Entry, Name, times_of};
use super::copy_data::copy_data;
use super::marks;
use super::merged::{Layer, Leaf};
use super::resolve::Step;
use super::upper::{Writer, upper_of};
use crate::interrupt;

/// A length that means all of a file.
pub const WHOLE: u64 = u64::MAX;

impl Writer {
    /// Copies a directory of a lower layer up, without its entries: owner, mode, xattrs and times. The parent keeps its times. If two
    /// threads copy the same directory up, one of them does, and both get it.
    ///
    /// # Errors
    /// The error of making it or of setting attributes.
    pub fn copy_up_dir(&self, parent: &Dir, name: Name<'_>, from: &Entry) -> io::Result<Dir> {
        if let Some(existing) = parent.entry(name)?
            && existing.is_dir()
        {
            return existing.to_dir();
        }
        keeping_times(parent, || {
            self.replace(parent, name, |work, staged| {
                let dir = work.mkdir(staged, Mode::from_raw_mode(0o700))?;
                copy_attributes(from, &dir.to_entry()?)?;
                Ok(dir)
            })
        })
    }

    /// Copies a file up, with its first `length` bytes ([`WHOLE`] for all): data, owner, mode, xattrs and times. The parent keeps its
    /// times. Other names of the file still lead to the lower file, as in an overlayfs without `index=on`.
    ///
    /// # Errors
    /// The error of copying: ENOSPC. The upper is unchanged then.
    pub fn copy_up(&self, parent: &Dir, name: Name<'_>, from: &Leaf, length: u64) -> io::Result<Entry> {
        keeping_times(parent, || self.replace(parent, name, |work, staged| self.copy_leaf(from, work, staged, length)))
    }

    /// Copies a file that is not a directory, with its attributes, to a free name in any directory of the upper.
    ///
    /// # Errors
    /// The error of copying.
    pub fn copy_leaf(&self, from: &Leaf, to: &Dir, name: Name<'_>, length: u64) -> io::Result<Entry> {
        let xattrs = if from.layer == Layer::Upper { OverlayXattrs::KeepExceptMetacopy } else { OverlayXattrs::Drop };
        let attributes = Attributes::of(from.entry.stat());
        let copy = copy_file(&from.entry, from.data(), to, name, length, &attributes, xattrs)?;
        if self.durable && copy.file_type() == FileType::RegularFile {
            rustix::fs::fdatasync(&copy)?;
        }
        Ok(copy)
    }

    /// Copies the first `length` bytes of data into a metacopy of the upper, in place, so that all its names have them. It stays a
    /// metacopy until the data is complete.
    ///
    /// # Errors
    /// The error of copying: ENOSPC.
    pub fn copy_up_data(&self, leaf: &Leaf, length: u64) -> io::Result<Entry> {
        let before = leaf.entry.stat_now()?;
        let capability = leaf.entry.xattr(CAPABILITY.as_ref()).ok();
        let file = leaf.entry.open(OFlags::RDWR)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let length = length.min(size);
        if length > 0 {
            copy_data(&leaf.data().open_to_read()?, &file, length)?;
        }
        if self.durable {
            rustix::fs::fdatasync(&file)?;
        }
        marks::remove_metacopy(&leaf.entry)?;
        file.set_len(length)?;
        if let Some(capability) = capability {
            leaf.entry.set_xattr(CAPABILITY.as_ref(), &capability, XattrFlags::empty())?;
        }
        leaf.entry.set_times(&times_of(&before))?;
        Entry::of_open(file)
    }

    /// Copies every directory of `steps` up that is not in the upper yet, so that files can be made in the last one.
    ///
    /// # Errors
    /// As [`Self::copy_up_dir`].
    pub fn copy_up_steps(&self, steps: &mut Arc<Vec<Step>>) -> io::Result<()> {
        let steps = Arc::make_mut(steps);
        for place in 1..steps.len() {
            let (before, rest) = steps.split_at_mut(place);
            let step = &mut rest[0];
            if step.dir.upper.is_none() {
                let parent = upper_of(&before[place - 1].dir)?;
                let from = step.dir.top().0.to_entry()?;
                step.dir.upper = Some(Arc::new(self.copy_up_dir(parent, Name::new(&step.name)?, &from)?));
            }
        }
        Ok(())
    }

    /// The first half of [`Writer::copy_up`]: copies a file into the work directory, so that names can change meanwhile.
    ///
    /// # Errors
    /// The error of copying: ENOSPC.
    pub fn prepare_copy(&self, from: &Leaf, length: u64) -> io::Result<(Entry, Prepared<'_>)> {
        let staged = self.fresh_name();
        let prepared = Prepared { writer: self, name: Some(staged.clone()) };
        let copy = self.copy_leaf(from, &self.work, Name::new(&staged)?, length)?;
        Ok((copy, prepared))
    }
}

/// A copy in the work directory that is not visible yet. If it is dropped without [`Prepared::put`], its name is removed, and the file
/// lives only as long as it is open.
#[derive(Debug)]
pub struct Prepared<'a> {
    writer: &'a Writer,
    name: Option<OsString>,
}

impl Prepared<'_> {
    /// Renames the copy to `name`. The directory keeps its times.
    ///
    /// # Errors
    /// The error of renaming.
    pub fn put(mut self, parent: &Dir, name: Name<'_>) -> io::Result<()> {
        if let Some(staged) = self.name.take() {
            let put = keeping_times(parent, || {
                self.writer.work.rename(Name::new(&staged)?, parent, name, RenameFlags::empty())
            });
            if put.is_err() {
                self.name = Some(staged);
            }
            put?;
        }
        Ok(())
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(staged) = self.name.take()
            && let Ok(staged) = Name::new(&staged)
        {
            let _ = self.writer.work.unlink(staged);
        }
    }
}

/// Copies a file that is not a directory to a free name, with its xattrs and other attributes than its own. A regular file is cut off
/// after `length` bytes.
///
/// # Errors
/// The error of copying.
pub fn copy_leaf_as(from: &Entry, to: &Dir, name: Name<'_>, length: u64, attributes: &Attributes) -> io::Result<Entry> {
    copy_file(from, from, to, name, length, attributes, OverlayXattrs::Drop)
}

/// Copies a file of an upper for another upper that takes its place. A metacopy stays one.
///
/// # Errors
/// The error of copying.
pub fn clone_leaf(from: &Entry, to: &Dir, name: Name<'_>) -> io::Result<Entry> {
    copy_file(from, from, to, name, WHOLE, &Attributes::of(from.stat()), OverlayXattrs::Keep)
}

/// Copies a file; `data` is the file that has its data, which is another one for a metacopy.
fn copy_file(
    from: &Entry,
    data: &Entry,
    to: &Dir,
    name: Name<'_>,
    length: u64,
    attributes: &Attributes,
    xattrs: OverlayXattrs,
) -> io::Result<Entry> {
    interrupt::check()?;
    let stat = from.stat();
    if from.file_type() == FileType::RegularFile {
        let file = to.create(name, Mode::from_raw_mode(attributes.mode & 0o777))?;
        let data = data.open_to_read()?;
        if length > 0 && stat.st_size > 0 {
            copy_data(&data, &file, length.min(stat.st_size as u64))?;
        }
        let copy = Entry::of_open(file)?;
        attributes.apply(&copy, copy.stat(), || copy_xattrs_with(from, &copy, xattrs, |_| true))?;
        return Ok(copy);
    }
    match from.file_type() {
        FileType::Symlink => to.symlink(name, &from.read_link()?)?,
        FileType::Directory => return Err(Errno::ISDIR.into()),
        special => to.mknod(name, special, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    let copy = to.entry(name)?.ok_or(Errno::NOENT)?;
    attributes.apply(&copy, copy.stat(), || copy_xattrs_with(from, &copy, xattrs, |_| true))?;
    Ok(copy)
}
