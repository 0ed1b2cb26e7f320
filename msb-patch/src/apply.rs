//! Doing what was planned, in an upper that nobody sees yet.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::resolve::{End, Last, Resolved, Step, resolve};
use msb::overlay::upper::{WHOLE, Writer, copy_data, copy_to_end, copy_xattrs, keeping_times, upper_of};
use msb::overlay::{Layer, Leaf, Merged};
use rustix::fs::{FileType, Mode, Timespec, Timestamps};

use crate::op::Op;
use crate::plan::Plan;

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// Attributes that an operation asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Where an operation writes: a name in a directory that is in the upper.
struct Place {
    parent: Merged,
    name: OsString,
    /// What is there now, if it is no directory.
    old: Option<Leaf>,
}

/// The root that operations change.
#[derive(Debug)]
pub struct Target {
    /// The merged view: the image's layers and the new upper.
    pub root: Merged,
    /// The right to change the upper.
    pub writer: Writer,
    /// Files of the new upper whose data is still the old upper's, by inode: they are copied before they change.
    pub borrowed: HashSet<u64>,
    /// Whether only the shape of things matters, and data need not be copied.
    pub dry_run: bool,
    /// The modification time for what is made: `SOURCE_DATE_EPOCH`, or the clock's.
    pub epoch: Option<i64>,
}

impl Target {
    /// Carries a plan out. Scripts are not files of the root, and none of our business.
    ///
    /// # Errors
    /// Words, without the operation's name and path.
    pub fn apply(&self, op: &Op, plan: Plan) -> anyhow::Result<()> {
        match (op, plan) {
            (Op::Text { content, mode, uid, gid, .. }, Plan::Write(at)) => {
                let wanted = Wanted { mode: mode.map(|mode| mode.0), uid: *uid, gid: *gid };
                self.write(at, wanted, FILE_MODE, |file| file.write_all(content.as_bytes()))
            }
            (Op::File { content_base64, mode, uid, gid, .. }, Plan::Write(at)) => {
                let wanted = Wanted { mode: mode.map(|mode| mode.0), uid: *uid, gid: *gid };
                self.write(at, wanted, FILE_MODE, |file| file.write_all(&content_base64.0))
            }
            (Op::CopyFile { src, mode, uid, gid, .. }, Plan::Write(at)) => {
                let wanted = Wanted { mode: mode.map(|mode| mode.0), uid: *uid, gid: *gid };
                self.copy_file(at, wanted, src)
            }
            (Op::Mkdir { mode, uid, gid, .. }, Plan::MakeDirs(at)) => {
                let wanted = Wanted { mode: mode.map(|mode| mode.0), uid: *uid, gid: *gid };
                self.make_dirs(at, wanted).map(drop)
            }
            (Op::Append { content, .. }, Plan::Append(at)) => self.append(at, content.as_bytes()),
            (Op::CopyDir { src, replace, .. }, Plan::CopyDir(at)) => self.copy_dir(at, src, *replace),
            (Op::Symlink { target, .. }, Plan::Symlink(at)) => self.symlink(at, OsStr::new(target)),
            (_, Plan::Remove(at)) => self.remove(at),
            (_, Plan::Nothing(_) | Plan::Script) => Ok(()),
            (op, plan) => unreachable!("{op:?} is not planned as {plan:?}"),
        }
    }

