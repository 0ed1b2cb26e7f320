//! remove: removes a file or a directory tree.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};

/// The members of remove.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The path in the root.
    pub path: RawPath,
}

impl Operation for Remove {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let Some(at) = target.look_up_optional(&self.path, Last::Keep)? else {
            return Ok(Done::unchanged(target.no_state(&self.path)));
        };
        let before = target.state_before(&at, "remove");
        match &at.end {
            End::Missing(_) => return Ok(Done::unchanged(before)),
            End::Dir if at.steps.len() == 1 => bail!("is the root, which stays"),
            _ => {}
        }
        target.remove(at)?;
        Ok(Done::changed(before))
    }
}
