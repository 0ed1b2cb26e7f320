//! copy_dir: a tree of the host merges into the root.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Leaf;
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::resolve::{End, Last, Resolved};
use msb::overlay::attributes::{Attributes, copy_xattrs, remove_acls};
use msb::overlay::copy_leaf_as;
use msb::overlay::upper::upper_of;
use rustix::fs::{FileType, Stat, Timestamps};
use serde::Deserialize;

use super::Operation;
use crate::attributes::Wanted;
use crate::content::Content;
use crate::lookup::{kind, whereabouts};
use crate::member::{Mode, Owner, RawPath};
use crate::target::{Done, Target};

/// The members of copy_dir.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyDir {
    /// On the host.
    pub src: RawPath,
    /// In the root.
    pub dst: RawPath,
    /// Permissions of what is copied; those of its source without it.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Owner of what is copied.
    #[serde(default)]
    pub uid: Option<Owner>,
    /// Group of what is copied.
    #[serde(default)]
    pub gid: Option<Owner>,
    /// Overwrite files that are there.
    #[serde(default)]
    pub replace: bool,
}

impl Operation for CopyDir {
    fn path(&self) -> &OsStr {
        &self.dst
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let src = target.on_host(&self.src);
        let meta = std::fs::metadata(&src).with_context(|| format!("src {src:?}"))?;
        if !meta.is_dir() {
            bail!("src {src:?}: not a directory (use copy_file)");
        }
        let at = target.look_up(&self.dst, Last::Follow)?;
        if let End::Leaf(_, leaf) = &at.end {
            bail!("exists{} and is {}", whereabouts(leaf), kind(leaf));
        }
        let found = target.found(&at, "merge");
        let wanted = target.wanted(self.mode, self.uid.as_ref(), self.gid.as_ref())?;
        let copy = Copy { target, src, wanted, replace: self.replace, hardlinks: HashMap::new() };
        Ok(Done { found, ..copy.all(at)? })
    }
}