    fn now(&self) -> Timestamps {
        let time = match self.epoch {
            Some(seconds) => Timespec { tv_sec: seconds, tv_nsec: 0 },
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        Timestamps { last_access: time, last_modification: time }
    }

    /// The place that a way ends at, with its parents made.
    fn parent(&self, mut at: Resolved) -> anyhow::Result<Place> {
        match at.end {
            End::Leaf(name, leaf) => {
                self.writer.copy_up_steps(&mut at.steps)?;
                Ok(Place { parent: last(at.steps), name, old: Some(leaf) })
            }
            End::Missing(mut names) => {
                let name = names.pop().expect("something is missing");
                at.end = End::Missing(names);
                Ok(Place { parent: self.make_dirs(at, Wanted::default())?, name, old: None })
            }
            End::Dir => {
                let step = at.steps.pop().expect("the root is refused before");
                self.writer.copy_up_steps(&mut at.steps)?;
                Ok(Place { parent: last(at.steps), name: step.name, old: None })
            }
        }
    }

    /// Makes what is missing and gives the last directory what is wanted; says which directory that is.
    fn make_dirs(&self, mut at: Resolved, wanted: Wanted) -> anyhow::Result<Merged> {
        self.writer.copy_up_steps(&mut at.steps)?;
        let mut dir = last(at.steps);
        let End::Missing(names) = at.end else {
            set_attributes(&upper_of(&dir)?.to_entry()?, wanted)?;
            return Ok(dir);
        };
        let count = names.len();
        for (place, name) in names.iter().enumerate() {
            let wanted = if place + 1 == count { wanted } else { Wanted::default() };
            dir = self.make_dir(&dir, Name::new(name)?, wanted)?;
        }
        Ok(dir)
    }

    fn make_dir(&self, parent: &Merged, name: Name<'_>, wanted: Wanted) -> io::Result<Merged> {
        let made = keeping_times(upper_of(parent)?, || {
            self.writer.mkdir(parent, name, |dir| {
                let dir = dir.to_entry()?;
                set_attributes(&dir, Wanted { mode: Some(wanted.mode.unwrap_or(DIR_MODE)), ..wanted })?;
                dir.set_times(&self.now())
            })
        })?;
        Ok(Merged { upper: Some(Arc::new(made)), lower: Vec::new() })
    }

    /// Puts a new file in place. One that it replaces leaves it its owner, mode and xattrs, as `cat > file` would.
    fn write(
        &self,
        at: Resolved,
        wanted: Wanted,
        default_mode: u32,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let times = self.now();
        let Place { parent, name, old } = self.parent(at)?;
        let old = old.map(|leaf| leaf.entry).filter(|entry| entry.file_type() == FileType::RegularFile);
        let upper = upper_of(&parent)?;
        keeping_times(upper, || {
            self.writer.place(upper, Name::new(&name)?, |work, aside| {
                let mut file = work.create(aside, Mode::from_raw_mode(0o600))?;
                fill(&mut file)?;
                drop(file);
                let new = work.entry(aside)?.ok_or(rustix::io::Errno::NOENT)?;
                let mut wanted = wanted;
                if let Some(old) = &old {
                    let stat = old.stat();
                    wanted.uid = wanted.uid.or(Some(stat.st_uid));
                    wanted.gid = wanted.gid.or(Some(stat.st_gid));
                    wanted.mode = wanted.mode.or(Some(stat.st_mode & 0o7777));
                    copy_xattrs(old, &new, |name| name != "security.capability")?;
                }
                set_attributes(&new, Wanted { mode: Some(wanted.mode.unwrap_or(default_mode)), ..wanted })?;
                new.set_times(&times)
            })
        })?;
        Ok(())
    }

    fn copy_file(&self, at: Resolved, wanted: Wanted, src: &Path) -> anyhow::Result<()> {
        let from = File::open(src).with_context(|| format!("src {src:?}"))?;
        let meta = rustix::fs::fstat(&from)?;
        let length = meta.st_size as u64;
        let mode = meta.st_mode & 0o777;
        self.write(at, wanted, mode, |file| match length {
            _ if self.dry_run => file.set_len(length),
            // Files of /proc and /sys say that they are empty, and are not.
            0 => copy_to_end(&from, file),
            _ => copy_data(&from, file, length),
        })
    }

    fn append(&self, at: Resolved, content: &[u8]) -> anyhow::Result<()> {
        let Place { parent, name, old } = self.parent(at)?;
        let Leaf { entry: old, layer } = old.context("the file is gone")?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        let length = if self.dry_run { 0 } else { WHOLE };
        let file = if layer == Layer::Upper && !self.borrowed.contains(&old.stat().st_ino) {
            old
        } else {
            self.writer.copy_up(upper, name, &old, length)?
        };
        let before = file.stat_now()?;
        let mut open = file.open(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::APPEND)?;
        open.write_all(content)?;
        drop(open);
        // A write by root keeps set-id bits and drops capabilities, as it would in the guest. The times stay: the file
        // is as old as the image says.
        Ok(file.set_times(&times_of(&before))?)
    }

    fn symlink(&self, at: Resolved, target: &OsStr) -> anyhow::Result<()> {
        let times = self.now();
        let Place { parent, name, .. } = self.parent(at)?;
        let upper = upper_of(&parent)?;
        keeping_times(upper, || self.place_symlink(upper, Name::new(&name)?, target, &times))?;
        Ok(())
    }

    fn place_symlink(&self, upper: &Dir, name: Name<'_>, target: &OsStr, times: &Timestamps) -> io::Result<()> {
        self.writer.place(upper, name, |work, aside| {
            work.symlink(aside, target)?;
            work.entry(aside)?.ok_or(rustix::io::Errno::NOENT)?.set_times(times)
        })
    }

    fn remove(&self, at: Resolved) -> anyhow::Result<()> {
        let Place { parent, name, .. } = self.parent(at)?;
        keeping_times(upper_of(&parent)?, || self.writer.remove(&parent, Name::new(&name)?))?;
        Ok(())
    }

    /// Copies a tree of the host. Directories merge and keep what they have; files are refused or replaced.
    fn copy_dir(&self, at: Resolved, src: &Path, replace: bool) -> anyhow::Result<()> {
        let src_dir = Dir::open(src).with_context(|| format!("src {src:?}"))?;
        let is_new = matches!(at.end, End::Missing(_));
        let top = at.path();
        let mode = src_dir.stat()?.st_mode & 0o7777;
        let dir = self.make_dirs(at, Wanted { mode: is_new.then_some(mode), ..Wanted::default() })?;
        if is_new {
            self.finish_dir(&src_dir, &dir)?;
        }
        let mut hardlinks: HashMap<(u64, u64), PathBuf> = HashMap::new();
        // By paths, not by recursion or open directories: a host tree may be deeper or wider than either may grow. Each
        // is looked up again when its turn comes, since symlinks in the image may lead it elsewhere.
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let from = src_dir.descend(&path).with_context(|| format!("src {:?}", src.join(&path)))?;
            if is_same(&from, upper_of(&self.root)?)? {
                bail!("src {:?}: is the upper that is being written (copy a smaller directory)", src.join(&path));
            }
            let mut children: Vec<OsString> = Vec::new();
            for child in from.read()? {
                children.push(OsStr::from_bytes(child?.file_name().to_bytes()).to_owned());
            }
            children.sort();
            for child in children {
                let Ok(name) = Name::new(&child) else { continue };
                let Some(entry) = from.entry(name)? else { continue };
                let child = path.join(&child);
                let guest = top.join(&child);
                let copied = self.copy_child(&entry, &guest, replace, &mut hardlinks);
                copied.with_context(|| format!("src {:?}: {guest:?}", src.join(&child)))?;
                if entry.is_dir() {
                    pending.push(child);
                }
            }
        }
        Ok(())
    }

