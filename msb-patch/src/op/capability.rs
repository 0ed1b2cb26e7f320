//! capability: sets or removes the capabilities of an executable (capabilities(7)).

use std::ffi::OsStr;

use anyhow::{Context, bail};
use msb::overlay::resolve::{End, Last};
use msb::record::owner::Id;
use rustix::fs::FileType;
use serde::Deserialize;

use super::xattr::change_xattr;
use crate::caps::FileCaps;
use crate::lookup::kind;
use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};

const XATTR: &str = "security.capability";

/// The members of capability.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// The path in the root.
    pub path: RawPath,
    /// The capabilities in the format of `setcap(8)`. An empty string removes those of the file.
    pub caps: FileCaps,
    /// The root user ID of the user namespace in which they are valid. Default: the guest's initial namespace.
    #[serde(default)]
    pub rootid: Option<Id>,
}

impl Operation for Capability {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        let before = target.state_before(&at, "set");
        match &at.end {
            End::Dir => bail!("is a directory, which has no capabilities"),
            End::Missing(_) => bail!("does not exist"),
            End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile => bail!("is {}", kind(leaf)),
            End::Leaf(..) => {}
        }
        let value = self.caps.xattr(self.rootid);
        let changed = change_xattr(target, at, OsStr::new(XATTR), value.as_deref()).context("capabilities")?;
        Ok(Done { changed, ..Done::unchanged(before) })
    }
}
