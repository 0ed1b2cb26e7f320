//! Renaming in the upper.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::beneath::Name;
use super::marks::{self, Marks};
use super::merged::{Merged, Node};
use super::upper::{Writer, upper_of};
use super::whiteout;

impl Writer {
    /// Renames a file of the upper: `name`, and with [`RenameFlags::EXCHANGE`] `to_name` too, have been copied up. A whiteout is left
    /// behind if a lower layer has the old name. A directory becomes opaque if a lower layer has a directory at its new name. A visible
    /// file at `to_name` is replaced; the caller has checked that a directory there is empty.
    ///
    /// # Errors
    /// EXDEV for a directory that a lower layer has too and that has no redirect ([`Writer::redirect`]), since its lower part cannot
    /// move; EEXIST with [`RenameFlags::NOREPLACE`]; EINVAL for other flags; else the error of `renameat2(2)`.
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
        if flags == RenameFlags::NOREPLACE && to.lookup(to_name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        let moved_dir = if is_plainly_a_file(from, name)? { None } else { movable_dir(from.lookup(name)?)? };
        if let Some(dir) = &moved_dir {
            hide_lower(dir, to, to_name)?;
        }
        let (source_dir, target_dir) = (upper_of(from)?, upper_of(to)?);
        if exchange {
            if let Some(dir) = movable_dir(to.lookup(to_name)?)? {
                hide_lower(&dir, from, name)?;
            }
            return source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE);
        }
        let shows_through = from.shows_through(name)?;
        if moved_dir.is_some()
            && let Some(replaced) = target_dir.entry(to_name)?
        {
            if shows_through && replaced.is_dir() {
                // After a kill between the two steps, it must not show the lower content of the old name.
                marks::set_opaque(&replaced)?;
            }
            // rename(2) does not replace a whiteout, or a directory that has whiteouts in it, with a directory, but exchanges them.
            source_dir.rename(name, target_dir, to_name, RenameFlags::EXCHANGE)?;
            let left_whiteout = whiteout::is_whiteout(replaced.stat());
            return if left_whiteout && shows_through { Ok(()) } else { self.remove(from, name) };
        }
        let flags = if shows_through { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        source_dir.rename(name, target_dir, to_name, flags)
    }

    /// Lets a directory be renamed that lower layers have too: gives it a redirect, the xattr that says where its lower part is. `way`
    /// has the directory and its name, then those above it, without the root. `stays`: whether it stays in its directory. Returns the
    /// directory with the redirect, as a lookup would.
    ///
    /// # Errors
    /// EXDEV where a redirect is not permitted, or would be longer than overlayfs writes; else the error of reading or setting it.
    pub fn redirect(&self, way: &[(Arc<Merged>, OsString)], stays: bool) -> io::Result<Merged> {
        let ((dir, name), above) = way.split_first().ok_or(Errno::BUSY)?;
        let own = redirect_of(dir)?;
        let value = match own {
            Some(redirect) if redirect.is_absolute || stays => None,
            None if stays => Some(name.clone()),
            own => Some(absolute(own, name, above)?),
        };
        if let Some(value) = value {
            if value.len() > MAX_REDIRECT {
                return Err(Errno::XDEV.into());
            }
            marks::set_redirect(&upper_of(dir)?.to_entry()?, &value).map_err(|error| {
                match Errno::from_io_error(&error) {
                    Some(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => Errno::XDEV.into(),
                    _ => error,
                }
            })?;
        }
        Ok(Merged { is_redirected: true, ..Merged::clone(dir) })
    }
}

/// The longest redirect that the kernel writes, in bytes (`redirect_max` of `fs/overlayfs/params.c`).
const MAX_REDIRECT: usize = 256;

fn redirect_of(dir: &Merged) -> io::Result<Option<marks::Redirect>> {
    match &dir.upper {
        Some(upper) if dir.is_redirected => Ok(Marks::of(&upper.to_entry()?)?.redirect),
        _ => Ok(None),
    }
}

/// The path of a directory's lower part, from the root of the lower layers.
fn absolute(own: Option<marks::Redirect>, name: &OsStr, above: &[(Arc<Merged>, OsString)]) -> io::Result<OsString> {
    let first = own.map_or_else(|| name.to_owned(), |own| own.names.into_iter().collect());
    let mut names = vec![first];
    for (dir, name) in above {
        match redirect_of(dir)? {
            Some(redirect) => {
                names.extend(redirect.names.into_iter().rev());
                if redirect.is_absolute {
                    break;
                }
            }
            None => names.push(name.clone()),
        }
    }
    Ok(names.into_iter().rev().fold(OsString::new(), |mut path, name| {
        path.push("/");
        path.push(name);
        path
    }))
}

/// Whether the upper has a visible file at `name` that is no directory. False where xattrs decide that.
fn is_plainly_a_file(dir: &Merged, name: Name<'_>) -> io::Result<bool> {
    let Some(stat) = upper_of(dir)?.stat_of(name)? else { return Ok(false) };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => false,
        FileType::RegularFile => stat.st_size > 0,
        _ => !whiteout::is_whiteout(&stat),
    })
}

fn movable_dir(node: Option<Node>) -> io::Result<Option<Merged>> {
    match node {
        None => Err(Errno::NOENT.into()),
        Some(Node::Dir(dir)) if !dir.lower.is_empty() && !dir.is_redirected => Err(Errno::XDEV.into()),
        Some(Node::Dir(dir)) => Ok(Some(dir)),
        Some(Node::Leaf(_)) => Ok(None),
    }
}

/// Makes a directory of the upper opaque, before it is renamed to `name`, if a lower layer has a directory there. A redirect leads past
/// that one.
fn hide_lower(dir: &Merged, parent: &Merged, name: Name<'_>) -> io::Result<()> {
    if dir.lower.is_empty() && matches!(parent.lookup_lower(name)?, Some(Node::Dir(_))) {
        whiteout::make_opaque(upper_of(dir)?)?;
    }
    Ok(())
}
