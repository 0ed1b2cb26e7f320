//! The root that operations change, in an upper that nobody sees yet: what they all do to it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use msb::overlay::WHOLE;
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::resolve::{End, Resolved, Step, Trail};
use msb::overlay::upper::{Writer, upper_of};
use msb::overlay::{Layer, Leaf, Merged};
use msb::store::staging::Layers;
use rustix::fs::{FileType, Mode, Timespec, Timestamps};

use crate::attributes::{Wanted, set_attributes};
use crate::found::Found;
use crate::kept::Kept;
use crate::op::{Op, Operation};
use crate::user::User;

const DIR_MODE: u32 = 0o755;

/// The largest file whose data a dry run copies too, in bytes: one that an operation behind may look into.
const LOOKED_INTO: u64 = 1 << 20;

/// What an operation came to.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Whether the upper is another now; what was asked for may have been so already.
    pub changed: bool,
    /// How much data it brings, in bytes.
    pub bytes: u64,
    /// What was there before, if the report wants that.
    pub found: Option<Found>,
}

impl Done {
    pub(crate) fn changed(found: Option<Found>) -> Self {
        Self { changed: true, bytes: 0, found }
    }

    pub(crate) fn unchanged(found: Option<Found>) -> Self {
        Self { changed: false, bytes: 0, found }
    }
}

/// How a root is changed.
#[derive(Debug)]
pub struct Settings {
    /// Whether only the shape of things matters, and data need not be copied.
    pub dry_run: bool,
    /// Whether anybody wants to know what was there.
    pub is_reported: bool,
    /// The modification time for what is made: `SOURCE_DATE_EPOCH`, or the clock's.
    pub epoch: Option<i64>,
    /// Who owns what is made.
    pub user: User,
    /// Where relative paths of the host begin; empty for the working directory.
    pub src_dir: PathBuf,
}

/// Where an operation writes: a name in a directory that is in the upper.
pub(crate) struct Place {
    pub(crate) parent: Merged,
    pub(crate) name: OsString,
    /// What is there now, if it is no directory.
    pub(crate) old: Option<Leaf>,
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
    /// Files of the new upper that a dry run has left without their data, by inode.
    hollow: HashSet<u64>,
    pub(crate) dry_run: bool,
    is_reported: bool,
    pub(crate) epoch: Option<i64>,
    pub(crate) user: User,
    src_dir: PathBuf,
    /// The way to where the last path led.
    pub(crate) trail: Trail,
    /// The times of where the last change was.
    pub(crate) kept: Kept,
}

impl Target {
    /// The root of these layers.
    pub fn new(layers: Layers, settings: Settings) -> Self {
        let Layers { root, writer, shared: borrowed } = layers;
        let Settings { dry_run, is_reported, epoch, user, src_dir } = settings;
        Self {
            root,
            writer,
            borrowed,
            hollow: HashSet::new(),
            dry_run,
            is_reported,
            epoch,
            user,
            src_dir,
            trail: Trail::default(),
            kept: Kept::default(),
        }
    }

    /// Carries an operation out. A script is not a file of the root, and nothing is done for it.
    ///
    /// # Errors
    /// A message without the operation's name and path.
    pub fn run(&mut self, op: &Op) -> anyhow::Result<Done> {
        match op.on_root() {
            Some(op) => self.run_on_root(op),
            None => Ok(Done::default()),
        }
    }

    /// Carries an operation on the root out.
    ///
    /// # Errors
    /// A message without the operation's name and path.
    pub fn run_on_root(&mut self, op: &dyn Operation) -> anyhow::Result<Done> {
        op.run(self).map_err(|error| self.user.explain(error))
    }

