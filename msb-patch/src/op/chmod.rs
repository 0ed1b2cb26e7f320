//! chmod: a mode.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use super::Operation;
use crate::attributes::{Wanted, set_attributes};
use crate::member::{Mode, RawPath};
use crate::target::{Done, Target};

/// The members of chmod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chmod {
    /// Where.
    pub path: RawPath,
    /// Permissions, set-id and sticky bits included.
    pub mode: Mode,
}

impl Operation for Chmod {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        let found = target.found(&at, "set");
        if matches!(at.end, End::Missing(_)) {
            bail!("does not exist");
        }
        let wanted = Wanted { mode: Some(self.mode.0), ..Wanted::default() };
        if wanted.is_had_by(&crate::lookup::stat_of(&at)?) {
            return Ok(Done::unchanged(found));
        }
        let file = target.own_any(at)?;
        set_attributes(&file, &file.stat_now()?, wanted)?;
        Ok(Done::changed(found))
    }
}