/// A tree that is being copied. Directories that are there keep what they have.
struct Copy<'a> {
    target: &'a mut Target,
    src: PathBuf,
    wanted: Wanted,
    replace: bool,
    /// Where a file with several names has been copied to under another, by device and inode.
    hardlinks: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn all(mut self, at: Resolved) -> anyhow::Result<Done> {
        let of_src = |path: &Path| format!("src {:?}", self.src.join(path));
        let src_dir = Dir::open(&self.src).with_context(|| of_src(Path::new("")))?;
        let top = at.path();
        let mut done = Done { changed: matches!(at.end, End::Missing(_)), ..Done::default() };
        if done.changed {
            self.make_dir(at, &src_dir)?;
        }
        // By paths, not by recursion or open directories: a host tree may be deeper or wider than either may grow. Each
        // is looked up again when its turn comes, since symlinks in the image may lead it elsewhere.
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let of_src = |path: &Path| format!("src {:?}", self.src.join(path));
            let from = src_dir.descend(&path).with_context(|| of_src(&path))?;
            if is_same(&from.stat()?, &upper_of(&self.target.root)?.stat()?) {
                bail!("{}: is the upper that is being written (copy a smaller directory)", of_src(&path));
            }
            let mut children: Vec<(OsString, FileType)> = Vec::new();
            for child in from.read()? {
                let child = child?;
                children.push((OsStr::from_bytes(child.file_name().to_bytes()).to_owned(), child.file_type()));
            }
            children.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (child, file_type) in children {
                let Ok(name) = Name::new(&child) else { continue };
                let of_src = |path: &Path| format!("src {:?}", self.src.join(path));
                let opened = if file_type == FileType::RegularFile { from.regular(name) } else { Ok(None) };
                let entry = match opened.with_context(|| of_src(&path.join(&child)))? {
                    Some(open) => open,
                    None => match from.entry(name)? {
                        Some(entry) => entry,
                        None => continue,
                    },
                };
                let child = path.join(&child);
                let guest = top.join(&child);
                let copied = self.child(&entry, &guest);
                let copied = copied.with_context(|| format!("src {:?}: {guest:?}", self.src.join(&child)))?;
                done.changed |= copied.changed;
                done.bytes += copied.bytes;
                if entry.is_dir() {
                    pending.push(child);
                }
            }
        }
        Ok(done)
    }

    /// Copies one entry, of a directory only itself.
    fn child(&mut self, entry: &Entry, guest: &Path) -> anyhow::Result<Done> {
        let last = if entry.is_dir() { Last::Follow } else { Last::Keep };
        let at = self.target.trail.resolve(&self.target.root, guest, last)?;
        if entry.is_dir() {
            match &at.end {
                End::Dir => return Ok(Done::default()),
                End::Leaf(..) => bail!("exists and is not a directory"),
                End::Missing(_) => {}
            }
            self.make_dir(at, &entry.to_dir()?)?;
            return Ok(Done::changed(None));
        }
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Symlink) {
            bail!("is a FIFO, socket or device, which cannot be copied");
        }
        let stat = entry.stat();
        let first = if stat.st_nlink > 1 { self.first(stat, guest)? } else { None };
        let bytes = if first.is_none() { stat.st_size as u64 } else { 0 };
        match &at.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(_, leaf) => {
                let is_link = match first.as_ref().map(|first| &first.end) {
                    Some(End::Leaf(_, first)) => Some(is_same(leaf.entry.stat(), first.entry.stat())),
                    _ => None,
                };
                if is_link.unwrap_or(false) || is_link.is_none_or(|_| !self.replace) && self.is_copy(entry, leaf)? {
                    return Ok(Done { bytes, ..Done::default() });
                }
                if !self.replace {
                    bail!("exists (set \"replace\": true to overwrite it)");
                }
            }
            End::Missing(_) => {}
        }
        if let Some(first) = first {
            // What is linked to must be this upper's alone.
            let first = self.target.own(first)?;
            let at = self.target.parent(at)?;
            self.target.place_exactly(&at, |dir, name| dir.link(name, &first))?;
            return Ok(Done::changed(None));
        }
        let at = self.target.parent(at)?;
        let length = self.target.copied_length(stat.st_size as u64);
        let (uid, gid, mode) = self.attributes_of(entry);
        let attributes = Attributes { uid, gid, mode, times: Some(self.times_of(entry)) };
        let copy = self.target.place_exactly(&at, |dir, name| copy_leaf_as(entry, dir, name, length, &attributes))?;
        self.target.note_copy(&copy, length);
        Ok(Done { bytes: if length == 0 { bytes } else { copy.stat().st_size as u64 }, ..Done::changed(None) })
    }

    /// Where a file with several names has been copied to under another, if it has.
    fn first(&mut self, stat: &Stat, guest: &Path) -> anyhow::Result<Option<Resolved>> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.hardlinks.get(&key) {
            let first = self.target.trail.resolve(&self.target.root, first, Last::Keep)?;
            if matches!(first.end, End::Leaf(..)) {
                return Ok(Some(first));
            }
        }
        self.hardlinks.insert(key, guest.to_owned());
        Ok(None)
    }

    /// What a copy gets: owner and group are those that are asked for, else of whom we make things for, since the host's users
    /// mean nothing in the image. A mode is for files; directories have the right to search where it has that to read.
    fn attributes_of(&self, entry: &Entry) -> (u32, u32, u32) {
        let user = &self.target.user;
        let mode = match self.wanted.mode {
            Some(mode) if entry.is_dir() => mode | (mode & 0o444) >> 2,
            Some(mode) => mode,
            None => entry.stat().st_mode & 0o7777,
        };
        (self.wanted.uid.unwrap_or(user.uid), self.wanted.gid.unwrap_or(user.gid), mode)
    }

    /// Whether `there` is what copying `entry` would make. Without the right to replace it, it need not have what the operation
    /// does not ask for. Xattrs are not compared: whoever changes those changes the file.
    fn is_copy(&self, entry: &Entry, there: &Leaf) -> io::Result<bool> {
        let (data, there) = (there.data(), &there.entry);
        if entry.file_type() != there.file_type() {
            return Ok(false);
        }
        let is_symlink = entry.file_type() == FileType::Symlink;
        let mut wanted = self.wanted;
        if self.replace {
            let (uid, gid, mode) = self.attributes_of(entry);
            wanted = Wanted { uid: Some(uid), gid: Some(gid), mode: Some(mode) };
            let (times, had) = (self.times_of(entry).last_modification, times_of(there.stat()).last_modification);
            if (times.tv_sec, times.tv_nsec) != (had.tv_sec, had.tv_nsec) {
                return Ok(false);
            }
        }
        if is_symlink {
            wanted.mode = None;
        }
        if !wanted.is_had_by(there.stat()) {
            return Ok(false);
        }
        if is_symlink {
            return Ok(entry.read_link()? == there.read_link()?);
        }
        if self.target.is_hollow(there) {
            return Ok(entry.stat().st_size == there.stat().st_size);
        }
        Content::File(&entry.open_to_read()?).is_in(&data.open_to_read()?)
    }

    /// A copy is as old as its source, unless all is to be of one age.
    fn times_of(&self, entry: &Entry) -> Timestamps {
        if self.target.epoch.is_some() { self.target.now() } else { times_of(entry.stat()) }
    }

    /// Makes a directory with what its original has, and nothing of its parent's.
    fn make_dir(&mut self, at: Resolved, from: &Dir) -> anyhow::Result<()> {
        let from = from.to_entry()?;
        let (uid, gid, mode) = self.attributes_of(&from);
        let made = self.target.make_dirs(at, Wanted { uid: Some(uid), gid: Some(gid), mode: Some(mode) })?;
        let to = upper_of(&made)?.to_entry()?;
        if self.target.kept.bequeaths() {
            remove_acls(&to)?;
        }
        if copy_xattrs(&from, &to, |_| true)? && self.wanted.mode.is_some() {
            // An ACL has changed it.
            to.set_mode(rustix::fs::Mode::from_raw_mode(mode))?;
        }
        Ok(to.set_times(&self.times_of(&from))?)
    }
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