    /// Finishes the upper, behind the last operation.
    ///
    /// # Errors
    /// What `utimensat(2)` says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.kept.release()
    }

    pub(crate) fn found(&self, at: &Resolved, action: &'static str) -> Option<Found> {
        self.is_reported.then(|| Found::at(at, action))
    }

    pub(crate) fn found_nothing(&self, path: &OsStr) -> Option<Found> {
        self.is_reported.then(|| Found::nothing(Path::new(path)))
    }

    /// A path of the host, from where relative ones begin.
    pub(crate) fn on_host(&self, src: &OsStr) -> PathBuf {
        self.src_dir.join(src)
    }

    pub(crate) fn now(&self) -> Timestamps {
        let time = match self.epoch {
            Some(seconds) => Timespec { tv_sec: seconds, tv_nsec: 0 },
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        Timestamps { last_access: time, last_modification: time }
    }

    /// How much of a file's data is copied.
    pub(crate) fn copied_length(&self, size: u64) -> u64 {
        if self.dry_run && size > LOOKED_INTO { 0 } else { WHOLE }
    }

    /// Takes note of a copy that [`Self::copied_length`] has left without its data.
    pub(crate) fn note_copy(&mut self, copy: &Entry, length: u64) {
        if length == 0 {
            self.hollow.insert(copy.stat().st_ino);
        }
    }

    /// Whether a file's data is missing, since this is a dry run.
    pub(crate) fn is_hollow(&self, file: &Entry) -> bool {
        self.dry_run && self.hollow.contains(&file.stat().st_ino)
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
    pub(crate) fn place<T>(&mut self, at: &Place, make: impl Fn(&Dir, Name<'_>) -> io::Result<T>) -> io::Result<T> {
        let (upper, name) = (upper_of(&at.parent)?, Name::new(&at.name)?);
        self.kept.hold(upper)?;
        match &at.old {
            None => self.writer.make(&at.parent, name, make),
            Some(old) => {
                if old.entry.file_type() == FileType::Symlink {
                    self.trail.forget();
                }
                self.writer.replace(upper, name, make)
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
            return self.writer.replace(upper, Name::new(&at.name)?, make);
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
    pub(crate) fn new_attributes(&self, wanted: Wanted, default_mode: u32) -> Wanted {
        let mode = if self.kept.bequeaths() { None } else { Some(default_mode) };
        Wanted {
            mode: wanted.mode.or(mode),
            uid: wanted.uid.or(Some(self.user.uid)),
            gid: wanted.gid.or(Some(self.user.gid)),
        }
    }

    /// The file at the end of a way, as one that may change: copied up, and copied where its data is still the old upper's.
    pub(crate) fn own(&mut self, at: Resolved) -> anyhow::Result<Entry> {
        let Place { parent, name, old } = self.parent(at)?;
        let leaf = old.context("the file is gone")?;
        if leaf.layer == Layer::Upper && !leaf.is_metacopy() && !self.borrowed.contains(&leaf.entry.stat().st_ino) {
            return Ok(leaf.entry);
        }
        Ok(self.bring(upper_of(&parent)?, Name::new(&name)?, &leaf)?)
    }

    /// Brings a file into the upper, with its data.
    pub(crate) fn bring(&mut self, dir: &Dir, name: Name<'_>, leaf: &Leaf) -> io::Result<Entry> {
        // A copy-up keeps the times of its parent by itself.
        self.kept.release()?;
        let length = self.copied_length(leaf.entry.stat().st_size as u64);
        let is_ours = leaf.layer == Layer::Upper && !self.borrowed.contains(&leaf.entry.stat().st_ino);
        let copy = if is_ours {
            self.writer.copy_up_data(leaf, length)?
        } else {
            self.writer.copy_up(dir, name, leaf, length)?
        };
        self.note_copy(&copy, length);
        Ok(copy)
    }

    /// The same for what may be a directory too, whose attributes are to change.
    pub(crate) fn own_any(&mut self, mut at: Resolved) -> anyhow::Result<Entry> {
        if !matches!(at.end, End::Dir) {
            return self.own(at);
        }
        self.copy_up_steps(&mut at.steps)?;
        // Its times may be among what changes.
        self.kept.release()?;
        Ok(upper_of(&last(&at.steps))?.to_entry()?)
    }

    /// Removes what is at the end of a way.
    pub(crate) fn remove(&mut self, at: Resolved) -> anyhow::Result<()> {
        let Place { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        self.trail.forget();
        self.kept.hold(upper)?;
        self.writer.remove(&parent, name)?;
        self.age_whiteout(upper, name)
    }

    /// Gives a whiteout the time of what is made, where that is not the clock's.
    pub(crate) fn age_whiteout(&self, dir: &Dir, name: Name<'_>) -> anyhow::Result<()> {
        if self.epoch.is_some()
            && let Some(whiteout) = dir.entry(name)?
        {
            whiteout.set_times(&self.now())?;
        }
        Ok(())
    }
}

fn last(steps: &[Step]) -> Merged {
    steps.last().expect("the root stays").dir.clone()
}
