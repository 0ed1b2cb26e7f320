//! capability: what an executable may do without being root's (capabilities(7)).

use std::ffi::OsStr;

use anyhow::{Context, bail};
use msb::overlay::resolve::{End, Last};
use msb::record::owner::Id;
use rustix::fs::FileType;
use serde::Deserialize;

use super::Operation;
use super::xattr::change_xattr;
use crate::caps::FileCaps;
use crate::lookup::kind;
use crate::member::RawPath;
use crate::target::{Done, Target};

const XATTR: &str = "security.capability";

/// The members of capability.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// Where.
    pub path: RawPath,
    /// Which, as `setcap(8)` takes them; without any, those of the file go.
    pub caps: FileCaps,
    /// The root of the user namespace in which they count, if not that of the guest.
    #[serde(default)]
    pub rootid: Option<Id>,
}

impl Operation for Capability {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        let found = target.found(&at, "set");
        match &at.end {
            End::Dir => bail!("is a directory, which has no capabilities"),
            End::Missing(_) => bail!("does not exist"),
            End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile => bail!("is {}", kind(leaf)),
            End::Leaf(..) => {}
        }
        let value = self.caps.xattr(self.rootid);
        let changed = change_xattr(target, at, OsStr::new(XATTR), value.as_deref()).context("capabilities")?;
        Ok(Done { changed, ..Done::unchanged(found) })
    }
}
