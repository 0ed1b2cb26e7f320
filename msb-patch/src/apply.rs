//! Doing what was planned, in an upper that nobody sees yet.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Context;
use msb::overlay::beneath::{Dir, Entry, Name, times_of};
use msb::overlay::resolve::{End, Resolved, Step, Trail};
use msb::overlay::upper::{WHOLE, Writer, copy_xattrs, upper_of};
use msb::overlay::{Layer, Leaf, Merged};
use msb::staging::Layers;
use rustix::fs::{FileType, Mode, Stat, Timespec, Timestamps};

use crate::content::Content;
use crate::kept::Kept;
use crate::op::{self, Op};
use crate::plan::{Plan, plan};
use crate::user::User;

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

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

/// Attributes that an operation asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
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
pub(crate) struct Place {
    parent: Merged,
    name: OsString,
    /// What is there now, if it is no directory.
    old: Option<Leaf>,
}

/// The root that operations change.
#[derive(Debug)]
pub struct Target {
    /// The merged view: the image's layers and the new upper.
    pub(crate) root: Merged,
    /// The right to change the upper.
    pub(crate) writer: Writer,
    /// Files of the new upper whose data is still the old upper's, by inode: they are copied before they change.
    borrowed: HashSet<u64>,
    /// Whether only the shape of things matters, and data need not be copied.
    pub(crate) dry_run: bool,
    /// The modification time for what is made: `SOURCE_DATE_EPOCH`, or the clock's.
    pub(crate) epoch: Option<i64>,
    /// Who owns what is made.
    pub(crate) user: User,
    /// The way to where the last path led.
    pub(crate) trail: Trail,
    /// The times of where the last change was.
    pub(crate) kept: Kept,
}

impl Target {
    /// The root of these layers. What is made is of the time `epoch`, or of now.
    pub fn new(layers: Layers, dry_run: bool, epoch: Option<i64>, user: User) -> Self {
        let Layers { root, writer, borrowed } = layers;
        Self { root, writer, borrowed, dry_run, epoch, user, trail: Trail::default(), kept: Kept::default() }
    }

    /// Decides what an operation does.
    ///
    /// # Errors
    /// Words, without the operation's name and path.
    pub fn plan(&mut self, op: &Op) -> anyhow::Result<Plan> {
        let plan = plan(&self.root, &mut self.trail, op)?;
        self.user.check(op)?;
        Ok(plan)
    }

