//! mkdir: creates a directory and its parents, or sets the attributes of one that exists.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};

use crate::lookup::kind;
use crate::member::{RawPath, members_with_attributes};
use crate::operation::Operation;
use crate::target::{Done, Target};

members_with_attributes! {
/// The members of mkdir.
pub struct Mkdir {
    /// The path in the root.
    pub path: RawPath,
}
}

impl Operation for Mkdir {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        if let End::Leaf(_, leaf) = &at.end {
            bail!("exists{} and is {}", target.whereabouts(leaf), kind(leaf));
        }
        let before = target.state_before(&at, "set");
        let requested = self.attributes(target)?;
        if let (End::Dir, Some(step)) = (&at.end, at.steps.last())
            && (requested.is_empty() || requested.match_stat(&step.dir.top().0.stat()?))
        {
            return Ok(Done::unchanged(before));
        }
        target.make_dirs(at, requested)?;
        Ok(Done::changed(before))
    }
}
