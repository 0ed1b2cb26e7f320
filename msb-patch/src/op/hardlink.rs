//! hardlink: gives a file another name.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use crate::compare::is_one_file;
use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};

/// The members of hardlink.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardlink {
    /// The existing name.
    pub target: RawPath,
    /// The new name.
    pub link: RawPath,
    /// Overwrite an existing file.
    #[serde(default)]
    pub replace: bool,
}

impl Operation for Hardlink {
    fn path(&self) -> &OsStr {
        &self.link
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let of_target = |error: anyhow::Error| error.context(format!("target {:?}", self.target));
        let file = target.look_up(&self.target, Last::Keep).map_err(of_target)?;
        let End::Leaf(_, leaf) = &file.end else {
            match file.end {
                End::Dir => bail!("target {:?}: is a directory, and a directory has only one name", self.target),
                _ => bail!("target {:?}: does not exist", self.target),
            }
        };
        let at = target.look_up(&self.link, Last::Keep)?;
        let before = target.state_before(&at, "replace");
        match &at.end {
            End::Dir => bail!("exists and is a directory (remove it first)"),
            End::Leaf(_, there) if is_one_file(there, leaf) => return Ok(Done::unchanged(before)),
            End::Leaf(_, there) if !self.replace => bail!("{}", target.exists(there)),
            End::Missing(_) if self.link.ends_with_slash() => bail!("a file's path does not end with \"/\""),
            _ => {}
        }
        // A file of a layer is copied up first. Its other names in the layer are not linked to the copy.
        let file = target.writable_file(file)?;
        let at = target.parent(at)?;
        target.create_exactly(&at, |dir, name| dir.link(name, &file))?;
        Ok(Done::changed(before))
    }
}