    /// Finishes the upper, behind the last operation.
    ///
    /// # Errors
    /// What `utimensat(2)` says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.kept.release()
    }

    /// Carries a plan out. Scripts are not files of the root, and none of our business.
    ///
    /// # Errors
    /// Words, without the operation's name and path.
    pub fn apply(&mut self, op: &Op, plan: Plan) -> anyhow::Result<Done> {
        self.carry_out(op, plan).map_err(|error| self.user.explain(error))
    }

    fn carry_out(&mut self, op: &Op, plan: Plan) -> anyhow::Result<Done> {
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

    pub(crate) fn now(&self) -> Timestamps {
        let time = match self.epoch {
            Some(seconds) => Timespec { tv_sec: seconds, tv_nsec: 0 },
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        Timestamps { last_access: time, last_modification: time }
    }

    /// The place that a way ends at, with its parents made.
    pub(crate) fn parent(&mut self, mut at: Resolved) -> anyhow::Result<Place> {
        match at.end {
            End::Leaf(name, leaf) => {
                self.copy_up_steps(&mut at.steps)?;
                Ok(Place { parent: last(&at.steps), name, old: Some(leaf) })
            }
            End::Missing(mut names) => {
                let name = names.pop().expect("something is missing");
                at.end = End::Missing(names);
                Ok(Place { parent: self.make_dirs(at, Wanted::default())?, name, old: None })
            }
            End::Dir => {
                let step = Arc::make_mut(&mut at.steps).pop().expect("the root is refused before");
                self.copy_up_steps(&mut at.steps)?;
                Ok(Place { parent: last(&at.steps), name: step.name, old: None })
            }
        }
    }

    fn copy_up_steps(&mut self, steps: &mut Arc<Vec<Step>>) -> io::Result<()> {
        if steps.iter().any(|step| step.dir.upper.is_none()) {
            // A copy-up keeps the times of its parent by itself.
            self.kept.release()?;
            self.writer.copy_up_steps(steps)?;
        }
        Ok(())
    }

    /// Puts something new, or in place of what the upper or a layer has. Nobody sees this upper yet, so what is new is made
    /// where it will be, and inherits an ACL as in the guest.
    fn place<T>(&mut self, at: &Place, make: impl Fn(&Dir, Name<'_>) -> io::Result<T>) -> io::Result<T> {
        let (upper, name) = (upper_of(&at.parent)?, Name::new(&at.name)?);
        self.kept.hold(upper)?;
        match &at.old {
            None => self.writer.make(&at.parent, name, make),
            Some(old) => {
                if old.entry.file_type() == FileType::Symlink {
                    self.trail.forget();
                }
                self.writer.place(upper, name, make)
            }
        }
    }

    /// The same for what is to be just what `make` makes of it.
    pub(crate) fn place_exactly<T>(
        &mut self,
        at: &Place,
        make: impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let upper = upper_of(&at.parent)?;
        self.kept.hold(upper)?;
        if at.old.is_none() && self.kept.bequeaths() {
            return self.writer.place(upper, Name::new(&at.name)?, make);
        }
        self.place(at, make)
    }

    /// Makes what is missing and gives the last directory what is wanted; says which directory that is.
    pub(crate) fn make_dirs(&mut self, mut at: Resolved, wanted: Wanted) -> anyhow::Result<Merged> {
        self.copy_up_steps(&mut at.steps)?;
        let mut dir = last(&at.steps);
        let End::Missing(names) = at.end else {
            let entry = upper_of(&dir)?.to_entry()?;
            set_attributes(&entry, entry.stat(), wanted)?;
            return Ok(dir);
        };
        let count = names.len();
        for (place, name) in names.iter().enumerate() {
            let wanted = if place + 1 == count { wanted } else { Wanted::default() };
            dir = self.make_dir(&dir, Name::new(name)?, wanted)?;
        }
        Ok(dir)
    }

    fn mkdir(&mut self, at: Resolved, wanted: Wanted) -> anyhow::Result<Done> {
        if let (End::Dir, Some(step)) = (&at.end, at.steps.last())
            && wanted.is_had_by(&step.dir.top().0.stat()?)
        {
            return Ok(Done::default());
        }
        self.make_dirs(at, wanted)?;
        Ok(Done { changed: true, bytes: 0 })
    }

    fn make_dir(&mut self, parent: &Merged, name: Name<'_>, wanted: Wanted) -> io::Result<Merged> {
        let upper = upper_of(parent)?;
        self.kept.hold(upper)?;
        let mode = wanted.mode.unwrap_or(DIR_MODE);
        self.writer.make_dir(parent, name, Mode::from_raw_mode(mode & 0o777))?;
        let made = upper.dir(name)?;
        let entry = made.to_entry()?;
        set_attributes(&entry, entry.stat(), self.new_attributes(wanted, DIR_MODE))?;
        if self.epoch.is_some() {
            entry.set_times(&self.now())?;
        }
        Ok(parent.new_upper(Arc::new(made)))
    }

    /// What something new in the directory that is held gets: what is wanted, else the owner whom we make things for, and
    /// the mode of its kind if no ACL of the directory has decided.
    fn new_attributes(&self, wanted: Wanted, default_mode: u32) -> Wanted {
        let mode = if self.kept.bequeaths() { None } else { Some(default_mode) };
        Wanted {
            mode: wanted.mode.or(mode),
            uid: wanted.uid.or(Some(self.user.uid)),
            gid: wanted.gid.or(Some(self.user.gid)),
        }
    }

    /// Puts a new file in place. One that it replaces leaves it its owner, mode and xattrs, as `cat > file` would; and stays
    /// where it is what is asked for.
    fn write(&mut self, at: Resolved, wanted: Wanted, default_mode: u32, content: Content<'_>) -> anyhow::Result<Done> {
        if let End::Leaf(_, leaf) = &at.end
            && leaf.entry.file_type() == FileType::RegularFile
            && wanted.is_had_by(leaf.entry.stat())
            && content.is_in(&leaf.data().open_to_read()?)?
        {
            return Ok(Done { changed: false, bytes: content.length()? });
        }
        let at = self.parent(at)?;
        let old = at.old.as_ref().map(|leaf| &leaf.entry).filter(|entry| entry.file_type() == FileType::RegularFile);
        let mode = if old.is_some() { 0o600 } else { wanted.mode.unwrap_or(default_mode) & 0o777 };
        let (dry_run, epoch) = (self.dry_run, self.epoch.map(|_| self.now()));
        let new = self.place(&at, |dir, name| {
            let mut file = dir.create(name, Mode::from_raw_mode(mode))?;
            match content {
                Content::File(from) if dry_run => file.set_len(from.metadata()?.len())?,
                content => content.put(&mut file)?,
            }
            let new = Entry::of_open(file)?;
            if let Some(old) = old {
                copy_xattrs(old, &new, |name| name != "security.capability")?;
            }
            Ok(new)
        })?;
        let bytes = new.stat().st_size as u64;
        match old.map(Entry::stat) {
            Some(old) => {
                let (mode, uid, gid) = (old.st_mode & 0o7777, old.st_uid, old.st_gid);
                let mode = wanted.mode.or(Some(mode));
                let wanted = Wanted { mode, uid: wanted.uid.or(Some(uid)), gid: wanted.gid.or(Some(gid)) };
                // An ACL that it had has changed the mode.
                set_attributes(&new, &new.stat_now()?, wanted)?;
            }
            None => set_attributes(&new, new.stat(), self.new_attributes(wanted, default_mode))?,
        }
        if let Some(times) = epoch {
            new.set_times(&times)?;
        }
        Ok(Done { changed: true, bytes })
    }

    fn append(&mut self, at: Resolved, content: &[u8]) -> anyhow::Result<Done> {
        if content.is_empty() {
            return Ok(Done::default());
        }
        let file = self.own(at)?;
        let before = file.stat_now()?;
        let mut open = file.open(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::APPEND)?;
        open.write_all(content)?;
        // A write by root keeps set-id bits and drops capabilities, as it would in the guest. The times stay: the file
        // is as old as the image says.
        Entry::of_open(open)?.set_times(&times_of(&before))?;
        Ok(Done { changed: true, bytes: content.len() as u64 })
    }

    /// The file at the end of a way, as one that may change: copied up, and copied where its data is still the old upper's.
    pub(crate) fn own(&mut self, at: Resolved) -> anyhow::Result<Entry> {
        let Place { parent, name, old } = self.parent(at)?;
        let leaf = old.context("the file is gone")?;
        let length = if self.dry_run { 0 } else { WHOLE };
        if leaf.layer == Layer::Upper && !self.borrowed.contains(&leaf.entry.stat().st_ino) {
            return Ok(if leaf.is_metacopy() { self.writer.fill(&leaf, length)? } else { leaf.entry });
        }
        // A copy-up keeps the times of its parent by itself.
        self.kept.release()?;
        Ok(self.writer.copy_up(upper_of(&parent)?, Name::new(&name)?, &leaf, length)?)
    }

    fn symlink(&mut self, at: Resolved, target: &OsStr) -> anyhow::Result<Done> {
        if let End::Leaf(_, leaf) = &at.end
            && leaf.entry.file_type() == FileType::Symlink
            && leaf.entry.read_link()? == target
        {
            return Ok(Done::default());
        }
        let at = self.parent(at)?;
        self.place(&at, |dir, name| dir.symlink(name, target))?;
        let made = upper_of(&at.parent)?.entry(Name::new(&at.name)?)?.context("the symlink is gone")?;
        let owner = Wanted { mode: None, ..self.new_attributes(Wanted::default(), 0) };
        set_attributes(&made, made.stat(), owner)?;
        if self.epoch.is_some() {
            made.set_times(&self.now())?;
        }
        Ok(Done { changed: true, bytes: 0 })
    }

    fn remove(&mut self, at: Resolved) -> anyhow::Result<Done> {
        let Place { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        self.trail.forget();
        self.kept.hold(upper)?;
        self.writer.remove(&parent, name)?;
        if self.epoch.is_some()
            && let Some(whiteout) = upper.entry(name)?
        {
            whiteout.set_times(&self.now())?;
        }
        Ok(Done { changed: true, bytes: 0 })
    }
}

fn last(steps: &[Step]) -> Merged {
    steps.last().expect("the root stays").dir.clone()
}

/// Sets what is another, by the file's `stat` of now. Owner first: a change of it clears set-id bits.
fn set_attributes(entry: &Entry, stat: &Stat, wanted: Wanted) -> io::Result<()> {
    let mode = stat.st_mode & 0o7777;
    let is_given_away =
        wanted.uid.is_some_and(|uid| uid != stat.st_uid) || wanted.gid.is_some_and(|gid| gid != stat.st_gid);
    if is_given_away {
        entry.set_owner(wanted.uid, wanted.gid)?;
    }
    match wanted.mode.unwrap_or(mode) {
        wanted if wanted != mode || is_given_away && entry.file_type() != FileType::Symlink => {
            entry.set_mode(Mode::from_raw_mode(wanted))
        }
        _ => Ok(()),
    }
}
