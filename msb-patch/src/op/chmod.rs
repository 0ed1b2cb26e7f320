//! chmod: sets a mode.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use crate::attributes::{RequestedAttributes, set_attributes};
use crate::member::{Mode, RawPath};
use crate::operation::Operation;
use crate::target::{Done, Target};

/// The members of chmod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chmod {
    /// The path in the root.
    pub path: RawPath,
    /// The permission bits, with set-id and sticky bits.
    pub mode: Mode,
}

impl Operation for Chmod {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        let before = target.state_before(&at, "set");
        if matches!(at.end, End::Missing(_)) {
            bail!("does not exist");
        }
        let requested = RequestedAttributes { mode: Some(self.mode.0), ..RequestedAttributes::default() };
        if requested.match_stat(&crate::lookup::stat_of(&at)?) {
            return Ok(Done::unchanged(before));
        }
        let file = target.writable_entry(at)?;
        set_attributes(&file, &file.stat_now()?, requested)?;
        Ok(Done::changed(before))
    }
}
