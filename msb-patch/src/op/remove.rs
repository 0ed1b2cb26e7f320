//! remove: a file, or a directory with all below it.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use serde::Deserialize;

use super::Operation;
use crate::member::RawPath;
use crate::target::{Done, Target};

/// The members of remove.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Where.
    pub path: RawPath,
}

impl Operation for Remove {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let Some(at) = target.look_up_any(&self.path, Last::Keep)? else {
            return Ok(Done::unchanged(target.found_nothing(&self.path)));
        };
        let found = target.found(&at, "remove");
        match &at.end {
            End::Missing(_) => return Ok(Done::unchanged(found)),
            End::Dir if at.steps.len() == 1 => bail!("is the root, which stays"),
            _ => {}
        }
        target.remove(at)?;
        Ok(Done::changed(found))
    }
}
