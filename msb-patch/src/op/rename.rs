//! rename: moves a file or directory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::attributes::{copy_attributes, remove_acls};
use msb::overlay::beneath::{Dir, Name, times_of};
use msb::overlay::resolve::{End, Last, Resolved};
use msb::overlay::upper::upper_of;
use msb::overlay::{Layer, Merged, Node};
use msb::tool::interrupt;
use rustix::fs::{Mode, RenameFlags};
use serde::Deserialize;

use crate::compare::{are_leaves_equal, are_trees_equal, descend};
use crate::lookup::kind;
use crate::member::RawPath;
use crate::operation::Operation;
use crate::path_state::PathState;
use crate::target::{Destination, Done, Target};

/// The members of rename.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The old path.
    pub from: RawPath,
    /// The new path.
    pub to: RawPath,
    /// Overwrite an existing file.
    #[serde(default)]
    pub replace: bool,
}

impl Operation for Rename {
    fn path(&self) -> &OsStr {
        &self.from
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let of_to = |error: anyhow::Error| error.context(format!("to {:?}", self.to));
        let to = target.look_up(&self.to, Last::Keep).map_err(of_to)?;
        let Some(from) = target.look_up_optional(&self.from, Last::Keep)? else {
            return done_before(&to, target.no_state(&self.from));
        };
        let mut before = target.state_before(&from, "rename");
        if let Some(before) = &mut before {
            before.to = Some(to.path());
        }
        let (from_path, to_path) = (from.path(), to.path());
        match &from.end {
            End::Missing(_) => return done_before(&to, before),
            End::Dir if from.steps.len() == 1 => bail!("is the root, which stays"),
            _ if from_path == to_path => return Ok(Done::unchanged(before)),
            End::Dir if to_path.starts_with(&from_path) => bail!("to {to_path:?}: is inside it"),
            End::Leaf(..) if self.to.ends_with_slash() => {
                bail!("to {:?}: a file's path does not end with \"/\"", self.to)
            }
            _ => {}
        }
        if is_there(&from, &to)? {
            target.remove(from)?;
            return Ok(Done::changed(before));
        }
        match (&from.end, &to.end) {
            (_, End::Dir) => bail!("to {to_path:?}: exists and is a directory (remove it first)"),
            (_, End::Leaf(_, leaf)) if !self.replace => bail!("to {to_path:?}: {}", target.exists(leaf)),
            (End::Dir, End::Leaf(_, leaf)) => bail!(
                "to {to_path:?}: exists{} and is {}, which a directory does not replace (remove it first)",
                target.whereabouts(leaf),
                kind(leaf)
            ),
            _ => {}
        }
        rename(target, from, to)?;
        Ok(Done::changed(before))
    }
}

/// The result if there is nothing at the old path: if something is at the new one, the rename was done before.
fn done_before(to: &Resolved, before: Option<PathState>) -> anyhow::Result<Done> {
    match to.end {
        End::Missing(_) => bail!("does not exist"),
        _ => Ok(Done::unchanged(before)),
    }
}

/// Whether a copy of what is renamed is at the new path, as after an interrupted run.
fn is_there(from: &Resolved, to: &Resolved) -> anyhow::Result<bool> {
    let dir = |at: &Resolved| at.steps.last().expect("the root stays").dir.clone();
    Ok(match (&from.end, &to.end) {
        (End::Leaf(_, one), End::Leaf(_, other)) => are_leaves_equal(one, other)?,
        (End::Dir, End::Dir) => !from.path().starts_with(to.path()) && are_trees_equal(&dir(from), &dir(to))?,
        _ => false,
    })
}

