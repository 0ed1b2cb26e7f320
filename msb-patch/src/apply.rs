//! Doing what was planned, in an upper that nobody sees yet.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::resolve::{End, Last, Resolved, Step, resolve};
use msb::overlay::upper::{WHOLE, Writer, copy_data, copy_to_end, copy_xattrs, keeping_times, upper_of};
use msb::overlay::{Layer, Leaf, Merged};
use rustix::fs::{FileType, Mode, Stat, Timespec, Timestamps};

use crate::op::{self, Op};
use crate::plan::Plan;
use crate::user::User;

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;
/// How much is compared at once, in bytes.
const BLOCK: usize = 1 << 16;

/// What an operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Whether the upper is another now; what was asked for may have been so already.
    pub changed: bool,
    /// How much data it brings, in bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.changed |= other.changed;
        self.bytes += other.bytes;
    }
}

/// What a file is to hold.
#[derive(Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    /// All of a file of the host.
    File(&'a File),
}

impl Content<'_> {
    /// In bytes. A file of /proc says 0, and is not empty.
    fn length(self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.metadata()?.len()),
        }
    }

    fn put(self, to: &mut File) -> io::Result<()> {
        match (self, self.length()?) {
            (Self::Bytes(bytes), _) => to.write_all(bytes),
            (Self::File(file), 0) => copy_to_end(file, to),
            (Self::File(file), length) => copy_data(file, to, length),
        }
    }

    /// Whether `file` holds just this.
    fn is_in(self, file: &File) -> io::Result<bool> {
        let length = self.length()?;
        if length != file.metadata()?.len() {
            return Ok(false);
        }
        let (mut block, mut wanted) = ([0u8; BLOCK], [0u8; BLOCK]);
        let mut at = 0;
        // One read more than the length says, for what has no length.
        loop {
            let got = file.read_at(&mut block, at)?;
            let same = match self {
                Self::Bytes(bytes) => {
                    usize::try_from(at).ok().and_then(|at| bytes.get(at..at + got)) == block.get(..got)
                }
                Self::File(other) if got == 0 => other.read_at(&mut wanted[..1], at)? == 0,
                Self::File(other) => {
                    let wanted = &mut wanted[..got];
                    match other.read_exact_at(wanted, at) {
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                        read => read.map(|()| *wanted == block[..got])?,
                    }
                }
            };
            if !same || got == 0 {
                return Ok(same);
            }
            at += got as u64;
        }
    }
}

/// Attributes that an operation asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Wanted {
    /// Whether a file has all that already.
    fn is_had_by(&self, stat: &Stat) -> bool {
        self.mode.is_none_or(|mode| mode == stat.st_mode & 0o7777)
            && self.uid.is_none_or(|uid| uid == stat.st_uid)
            && self.gid.is_none_or(|gid| gid == stat.st_gid)
    }
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
    /// Who owns what is made.
    pub user: User,
}

