//! Changes to the writable layer as a live mount makes them: one name at a time, seen at once, other names changing
//! meanwhile. The rules are [`super::upper`]'s; here is what a mount asks for besides: a copy-up in two steps, files made
//! where a directory's default ACL counts, and renames.

use std::ffi::OsString;
use std::io;

use rustix::fs::{Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Dir, Entry, Name};
use super::upper::{DEFAULT_ACL, Writer, keeping_times, upper_of};
use super::{Leaf, Merged, Node, whiteout};

/// A copy that waits in the work directory. Dropped without [`Prepared::put`], its name goes and it lives on only as
/// long as somebody holds it open.
#[derive(Debug)]
pub struct Prepared<'a> {
    writer: &'a Writer,
    name: Option<OsString>,
}

impl Prepared<'_> {
    /// Puts the copy at `name`, the directory's times kept.
    ///
    /// # Errors
    /// What renaming says.
    pub fn put(mut self, parent: &Dir, name: Name<'_>) -> io::Result<()> {
        if let Some(aside) = self.name.take() {
            let put = keeping_times(parent, || {
                self.writer.work.rename(Name::new(&aside)?, parent, name, RenameFlags::empty())
            });
            if put.is_err() {
                self.name = Some(aside);
            }
            put?;
        }
        Ok(())
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(aside) = self.name.take()
            && let Ok(aside) = Name::new(&aside)
        {
            let _ = self.writer.work.unlink(aside);
        }
    }
}

impl Writer {
    /// The first half of [`Writer::copy_up`]: copies a file where nobody sees it yet.
    ///
    /// # Errors
    /// What copying says: ENOSPC.
    pub fn prepare_copy(&self, from: &Leaf, length: u64) -> io::Result<(Entry, Prepared<'_>)> {
        let aside = self.fresh_name();
        let prepared = Prepared { writer: self, name: Some(aside.clone()) };
        let copy = self.copy_leaf(from, &self.work, Name::new(&aside)?, length)?;
        Ok((copy, prepared))
    }

    /// Makes something new with `make`, which may be called twice: at `name` itself, and where a whiteout sits there,
    /// aside, to replace it.
    ///
    /// # Errors
    /// What `make` says: EEXIST where something visible is there.
    pub fn make<T>(
        &self,
        parent: &Merged,
        name: Name<'_>,
        make: impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let upper = upper_of(parent)?;
        match make(upper, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_whited_out(upper, name)? => {
                self.place(upper, name, |work, aside| self.inheriting(upper, work, aside, &make))
            }
            other => other,
        }
    }

    /// Makes a directory of `mode`, as [`Self::make`] does; over a whiteout it is opaque where a lower layer has one.
    ///
    /// # Errors
    /// What `mkdir(2)` says: EEXIST.
    pub fn make_dir(&self, parent: &Merged, name: Name<'_>, mode: Mode) -> io::Result<()> {
        let upper = upper_of(parent)?;
        match rustix::fs::mkdirat(upper, name.as_os_str(), mode) {
            Err(Errno::EXIST) if is_whited_out(upper, name)? => {
                let hides = matches!(parent.lookup_lower(name)?, Some(Node::Dir(_)));
                self.place(upper, name, |work, aside| {
                    let dir =
                        self.inheriting(upper, work, aside, &|dir: &Dir, name: Name<'_>| dir.mkdir(name, mode))?;
                    if hides { whiteout::make_opaque(&dir) } else { Ok(()) }
                })
            }
            other => Ok(other?),
        }
    }

    /// Makes a file in the work directory with what it would inherit in `parent`: the file system itself applies a
    /// default ACL, so the file is born in a directory that has it.
    fn inheriting<T>(
        &self,
        parent: &Dir,
        work: &Dir,
        aside: Name<'_>,
        make: &impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let Ok(acl) = parent.to_entry()?.xattr(DEFAULT_ACL.as_ref()) else { return make(work, aside) };
        let cradle_name = self.fresh_name();
        let cradle_name = Name::new(&cradle_name)?;
        let cradle = work.mkdir(cradle_name, Mode::RWXU)?;
        let made = (|| {
            cradle.to_entry()?.set_xattr(DEFAULT_ACL.as_ref(), &acl, XattrFlags::empty())?;
            let made = make(&cradle, aside)?;
            cradle.rename(aside, work, aside, RenameFlags::empty())?;
            Ok(made)
        })();
        work.remove_tree(cradle_name)?;
        made
    }

    /// Renames what is in the upper already: `name`, and for [`RenameFlags::EXCHANGE`] `to_name` as well. A whiteout
    /// stays where a lower layer would show through; a directory that comes to lie on a lower one becomes opaque.
    /// What is visible at `to_name` is replaced; that a directory there is empty is for the caller to know.
    ///
    /// # Errors
    /// EXDEV for a directory with parts in lower layers, which cannot follow; EEXIST for
    /// [`RenameFlags::NOREPLACE`]; EINVAL for other flags; else what renaming says.
    pub fn rename(
        &self,
        from: &Merged,
        name: Name<'_>,
        to: &Merged,
        to_name: Name<'_>,
        flags: RenameFlags,
    ) -> io::Result<()> {
        let exchange = flags == RenameFlags::EXCHANGE;
        if !exchange && !flags.difference(RenameFlags::NOREPLACE).is_empty() {
            return Err(Errno::INVAL.into());
        }
        let target = to.lookup(to_name)?;
        if flags == RenameFlags::NOREPLACE && target.is_some() {
            return Err(Errno::EXIST.into());
        }
        let moved_dir = movable_dir(from.lookup(name)?)?;
        if let Some(dir) = &moved_dir {
            cover(dir, to, to_name)?;
        }
        let (source_dir, target_dir) = (upper_of(from)?, upper_of(to)?);
        if exchange {
            if let Some(dir) = movable_dir(target)? {
                cover(&dir, from, name)?;
            }
            return source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE);
        }
        let shows_through = from.lookup_lower(name)?.is_some();
        let replaced = target_dir.entry(to_name)?;
        if moved_dir.is_some() && replaced.is_some() {
            // Neither a whiteout nor a directory with whiteouts in it gives way to a directory, but changes places.
            source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE)?;
            let left_whiteout = replaced.is_some_and(|entry| whiteout::is_whiteout(entry.stat()));
            return if left_whiteout && shows_through { Ok(()) } else { self.remove(from, name) };
        }
        let flags = if shows_through { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        source_dir.rename(name, target_dir, to_name, flags)
    }
}

fn is_whited_out(upper: &Dir, name: Name<'_>) -> io::Result<bool> {
    upper.entry(name)?.map_or(Ok(false), |entry| whiteout::is_either_whiteout(&entry))
}

fn movable_dir(node: Option<Node>) -> io::Result<Option<Merged>> {
    match node {
        None => Err(Errno::NOENT.into()),
        Some(Node::Dir(dir)) if !dir.lower.is_empty() => Err(Errno::XDEV.into()),
        Some(Node::Dir(dir)) => Ok(Some(dir)),
        Some(Node::Leaf(_)) => Ok(None),
    }
}

/// Makes a directory of the upper hide what is at `name` in the lower layers, before it comes there.
fn cover(dir: &Merged, parent: &Merged, name: Name<'_>) -> io::Result<()> {
    if matches!(parent.lookup_lower(name)?, Some(Node::Dir(_))) {
        whiteout::make_opaque(upper_of(dir)?)?;
    }
    Ok(())
}
