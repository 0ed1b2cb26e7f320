//! chown: sets an owner and group.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use msb::overlay::resolve::{End, Last, Resolved};
use msb::tool::interrupt;
use rustix::fs::FileType;
use serde::Deserialize;

use crate::attributes::RequestedAttributes;
use crate::lookup::stat_of;
use crate::member::{Owner, RawPath};
use crate::operation::{Operation, yes};
use crate::target::{Done, Target};

/// The members of chown.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chown {
    /// The path in the root.
    pub path: RawPath,
    /// The owner.
    #[serde(default)]
    pub uid: Option<Owner>,
    /// The group.
    #[serde(default)]
    pub gid: Option<Owner>,
    /// Change everything below a directory too.
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
        let requested = target.requested_attributes(None, self.uid.as_ref(), self.gid.as_ref())?;
        if requested.is_empty() {
            bail!("a member \"uid\" or \"gid\" is expected");
        }
        let at = target.look_up(&self.path, if self.follow { Last::Follow } else { Last::Keep })?;
        let before = target.state_before(&at, "set");
        if matches!(at.end, End::Missing(_)) {
            bail!("does not exist");
        }
        let is_recursive = self.recursive && matches!(at.end, End::Dir);
        let top = at.path();
        let mut changed = set_owner(target, at, requested)?;
        if is_recursive {
            changed |= set_owner_below(target, top, requested)?;
        }
        Ok(Done { changed, ..Done::unchanged(before) })
    }
}

/// Sets the owner of one file. As chown(2) does, this clears set-id bits and capabilities. False: nothing changes.
fn set_owner(target: &mut Target, at: Resolved, requested: RequestedAttributes) -> anyhow::Result<bool> {
    if requested.match_stat(&stat_of(&at)?) {
        return Ok(false);
    }
    target.writable_entry(at)?.set_owner(requested.uid, requested.gid)?;
    Ok(true)
}

/// Sets the owner of everything below a directory. No symlink is followed. The pending directories are paths, not open descriptors or
/// recursive calls, because a tree may be deeper or wider than those allow.
fn set_owner_below(target: &mut Target, top: PathBuf, requested: RequestedAttributes) -> anyhow::Result<bool> {
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
            changed |= set_owner(target, at, requested).with_context(|| format!("{path:?}"))?;
            if listed.file_type == FileType::Directory {
                pending.push(path);
            }
        }
    }
    Ok(changed)
}
