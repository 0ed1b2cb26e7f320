//! symlink: creates a symlink.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, bail};
use msb::overlay::beneath::Name;
use msb::overlay::resolve::{End, Last};
use msb::overlay::upper::upper_of;
use rustix::fs::FileType;
use serde::Deserialize;

use crate::attributes::{RequestedAttributes, set_attributes};
use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};

/// The members of symlink.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// The path that it contains.
    pub target: RawPath,
    /// The path of the symlink.
    pub link: RawPath,
    /// Overwrite an existing file.
    #[serde(default)]
    pub replace: bool,
}

impl Operation for Symlink {
    fn path(&self) -> &OsStr {
        &self.link
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        if self.target.is_empty() {
            bail!("the target is empty");
        }
        if self.target.as_bytes().contains(&0) {
            bail!("the target holds a NUL");
        }
        let at = target.look_up(&self.link, Last::Keep)?;
        let before = target.state_before(&at, "replace");
        match &at.end {
            End::Dir => bail!("exists and is a directory (remove it first)"),
            End::Leaf(_, leaf)
                if leaf.entry.file_type() == FileType::Symlink && leaf.entry.read_link()? == *self.target =>
            {
                return Ok(Done::unchanged(before));
            }
            End::Leaf(_, leaf) if !self.replace => bail!("{}", target.exists(leaf)),
            End::Missing(_) if self.link.ends_with_slash() => bail!("a symlink's path does not end with \"/\""),
            _ => {}
        }
        let at = target.parent(at)?;
        target.create(&at, |dir, name| dir.symlink(name, &self.target))?;
        let made = upper_of(&at.parent)?.entry(Name::new(&at.name)?)?.context("the symlink is gone")?;
        let owner = RequestedAttributes { mode: None, ..target.new_attributes(RequestedAttributes::default(), 0) };
        set_attributes(&made, made.stat(), owner)?;
        if target.epoch.is_some() {
            made.set_times(&target.now())?;
        }
        Ok(Done::changed(before))
    }
}