fn rename(target: &mut Target, from: Resolved, to: Resolved) -> anyhow::Result<()> {
    let lower_dir = match &from.end {
        End::Dir => from.steps.last().map(|step| step.dir.clone()).filter(|dir| !dir.lower.is_empty()),
        _ => None,
    };
    let Destination { parent, name, old } = target.parent(from)?;
    let to = target.parent(to)?;
    // The cached path may lead through what moves.
    target.trail.forget();
    target.dir_times.restore()?;
    let (dir, to_dir) = (upper_of(&parent)?, upper_of(&to.parent)?);
    let (name, to_name) = (Name::new(&name)?, Name::new(&to.name)?);
    if let Some(leaf) = old.filter(|leaf| leaf.layer != Layer::Upper || leaf.is_metacopy())
        && !target.share(dir, name, &leaf)?
    {
        target.copy_into_upper(dir, name, &leaf)?;
    }
    let (before, to_before) = (dir.to_entry()?, to_dir.to_entry()?);
    match lower_dir {
        None => target.writer.rename(&parent, name, &to.parent, to_name, RenameFlags::empty())?,
        Some(from) => {
            move_tree(target, &from, &to)?;
            target.writer.remove(&parent, name)?;
        }
    }
    target.set_whiteout_time(dir, name)?;
    before.set_times(&times_of(before.stat()))?;
    Ok(to_before.set_times(&times_of(to_before.stat()))?)
}

/// Moves a directory that is merged with layers to a new place as a directory of the upper alone. Files of the upper are renamed, and
/// files of layers are copied. Hardlinks within a layer are preserved.
fn move_tree(target: &mut Target, from: &Merged, to: &Destination) -> anyhow::Result<()> {
    let to_name = Name::new(&to.name)?;
    target.writer.make_dir(&to.parent, to_name, Mode::RWXU)?;
    let top = upper_of(&to.parent)?.dir(to_name)?;
    let mut hardlinks: HashMap<(usize, u64, u64), PathBuf> = HashMap::new();
    // The pending directories are paths: a tree may be deeper or wider than the limit of open files.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        interrupt::check()?;
        let of_path = || format!("{path:?} in it");
        let from = descend(from, &path).with_context(of_path)?.with_context(of_path)?;
        let dir = top.descend(&path).with_context(of_path)?;
        // Its attributes are read before files move out of it, which changes its times.
        let original = from.top().0.to_entry()?;
        if path.as_os_str().is_empty() {
            remove_acls(&dir.to_entry()?)?;
        }
        for listed in from.list()? {
            let name = Name::new(&listed.name)?;
            match from.lookup(name)? {
                Some(Node::Dir(_)) => {
                    dir.mkdir(name, Mode::RWXU)?;
                    pending.push(path.join(&listed.name));
                }
                Some(Node::Leaf(leaf)) => match leaf.layer {
                    Layer::Upper => {
                        let old = upper_of(&from)?;
                        // The data of a metacopy is found by its path.
                        if leaf.is_metacopy() {
                            target.copy_into_upper(old, name, &leaf)?;
                        }
                        old.rename(name, &dir, name, RenameFlags::empty())?;
                    }
                    Layer::Lower(layer) => {
                        if target.share(&dir, name, &leaf)? {
                            continue;
                        }
                        let stat = leaf.entry.stat();
                        let key = (layer, stat.st_dev, stat.st_ino);
                        if let Some(first) = hardlinks.get(&key) {
                            link_to(&top, first, &dir, name)?;
                            continue;
                        }
                        let length = target.copied_length(stat.st_size as u64);
                        let copy = target.writer.copy_leaf(&leaf, &dir, name, length)?;
                        target.note_copy(&copy, length);
                        if stat.st_nlink > 1 {
                            hardlinks.insert(key, path.join(&listed.name));
                        }
                    }
                },
                None => {}
            }
        }
        // This is last, because the changes above set its times.
        copy_attributes(&original, &dir.to_entry()?)?;
    }
    Ok(())
}

/// Creates a hardlink to a file that has been copied to `first`.
fn link_to(top: &Dir, first: &Path, dir: &Dir, name: Name<'_>) -> anyhow::Result<()> {
    let above = top.descend(first.parent().unwrap_or(Path::new("")))?;
    let first = Name::new(first.file_name().unwrap_or_default())?;
    let file = above.entry(first)?.context("a file that was just copied is gone")?;
    Ok(dir.link(name, &file)?)
}
