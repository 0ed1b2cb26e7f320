//! copy_dir: a tree of the host merges into the root.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::resolve::{End, Last, Resolved};
use msb::overlay::upper::{Attributes, WHOLE, copy_leaf_as, copy_xattrs, disinherit, upper_of};
use msb::overlay::{Leaf, Merged};
use rustix::fs::{FileType, Stat, Timestamps};

use crate::apply::{Done, Target, Wanted};
use crate::content::Content;
use crate::user::User;

impl Target {
    /// Copies a tree of the host. Directories merge and keep what they have; files are refused or replaced.
    pub(crate) fn copy_dir(&mut self, at: Resolved, src: &Path, replace: bool) -> anyhow::Result<Done> {
        let src_dir = Dir::open(src).with_context(|| format!("src {src:?}"))?;
        let is_new = matches!(at.end, End::Missing(_));
        let top = at.path();
        let mode = src_dir.stat()?.st_mode & 0o7777;
        let mut done = Done { changed: is_new, bytes: 0 };
        if is_new {
            let dir = self.make_dirs(at, Wanted { mode: Some(mode), ..Wanted::default() })?;
            self.finish_dir(&src_dir, &dir)?;
        }
        let mut hardlinks: HashMap<(u64, u64), PathBuf> = HashMap::new();
        // By paths, not by recursion or open directories: a host tree may be deeper or wider than either may grow. Each
        // is looked up again when its turn comes, since symlinks in the image may lead it elsewhere.
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let from = src_dir.descend(&path).with_context(|| format!("src {:?}", src.join(&path)))?;
            if is_same(&from.stat()?, &upper_of(&self.root)?.stat()?) {
                bail!("src {:?}: is the upper that is being written (copy a smaller directory)", src.join(&path));
            }
            let mut children: Vec<(OsString, FileType)> = Vec::new();
            for child in from.read()? {
                let child = child?;
                children.push((OsStr::from_bytes(child.file_name().to_bytes()).to_owned(), child.file_type()));
            }
            children.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (child, file_type) in children {
                let Ok(name) = Name::new(&child) else { continue };
                let opened = if file_type == FileType::RegularFile { from.regular(name) } else { Ok(None) };
                let entry = match opened.with_context(|| format!("src {:?}", src.join(&path).join(&child)))? {
                    Some(open) => open,
                    None => match from.entry(name)? {
                        Some(entry) => entry,
                        None => continue,
                    },
                };
                let child = path.join(&child);
                let guest = top.join(&child);
                let copied = self.copy_child(&entry, &guest, replace, &mut hardlinks);
                done += copied.with_context(|| format!("src {:?}: {guest:?}", src.join(&child)))?;
                if entry.is_dir() {
                    pending.push(child);
                }
            }
        }
        Ok(done)
    }

    /// Copies one entry of a host tree, of a directory only itself.
    fn copy_child(
        &mut self,
        entry: &Entry,
        guest: &Path,
        replace: bool,
        hardlinks: &mut HashMap<(u64, u64), PathBuf>,
    ) -> anyhow::Result<Done> {
        let last = if entry.is_dir() { Last::Follow } else { Last::Keep };
        let at = self.trail.resolve(&self.root, guest, last)?;
        if entry.is_dir() {
            let dir = entry.to_dir()?;
            match &at.end {
                End::Dir => return Ok(Done::default()),
                End::Leaf(..) => bail!("exists and is not a directory"),
                End::Missing(_) => {}
            }
            let made = self.make_dirs(at, Wanted { mode: Some(entry.stat().st_mode & 0o7777), ..Wanted::default() })?;
            self.finish_dir(&dir, &made)?;
            return Ok(Done { changed: true, bytes: 0 });
        }
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Symlink) {
            bail!("is a FIFO, socket or device, which cannot be copied");
        }
        match &at.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(..) if !replace => bail!("exists (set \"replace\": true to overwrite it)"),
            _ => {}
        }
        let stat = entry.stat();
        let first = if stat.st_nlink > 1 { self.first(hardlinks, stat, guest)? } else { None };
        let unchanged = match (&at.end, first.as_ref().map(|first| &first.end)) {
            (End::Leaf(_, there), Some(End::Leaf(_, first))) => is_same(there.entry.stat(), first.entry.stat()),
            (End::Leaf(_, there), None) => self.is_copy(entry, there)?,
            _ => false,
        };
        let mut done = Done { changed: !unchanged, bytes: if first.is_none() { stat.st_size as u64 } else { 0 } };
        if unchanged {
            return Ok(done);
        }
        if let Some(first) = first {
            // What is linked to must be this upper's alone.
            let first = self.own(first)?;
            let at = self.parent(at)?;
            self.place_exactly(&at, |dir, name| dir.link(name, &first))?;
            return Ok(done);
        }
        let at = self.parent(at)?;
        let length = if self.dry_run { 0 } else { WHOLE };
        // The host's users mean nothing in the image.
        let User { uid, gid, .. } = self.user;
        let attributes = Attributes { uid, gid, mode: stat.st_mode & 0o7777, times: self.times_of(entry) };
        let copy = self.place_exactly(&at, |dir, name| copy_leaf_as(entry, dir, name, length, &attributes))?;
        if !self.dry_run {
            done.bytes = copy.stat().st_size as u64;
        }
        Ok(done)
    }

    /// Where a file of a host tree with several names has been copied to under another, if it has.
    fn first(
        &mut self,
        hardlinks: &mut HashMap<(u64, u64), PathBuf>,
        stat: &Stat,
        guest: &Path,
    ) -> anyhow::Result<Option<Resolved>> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = hardlinks.get(&key) {
            let first = self.trail.resolve(&self.root, first, Last::Keep)?;
            if matches!(first.end, End::Leaf(..)) {
                return Ok(Some(first));
            }
        }
        hardlinks.insert(key, guest.to_owned());
        Ok(None)
    }

    /// Whether `there` is what copying `entry` would make. Xattrs are not compared: whoever changes those changes the file.
    fn is_copy(&self, entry: &Entry, there: &Leaf) -> io::Result<bool> {
        let data = there.data();
        let there = &there.entry;
        let (one, other) = (entry.stat(), there.stat());
        let (wanted, had) = (self.times_of(entry).last_modification, times_of(other).last_modification);
        if entry.file_type() != there.file_type()
            || (other.st_uid, other.st_gid) != (self.user.uid, self.user.gid)
            // The time of now is no time that can be found again.
            || (wanted.tv_sec, wanted.tv_nsec) != (had.tv_sec, had.tv_nsec)
        {
            return Ok(false);
        }
        if entry.file_type() == FileType::Symlink {
            return Ok(entry.read_link()? == there.read_link()?);
        }
        Ok(one.st_mode == other.st_mode && Content::File(&entry.open_to_read()?).is_in(&data.open_to_read()?)?)
    }

    /// A copy is as old as its source, unless all is to be of one age.
    fn times_of(&self, entry: &Entry) -> Timestamps {
        if self.epoch.is_some() { self.now() } else { times_of(entry.stat()) }
    }

    /// Gives a directory what its original has besides the mode, and nothing of its parent's.
    fn finish_dir(&self, from: &Dir, to: &Merged) -> io::Result<()> {
        let (from, to) = (from.to_entry()?, upper_of(to)?.to_entry()?);
        if self.kept.bequeaths() {
            disinherit(&to)?;
        }
        copy_xattrs(&from, &to, |_| true)?;
        to.set_times(&self.times_of(&from))
    }
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
