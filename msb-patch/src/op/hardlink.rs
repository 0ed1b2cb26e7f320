//! hardlink: another name of a file.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use super::Operation;
use crate::lookup::exists;
use crate::member::RawPath;
use crate::same::is_one_file;
use crate::target::{Done, Target};

/// The members of hardlink.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardlink {
    /// The name that the file has.
    pub target: RawPath,
    /// The name that it is given.
    pub link: RawPath,
    /// Overwrite what is there.
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
                End::Dir => bail!("target {:?}: is a directory, which has one name alone", self.target),
                _ => bail!("target {:?}: does not exist", self.target),
            }
        };
        let at = target.look_up(&self.link, Last::Keep)?;
        let found = target.found(&at, "replace");
        match &at.end {
            End::Dir => bail!("exists and is a directory (remove it first)"),
            End::Leaf(_, there) if is_one_file(there, leaf) => return Ok(Done::unchanged(found)),
            End::Leaf(_, there) if !self.replace => bail!("{}", exists(there)),
            End::Missing(_) if self.link.ends_with_slash() => bail!("a file's path does not end with \"/\""),
            _ => {}
        }
        // What is linked to must be this upper's alone: a file of a layer is copied up, and its other names stay below.
        let file = target.own(file)?;
        let at = target.parent(at)?;
        target.place_exactly(&at, |dir, name| dir.link(name, &file))?;
        Ok(Done::changed(found))
    }
}
