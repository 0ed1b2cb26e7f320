//! chown: an owner and group.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use msb::tool::interrupt;
use msb::overlay::resolve::{End, Last, Resolved};
use rustix::fs::FileType;
use serde::Deserialize;

use super::{Operation, yes};
use crate::attributes::Wanted;
use crate::lookup::stat_of;
use crate::member::{Owner, RawPath};
use crate::target::{Done, Target};

/// The members of chown.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chown {
    /// Where.
    pub path: RawPath,
    /// Owner.
    #[serde(default)]
    pub uid: Option<Owner>,
    /// Group.
    #[serde(default)]
    pub gid: Option<Owner>,
    /// All below a directory too.
    #[serde(default)]
    pub recursive: bool,
    /// Follow a symlink at the end of the path.
    #[serde(default = "yes")]
    pub follow: bool,
}

impl Operation for Chown {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let wanted = target.wanted(None, self.uid.as_ref(), self.gid.as_ref())?;
        if wanted.is_empty() {
            bail!("a member \"uid\" or \"gid\" is expected");
        }
        let at = target.look_up(&self.path, if self.follow { Last::Follow } else { Last::Keep })?;
        let found = target.found(&at, "set");
        if matches!(at.end, End::Missing(_)) {
            bail!("does not exist");
        }
        let below = self.recursive && matches!(at.end, End::Dir);
        let top = at.path();
        let mut changed = give(target, at, wanted)?;
        if below {
            changed |= give_below(target, top, wanted)?;
        }
        Ok(Done { changed, ..Done::unchanged(found) })
    }
}

/// Gives one file away, as chown(2) does it: set-id bits and capabilities of a file go. False: it is theirs already.
fn give(target: &mut Target, at: Resolved, wanted: Wanted) -> anyhow::Result<bool> {
    if wanted.is_had_by(&stat_of(&at)?) {
        return Ok(false);
    }
    target.own_any(at)?.set_owner(wanted.uid, wanted.gid)?;
    Ok(true)
}

/// By paths, not by recursion or open directories: a tree may be deeper or wider than either may grow. No symlink is followed.
fn give_below(target: &mut Target, top: PathBuf, wanted: Wanted) -> anyhow::Result<bool> {
    let mut changed = false;
    let mut pending = vec![top];
    while let Some(path) = pending.pop() {
        interrupt::check()?;
        let dir = target.trail.resolve(&target.root, &path, Last::Keep)?;
        let mut names = dir.steps.last().expect("the root stays").dir.list()?;
        names.sort_by(|one, other| one.name.cmp(&other.name));
        for listed in names {
            let path = path.join(&listed.name);
            let at = target.trail.resolve(&target.root, &path, Last::Keep).with_context(|| format!("{path:?}"))?;
            changed |= give(target, at, wanted).with_context(|| format!("{path:?}"))?;
            if listed.file_type == FileType::Directory {
                pending.push(path);
            }
        }
    }
    Ok(changed)
}
