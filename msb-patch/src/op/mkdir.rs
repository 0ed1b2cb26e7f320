//! mkdir: a directory and its parents.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use super::Operation;
use crate::lookup::{kind, whereabouts};
use crate::member::{Mode, Owner, RawPath};
use crate::target::{Done, Target};

/// The members of mkdir.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mkdir {
    /// Where.
    pub path: RawPath,
    /// Permissions, also of a directory that is there.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Owner, likewise.
    #[serde(default)]
    pub uid: Option<Owner>,
    /// Group, likewise.
    #[serde(default)]
    pub gid: Option<Owner>,
}

impl Operation for Mkdir {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        if let End::Leaf(_, leaf) = &at.end {
            bail!("exists{} and is {}", whereabouts(leaf), kind(leaf));
        }
        let found = target.found(&at, "set");
        let wanted = target.wanted(self.mode, self.uid.as_ref(), self.gid.as_ref())?;
        if let (End::Dir, Some(step)) = (&at.end, at.steps.last())
            && (wanted.is_empty() || wanted.is_had_by(&step.dir.top().0.stat()?))
        {
            return Ok(Done::unchanged(found));
        }
        target.make_dirs(at, wanted)?;
        Ok(Done::changed(found))
    }
}