impl Target {
    /// Carries a plan out. Scripts are not files of the root, and none of our business.
    ///
    /// # Errors
    /// Words, without the operation's name and path.
    pub fn apply(&self, op: &Op, plan: Plan) -> anyhow::Result<Done> {
        let wanted = |mode: &Option<op::Mode>, uid: &Option<u32>, gid: &Option<u32>| Wanted {
            mode: mode.map(|mode| mode.0),
            uid: *uid,
            gid: *gid,
        };
        match (op, plan) {
            (Op::Text { content, mode, uid, gid, .. }, Plan::Write(at)) => {
                self.write(at, wanted(mode, uid, gid), FILE_MODE, Content::Bytes(content.as_bytes()))
            }
            (Op::File { content_base64, mode, uid, gid, .. }, Plan::Write(at)) => {
                self.write(at, wanted(mode, uid, gid), FILE_MODE, Content::Bytes(&content_base64.0))
            }
            (Op::CopyFile { src, mode, uid, gid, .. }, Plan::Write(at)) => {
                let from = File::open(src).with_context(|| format!("src {src:?}"))?;
                let default_mode = rustix::fs::fstat(&from)?.st_mode & 0o777;
                self.write(at, wanted(mode, uid, gid), default_mode, Content::File(&from))
            }
            (Op::Mkdir { mode, uid, gid, .. }, Plan::MakeDirs(at)) => self.mkdir(at, wanted(mode, uid, gid)),
            (Op::Append { content, .. }, Plan::Append(at)) => self.append(at, content.as_bytes()),
            (Op::CopyDir { src, replace, .. }, Plan::CopyDir(at)) => self.copy_dir(at, src, *replace),
            (Op::Symlink { target, .. }, Plan::Symlink(at)) => self.symlink(at, OsStr::new(target)),
            (_, Plan::Remove(at)) => self.remove(at),
            (_, Plan::Nothing(_) | Plan::Script) => Ok(Done::default()),
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

    fn mkdir(&self, at: Resolved, wanted: Wanted) -> anyhow::Result<Done> {
        if let (End::Dir, Some(step)) = (&at.end, at.steps.last())
            && wanted.is_had_by(&step.dir.top().0.stat()?)
        {
            return Ok(Done::default());
        }
        self.make_dirs(at, wanted)?;
        Ok(Done { changed: true, bytes: 0 })
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

    /// Puts a new file in place. One that it replaces leaves it its owner, mode and xattrs, as `cat > file` would; and stays
    /// where it is what is asked for.
    fn write(&self, at: Resolved, wanted: Wanted, default_mode: u32, content: Content<'_>) -> anyhow::Result<Done> {
        let mut done = Done { changed: true, bytes: content.length()? };
        if let End::Leaf(_, leaf) = &at.end
            && leaf.entry.file_type() == FileType::RegularFile
            && wanted.is_had_by(leaf.entry.stat())
            && content.is_in(&leaf.entry.open_to_read()?)?
        {
            done.changed = false;
            return Ok(done);
        }
        let times = self.now();
        let Place { parent, name, old } = self.parent(at)?;
        let old = old.map(|leaf| leaf.entry).filter(|entry| entry.file_type() == FileType::RegularFile);
        let upper = upper_of(&parent)?;
        keeping_times(upper, || {
            self.writer.place(upper, Name::new(&name)?, |work, aside| {
                let mut file = work.create(aside, Mode::from_raw_mode(0o600))?;
                match content {
                    Content::File(from) if self.dry_run => file.set_len(from.metadata()?.len())?,
                    content => content.put(&mut file)?,
                }
                done.bytes = done.bytes.max(file.metadata()?.len());
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
        Ok(done)
    }

    fn append(&self, at: Resolved, content: &[u8]) -> anyhow::Result<Done> {
        if content.is_empty() {
            return Ok(Done::default());
        }
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
        file.set_times(&times_of(&before))?;
        Ok(Done { changed: true, bytes: content.len() as u64 })
    }

    fn symlink(&self, at: Resolved, target: &OsStr) -> anyhow::Result<Done> {
        if let End::Leaf(_, leaf) = &at.end
            && leaf.entry.file_type() == FileType::Symlink
            && leaf.entry.read_link()? == target
        {
            return Ok(Done::default());
        }
        let times = self.now();
        let Place { parent, name, .. } = self.parent(at)?;
        let upper = upper_of(&parent)?;
        keeping_times(upper, || {
            self.writer.place(upper, Name::new(&name)?, |work, aside| {
                work.symlink(aside, target)?;
                work.entry(aside)?.ok_or(rustix::io::Errno::NOENT)?.set_times(&times)
            })
        })?;
        Ok(Done { changed: true, bytes: 0 })
    }

    fn remove(&self, at: Resolved) -> anyhow::Result<Done> {
        let Place { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        keeping_times(upper, || {
            self.writer.remove(&parent, name)?;
            match upper.entry(name)? {
                Some(whiteout) => whiteout.set_times(&self.now()),
                None => Ok(()),
            }
        })?;
        Ok(Done { changed: true, bytes: 0 })
    }

    /// Copies a tree of the host. Directories merge and keep what they have; files are refused or replaced.
    fn copy_dir(&self, at: Resolved, src: &Path, replace: bool) -> anyhow::Result<Done> {
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
        &self,
        entry: &Entry,
        guest: &Path,
        replace: bool,
        hardlinks: &mut HashMap<(u64, u64), PathBuf>,
    ) -> anyhow::Result<Done> {
        let last = if entry.is_dir() { Last::Follow } else { Last::Keep };
        let at = resolve(&self.root, guest, last)?;
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
        let key = (stat.st_dev, stat.st_ino);
        let first = match hardlinks.get(&key) {
            Some(first) => match resolve(&self.root, first, Last::Keep)?.end {
                End::Leaf(_, leaf) => Some(leaf.entry),
                _ => None,
            },
            None => None,
        };
        if stat.st_nlink > 1 && first.is_none() {
            hardlinks.insert(key, guest.to_owned());
        }
        let mut done = Done { changed: true, bytes: if first.is_none() { stat.st_size as u64 } else { 0 } };
        if let End::Leaf(_, there) = &at.end
            && match &first {
                Some(first) => {
                    (first.stat().st_dev, first.stat().st_ino) == (there.entry.stat().st_dev, there.entry.stat().st_ino)
                }
                None => self.is_copy(entry, &there.entry)?,
            }
        {
            done.changed = false;
            return Ok(done);
        }
        let Place { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        if let Some(first) = first {
            keeping_times(upper, || self.writer.place(upper, name, |work, aside| work.link(aside, &first)))?;
            return Ok(done);
        }
        keeping_times(upper, || {
            self.writer.place(upper, name, |work, aside| {
                let length = if self.dry_run { 0 } else { WHOLE };
                let copy = self.writer.copy_leaf(entry, work, aside, length)?;
                // The host's users mean nothing in the image.
                copy.set_owner(Some(self.user.uid), Some(self.user.gid))?;
                if entry.file_type() == FileType::RegularFile {
                    // A change of owner has cleared them.
                    copy.set_mode(Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                    copy_xattrs(entry, &copy, |name| name == "security.capability")?;
                }
                copy.set_times(&self.times_of(entry))
            })
        })?;
        Ok(done)
    }

    /// Whether `there` is what copying `entry` would make. Xattrs are not compared: whoever changes those changes the file.
    fn is_copy(&self, entry: &Entry, there: &Entry) -> io::Result<bool> {
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
        Ok(one.st_mode == other.st_mode && Content::File(&entry.open_to_read()?).is_in(&there.open_to_read()?)?)
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
