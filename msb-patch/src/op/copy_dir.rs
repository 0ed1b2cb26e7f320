//! copy_dir: merges a directory tree of the host into the root.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Leaf;
use msb::overlay::attributes::{Attributes, copy_xattrs, remove_acls};
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::copy_leaf_as;
use msb::overlay::resolve::{End, Last, Resolved};
use msb::overlay::upper::upper_of;
use rustix::fs::{FileType, Stat, Timestamps};

use crate::attributes::RequestedAttributes;
use crate::content::Content;
use crate::lookup::kind;
use crate::member::{RawPath, members_with_attributes};
use crate::operation::Operation;
use crate::target::{Done, Target};

members_with_attributes! {
/// The members of copy_dir.
pub struct CopyDir {
    /// The path on the host.
    pub src: RawPath,
    /// The path in the root.
    pub dst: RawPath,
    /// Overwrite existing files.
    #[serde(default)]
    pub replace: bool,
}
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
            bail!("exists{} and is {}", target.whereabouts(leaf), kind(leaf));
        }
        let before = target.state_before(&at, "merge");
        let requested = self.attributes(target)?;
        let copy = Copy { target, src, requested, replace: self.replace, hardlinks: HashMap::new() };
        Ok(Done { before, ..copy.all(at)? })
    }
}

/// A tree that is being copied. Existing directories keep their content and attributes.
struct Copy<'a> {
    target: &'a mut Target,
    src: PathBuf,
    requested: RequestedAttributes,
    replace: bool,
    /// The first copy of each file with several names, by device and inode.
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
        // The pending directories are paths, not open descriptors or recursive calls, because a tree may be deeper or wider than those
        // allow. Each is resolved when its turn comes, because symlinks of the image may lead elsewhere.
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

    /// Copies one entry, without the content of a directory.
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
            // The file may be a hardlink to the old upper. A link to it must not share its data.
            let first = self.target.writable_file(first)?;
            let at = self.target.parent(at)?;
            self.target.create_exactly(&at, |dir, name| dir.link(name, &first))?;
            return Ok(Done::changed(None));
        }
        let at = self.target.parent(at)?;
        let length = self.target.copied_length(stat.st_size as u64);
        let (uid, gid, mode) = self.attributes_of(entry);
        let attributes = Attributes { uid, gid, mode, times: Some(self.times_of(entry)) };
        let copy = self.target.create_exactly(&at, |dir, name| copy_leaf_as(entry, dir, name, length, &attributes))?;
        self.target.note_copy(&copy, length);
        Ok(Done { bytes: if length == 0 { bytes } else { copy.stat().st_size as u64 }, ..Done::changed(None) })
    }

    /// The first copy of a file with several names, if there is one.
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

    /// The owner, group and mode of a copy. Without a request, it belongs to the owner of new files, because the host's users mean nothing in
    /// the image. A requested mode is for files; directories get search permission wherever it has read permission.
    fn attributes_of(&self, entry: &Entry) -> (u32, u32, u32) {
        let user = &self.target.user;
        let mode = match self.requested.mode {
            Some(mode) if entry.is_dir() => mode | (mode & 0o444) >> 2,
            Some(mode) => mode,
            None => entry.stat().st_mode & 0o7777,
        };
        (self.requested.uid.unwrap_or(user.uid), self.requested.gid.unwrap_or(user.gid), mode)
    }

    /// Whether `there` is what a copy of `entry` would be. Without `replace`, only the requested attributes are compared. Xattrs are not
    /// compared.
    fn is_copy(&self, entry: &Entry, there: &Leaf) -> io::Result<bool> {
        let (data, there) = (there.data(), &there.entry);
        if entry.file_type() != there.file_type() {
            return Ok(false);
        }
        let is_symlink = entry.file_type() == FileType::Symlink;
        let mut requested = self.requested;
        if self.replace {
            let (uid, gid, mode) = self.attributes_of(entry);
            requested = RequestedAttributes { uid: Some(uid), gid: Some(gid), mode: Some(mode) };
            let (times, had) = (self.times_of(entry).last_modification, times_of(there.stat()).last_modification);
            if (times.tv_sec, times.tv_nsec) != (had.tv_sec, had.tv_nsec) {
                return Ok(false);
            }
        }
        if is_symlink {
            requested.mode = None;
        }
        if !requested.match_stat(there.stat()) {
            return Ok(false);
        }
        if is_symlink {
            return Ok(entry.read_link()? == there.read_link()?);
        }
        if self.target.has_no_data(there) {
            return Ok(entry.stat().st_size == there.stat().st_size);
        }
        Content::File(&entry.open_to_read()?).is_in(&data.open_to_read()?)
    }

    /// The times of a copy: those of its source, or the epoch if there is one.
    fn times_of(&self, entry: &Entry) -> Timestamps {
        if self.target.epoch.is_some() { self.target.now() } else { times_of(entry.stat()) }
    }

    /// Creates a directory with the attributes of its source, without a default ACL of its parent.
    fn make_dir(&mut self, at: Resolved, from: &Dir) -> anyhow::Result<()> {
        let from = from.to_entry()?;
        let (uid, gid, mode) = self.attributes_of(&from);
        let made =
            self.target.make_dirs(at, RequestedAttributes { uid: Some(uid), gid: Some(gid), mode: Some(mode) })?;
        let to = upper_of(&made)?.to_entry()?;
        if self.target.dir_times.has_default_acl() {
            remove_acls(&to)?;
        }
        if copy_xattrs(&from, &to, |_| true)? && self.requested.mode.is_some() {
            // The copy of an ACL has changed the mode.
            to.set_mode(rustix::fs::Mode::from_raw_mode(mode))?;
        }
        Ok(to.set_times(&self.times_of(&from))?)
    }
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
