//! Renaming in the upper.

use std::io;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::beneath::Name;
use super::merged::{Merged, Node};
use super::upper::{Writer, upper_of};
use super::whiteout;

impl Writer {
    /// Renames a file of the upper: `name`, and with [`RenameFlags::EXCHANGE`] `to_name` too, have been copied up. A whiteout is left
    /// behind if a lower layer has the old name. A directory becomes opaque if a lower layer has a directory at its new name. A visible
    /// file at `to_name` is replaced; the caller has checked that a directory there is empty.
    ///
    /// # Errors
    /// EXDEV for a directory that a lower layer has too, since its lower part cannot move; EEXIST with [`RenameFlags::NOREPLACE`];
    /// EINVAL for other flags; else the error of `renameat2(2)`.
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
            hide_lower(dir, to, to_name)?;
        }
        let (source_dir, target_dir) = (upper_of(from)?, upper_of(to)?);
        if exchange {
            if let Some(dir) = movable_dir(target)? {
                hide_lower(&dir, from, name)?;
            }
            return source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE);
        }
        let shows_through = from.lookup_lower(name)?.is_some();
        let replaced = target_dir.entry(to_name)?;
        if moved_dir.is_some() && replaced.is_some() {
            // rename(2) does not replace a whiteout, or a directory that has whiteouts in it, with a directory, but exchanges them.
            source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE)?;
            let left_whiteout = replaced.is_some_and(|entry| whiteout::is_whiteout(entry.stat()));
            return if left_whiteout && shows_through { Ok(()) } else { self.remove(from, name) };
        }
        let flags = if shows_through { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        source_dir.rename(name, target_dir, to_name, flags)
    }
}

fn movable_dir(node: Option<Node>) -> io::Result<Option<Merged>> {
    match node {
        None => Err(Errno::NOENT.into()),
        Some(Node::Dir(dir)) if !dir.lower.is_empty() => Err(Errno::XDEV.into()),
        Some(Node::Dir(dir)) => Ok(Some(dir)),
        Some(Node::Leaf(_)) => Ok(None),
    }
}

/// Makes a directory of the upper opaque, before it is renamed to `name`, if a lower layer has a directory there.
fn hide_lower(dir: &Merged, parent: &Merged, name: Name<'_>) -> io::Result<()> {
    if matches!(parent.lookup_lower(name)?, Some(Node::Dir(_))) {
        whiteout::make_opaque(upper_of(dir)?)?;
    }
    Ok(())
}
