//! xattr: sets or removes an extended attribute.

use std::ffi::OsStr;
use std::io;

use anyhow::{Context, bail};
use msb::overlay::beneath::Entry;
use msb::overlay::resolve::{End, Last};
use msb::overlay::whiteout::is_private_xattr;
use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::member::{Base64, RawPath};
use crate::operation::{Operation, yes};
use crate::target::{Done, Target};

/// The longest name, in bytes (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;
/// The longest value, in bytes (`XATTR_SIZE_MAX`).
const VALUE_MAX: usize = 1 << 16;

/// The members of xattr.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xattr {
    /// The path in the root.
    pub path: RawPath,
    /// The name of the attribute, with its namespace.
    pub name: String,
    /// The value as text.
    #[serde(default)]
    pub value: Option<String>,
    /// The value as bytes.
    #[serde(default)]
    pub value_base64: Option<Base64>,
    /// Remove the attribute instead.
    #[serde(default)]
    pub remove: bool,
    /// Follow a symlink at the end of the path.
    #[serde(default = "yes")]
    pub follow: bool,
}

impl Operation for Xattr {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let value = self.checked_value()?;
        let at = target.look_up(&self.path, if self.follow { Last::Follow } else { Last::Keep })?;
        let before = target.state_before(&at, "set");
        match &at.end {
            End::Missing(_) => bail!("does not exist"),
            End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile && self.name.starts_with("user.") => {
                bail!("xattr {:?}: only files and directories can have user xattrs (xattr(7))", self.name)
            }
            _ => {}
        }
        change_xattr(target, at, self.name.as_ref(), value)
            .with_context(|| format!("xattr {:?}", self.name))
            .map(|changed| Done { changed, ..Done::unchanged(before) })
    }
}

impl Xattr {
    /// The value, checked. `None`: the attribute is removed.
    fn checked_value(&self) -> anyhow::Result<Option<&[u8]>> {
        let name = &self.name;
        match name.split_once('.') {
            Some((_, rest)) if !rest.is_empty() && name.len() <= NAME_MAX && !name.contains('\0') => {}
            _ => bail!("xattr {name:?}: not the name of an xattr (such as \"user.note\", at most {NAME_MAX} bytes)"),
        }
        if is_private_xattr(name.as_ref()) {
            bail!("xattr {name:?}: reserved for overlayfs");
        }
        let value = match (&self.value, &self.value_base64, self.remove) {
            (Some(text), None, false) => Some(text.as_bytes()),
            (None, Some(Base64(bytes)), false) => Some(&bytes[..]),
            (None, None, true) => None,
            _ => bail!("one of the members \"value\", \"value_base64\" and \"remove\" is expected"),
        };
        if value.is_some_and(|value| value.len() > VALUE_MAX) {
            bail!("xattr {name:?}: the value is longer than {VALUE_MAX} bytes");
        }
        Ok(value)
    }
}

/// Sets or removes an xattr of the file at a resolved path. False: nothing changes.
pub(super) fn change_xattr(
    target: &mut Target,
    at: msb::overlay::resolve::Resolved,
    name: &OsStr,
    value: Option<&[u8]>,
) -> anyhow::Result<bool> {
    let there = match &at.end {
        End::Leaf(_, leaf) => xattr_of(&leaf.entry, name)?,
        _ => xattr_of(&at.steps.last().expect("the root stays").dir.top().0.to_entry()?, name)?,
    };
    if there.as_deref() == value {
        return Ok(false);
    }
    let file = target.writable_entry(at)?;
    match value {
        Some(value) => file.set_xattr(name, value, XattrFlags::empty())?,
        None => file.remove_xattr(name)?,
    }
    Ok(true)
}

/// The value of an xattr, if the file has it.
fn xattr_of(entry: &Entry, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    match entry.xattr(name) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NODATA | Errno::NOTSUP)) => Ok(None),
        other => other.map(Some),
    }
}