    /// Copies one entry of a host tree, of a directory only itself.
    fn copy_child(
        &self,
        entry: &Entry,
        guest: &Path,
        replace: bool,
        hardlinks: &mut HashMap<(u64, u64), PathBuf>,
    ) -> anyhow::Result<()> {
        let last = if entry.is_dir() { Last::Follow } else { Last::Keep };
        let at = resolve(&self.root, guest, last)?;
        if entry.is_dir() {
            let dir = entry.to_dir()?;
            match &at.end {
                End::Dir => {}
                End::Leaf(..) => bail!("exists and is not a directory"),
                End::Missing(_) => {
                    let wanted = Wanted { mode: Some(entry.stat().st_mode & 0o7777), ..Wanted::default() };
                    let made = self.make_dirs(at, wanted)?;
                    self.finish_dir(&dir, &made)?;
                }
            }
            return Ok(());
        }
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Symlink) {
            bail!("is a FIFO, socket or device, which cannot be copied");
        }
        match &at.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(..) if !replace => bail!("exists (set \"replace\": true to overwrite it)"),
            _ => {}
        }
        let Place { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        let stat = entry.stat();
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = hardlinks.get(&key)
            && let End::Leaf(_, leaf) = resolve(&self.root, first, Last::Keep)?.end
        {
            keeping_times(upper, || self.writer.place(upper, name, |work, aside| work.link(aside, &leaf.entry)))?;
            return Ok(());
        }
        keeping_times(upper, || {
            self.writer.place(upper, name, |work, aside| {
                let length = if self.dry_run { 0 } else { WHOLE };
                let copy = self.writer.copy_leaf(entry, work, aside, length)?;
                // The host's users mean nothing in the image.
                copy.set_owner(Some(0), Some(0))?;
                if entry.file_type() == FileType::RegularFile {
                    // A change of owner has cleared them.
                    copy.set_mode(Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                    copy_xattrs(entry, &copy, |name| name == "security.capability")?;
                }
                copy.set_times(&self.times_of(entry))
            })
        })?;
        if stat.st_nlink > 1 {
            hardlinks.insert(key, guest.to_owned());
        }
        Ok(())
    }

    /// A copy is as old as its source, unless all is to be of one age.
    fn times_of(&self, entry: &Entry) -> Timestamps {
        if self.epoch.is_some() { self.now() } else { times_of(entry.stat()) }
    }

    fn finish_dir(&self, from: &Dir, to: &Merged) -> io::Result<()> {
        let (from, to) = (from.to_entry()?, upper_of(to)?.to_entry()?);
        copy_xattrs(&from, &to, |_| true)?;
        to.set_times(&self.times_of(&from))
    }
}

fn is_same(one: &Dir, other: &Dir) -> io::Result<bool> {
    let (one, other) = (one.stat()?, other.stat()?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn last(mut steps: Vec<Step>) -> Merged {
    steps.pop().expect("the root stays").dir
}

/// Owner first: a change of it clears set-id bits.
fn set_attributes(entry: &Entry, wanted: Wanted) -> io::Result<()> {
    if wanted.uid.is_some() || wanted.gid.is_some() {
        let mode = entry.stat_now()?.st_mode & 0o7777;
        entry.set_owner(wanted.uid, wanted.gid)?;
        entry.set_mode(Mode::from_raw_mode(wanted.mode.unwrap_or(mode)))
    } else if let Some(mode) = wanted.mode {
        entry.set_mode(Mode::from_raw_mode(mode))
    } else {
        Ok(())
    }
}
