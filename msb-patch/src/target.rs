//! The root that operations change, and the steps that several of them share. The upper is a staging directory until it is published.

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

use crate::attributes::{RequestedAttributes, set_attributes};
use crate::continued::Continued;
use crate::dir_times::DirTimes;
use crate::path_state::PathState;
use crate::user::User;

const DIR_MODE: u32 = 0o755;

/// The largest file whose data a dry run copies, in bytes: a later operation may read it.
const MAX_DRY_RUN_COPY: u64 = 1 << 20;

/// The result of an operation.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Whether the upper has changed. It has not if the request was already met.
    pub changed: bool,
    /// How much data the operation provides, in bytes.
    pub bytes: u64,
    /// What was at the path before, if there is a report.
    pub before: Option<PathState>,
}

impl Done {
    pub(crate) fn changed(before: Option<PathState>) -> Self {
        Self { changed: true, bytes: 0, before }
    }

    pub(crate) fn unchanged(before: Option<PathState>) -> Self {
        Self { changed: false, bytes: 0, before }
    }
}

/// Settings for all operations.
#[derive(Debug)]
pub struct Settings {
    /// Whether the result is discarded, so that large data need not be copied.
    pub dry_run: bool,
    /// Whether there is a report.
    pub is_reported: bool,
    /// The modification time of new files, `SOURCE_DATE_EPOCH`. `None`: the clock's.
    pub epoch: Option<i64>,
    /// The owner of new files.
    pub user: User,
    /// The directory for relative paths of the host. An empty path is the working directory.
    pub src_dir: PathBuf,
}

/// Where an operation writes: a name in a directory of the upper.
pub(crate) struct Destination {
    pub(crate) parent: Merged,
    pub(crate) name: OsString,
    /// What is there now, unless it is a directory.
    pub(crate) old: Option<Leaf>,
}

/// The root that operations change.
#[derive(Debug)]
pub struct Target {
    /// The merged view: the image's layers and the new upper.
    pub(crate) root: Merged,
    /// Changes the upper.
    pub(crate) writer: Writer,
    /// Files that are hardlinks to the old upper, by inode. They are copied before they change.
    pub(crate) shared_data: HashSet<u64>,
    /// The upper that is continued, if it is the topmost lower layer.
    pub(crate) continued: Option<Continued>,
    /// Files that a dry run has created without their data, by inode.
    without_data: HashSet<u64>,
    pub(crate) dry_run: bool,
    is_reported: bool,
    pub(crate) epoch: Option<i64>,
    pub(crate) user: User,
    src_dir: PathBuf,
    /// The directories of the last path, cached.
    pub(crate) trail: Trail,
    /// The times of the directory that was changed last.
    pub(crate) dir_times: DirTimes,
}

impl Target {
    /// The root that these layers form.
    pub fn new(layers: Layers, settings: Settings) -> Self {
        let Layers { root, writer, shared: shared_data, is_above } = layers;
        let continued = is_above.then(|| Continued::new(&root));
        let Settings { dry_run, is_reported, epoch, user, src_dir } = settings;
        Self {
            root,
            writer,
            shared_data,
            continued,
            without_data: HashSet::new(),
            dry_run,
            is_reported,
            epoch,
            user,
            src_dir,
            trail: Trail::default(),
            dir_times: DirTimes::default(),
        }
    }

    /// Finishes the upper after the last operation.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn finish(&mut self) -> io::Result<()> {
        self.dir_times.restore()
    }

    pub(crate) fn state_before(&self, at: &Resolved, action: &'static str) -> Option<PathState> {
        let mut state = self.is_reported.then(|| PathState::at(at, action))?;
        state.layer = state.layer.map(|layer| self.shown_layer(layer));
        Some(state)
    }

    pub(crate) fn no_state(&self, path: &OsStr) -> Option<PathState> {
        self.is_reported.then(|| PathState::nothing(Path::new(path)))
    }

    /// Resolves a path of the host.
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

    /// How much of a file's data is copied: all, or nothing in a dry run if the file is large.
    pub(crate) fn copied_length(&self, size: u64) -> u64 {
        if self.dry_run && size > MAX_DRY_RUN_COPY { 0 } else { WHOLE }
    }

    /// Notes a copy of `length` bytes from [`Self::copied_length`], which may be without its data.
    pub(crate) fn note_copy(&mut self, copy: &Entry, length: u64) {
        if length == 0 {
            self.without_data.insert(copy.stat().st_ino);
        }
    }

    /// Whether a dry run has created the file without its data.
    pub(crate) fn has_no_data(&self, file: &Entry) -> bool {
        self.dry_run && self.without_data.contains(&file.stat().st_ino)
    }

    /// The destination for a resolved path. Missing parents are created.
    pub(crate) fn parent(&mut self, mut at: Resolved) -> anyhow::Result<Destination> {
        match at.end {
            End::Leaf(name, leaf) => {
                self.copy_up_steps(&mut at.steps)?;
                Ok(Destination { parent: last(&at.steps), name, old: Some(leaf) })
            }
            End::Missing(mut names) => {
                let name = names.pop().expect("something is missing");
                at.end = End::Missing(names);
                Ok(Destination { parent: self.make_dirs(at, RequestedAttributes::default())?, name, old: None })
            }
            End::Dir => {
                let step = Arc::make_mut(&mut at.steps).pop().expect("the root is refused before");
                self.copy_up_steps(&mut at.steps)?;
                Ok(Destination { parent: last(&at.steps), name: step.name, old: None })
            }
        }
    }

    fn copy_up_steps(&mut self, steps: &mut Arc<Vec<Step>>) -> io::Result<()> {
        if steps.iter().any(|step| step.dir.upper.is_none()) {
            // A copy-up preserves the times of its parent itself.
            self.dir_times.restore()?;
            self.writer.copy_up_steps(steps)?;
        }
        Ok(())
    }

    /// Creates something new at a destination, or replaces what is there. The upper is not visible yet, so new files are created in place
    /// and inherit a default ACL as they would in the guest.
    pub(crate) fn create<T>(
        &mut self,
        at: &Destination,
        make: impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let (upper, name) = (upper_of(&at.parent)?, Name::new(&at.name)?);
        self.dir_times.save(upper)?;
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

    /// The same without a default ACL: the result is exactly what `make` creates.
    pub(crate) fn create_exactly<T>(
        &mut self,
        at: &Destination,
        make: impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let upper = upper_of(&at.parent)?;
        self.dir_times.save(upper)?;
        if at.old.is_none() && self.dir_times.has_default_acl() {
            return self.writer.replace(upper, Name::new(&at.name)?, make);
        }
        self.create(at, make)
    }

    /// Creates missing directories, applies the requested attributes to the last one, and returns it.
    pub(crate) fn make_dirs(&mut self, mut at: Resolved, requested: RequestedAttributes) -> anyhow::Result<Merged> {
        self.copy_up_steps(&mut at.steps)?;
        let mut dir = last(&at.steps);
        let End::Missing(names) = at.end else {
            let entry = upper_of(&dir)?.to_entry()?;
            set_attributes(&entry, entry.stat(), requested)?;
            return Ok(dir);
        };
        let count = names.len();
        for (place, name) in names.iter().enumerate() {
            let requested = if place + 1 == count { requested } else { RequestedAttributes::default() };
            dir = self.make_dir(&dir, Name::new(name)?, requested)?;
        }
        Ok(dir)
    }

    fn make_dir(&mut self, parent: &Merged, name: Name<'_>, requested: RequestedAttributes) -> io::Result<Merged> {
        let upper = upper_of(parent)?;
        self.dir_times.save(upper)?;
        let mode = requested.mode.unwrap_or(DIR_MODE);
        self.writer.make_dir(parent, name, Mode::from_raw_mode(mode & 0o777))?;
        let made = upper.dir(name)?;
        let entry = made.to_entry()?;
        set_attributes(&entry, entry.stat(), self.new_attributes(requested, DIR_MODE))?;
        if self.epoch.is_some() {
            entry.set_times(&self.now())?;
        }
        Ok(parent.new_upper(Arc::new(made)))
    }

    /// The attributes of a new file in the current directory: the requested ones, else the owner from the settings, and the default mode
    /// unless a default ACL has set the mode.
    pub(crate) fn new_attributes(&self, requested: RequestedAttributes, default_mode: u32) -> RequestedAttributes {
        let mode = if self.dir_times.has_default_acl() { None } else { Some(default_mode) };
        RequestedAttributes {
            mode: requested.mode.or(mode),
            uid: requested.uid.or(Some(self.user.uid)),
            gid: requested.gid.or(Some(self.user.gid)),
        }
    }

    /// The file at a resolved path, ready for changes: it is copied up, or copied if it is a hardlink to the old upper.
    pub(crate) fn writable_file(&mut self, at: Resolved) -> anyhow::Result<Entry> {
        let Destination { parent, name, old } = self.parent(at)?;
        let leaf = old.context("the file is gone")?;
        if leaf.layer == Layer::Upper && !leaf.is_metacopy() && !self.shared_data.contains(&leaf.entry.stat().st_ino) {
            return Ok(leaf.entry);
        }
        Ok(self.copy_into_upper(upper_of(&parent)?, Name::new(&name)?, &leaf)?)
    }

    /// Copies a file with its data into the upper.
    pub(crate) fn copy_into_upper(&mut self, dir: &Dir, name: Name<'_>, leaf: &Leaf) -> io::Result<Entry> {
        // A copy-up preserves the times of its parent itself.
        self.dir_times.restore()?;
        let length = self.copied_length(leaf.entry.stat().st_size as u64);
        let is_ours = leaf.layer == Layer::Upper && !self.shared_data.contains(&leaf.entry.stat().st_ino);
        let copy = if is_ours {
            self.writer.copy_up_data(leaf, length)?
        } else {
            self.writer.copy_up(dir, name, leaf, length)?
        };
        self.note_copy(&copy, length);
        self.copy_other_names(leaf, &copy)?;
        Ok(copy)
    }

    /// The same for a file or directory whose attributes will change.
    pub(crate) fn writable_entry(&mut self, mut at: Resolved) -> anyhow::Result<Entry> {
        if !matches!(at.end, End::Dir) {
            return self.writable_file(at);
        }
        self.copy_up_steps(&mut at.steps)?;
        // Its times may be what changes.
        self.dir_times.restore()?;
        Ok(upper_of(&last(&at.steps))?.to_entry()?)
    }

    /// Removes what is at a resolved path.
    pub(crate) fn remove(&mut self, at: Resolved) -> anyhow::Result<()> {
        let Destination { parent, name, .. } = self.parent(at)?;
        let (upper, name) = (upper_of(&parent)?, Name::new(&name)?);
        self.trail.forget();
        self.dir_times.save(upper)?;
        self.writer.remove(&parent, name)?;
        self.set_whiteout_time(upper, name)
    }

    /// Sets the time of a whiteout to the epoch, if there is one.
    pub(crate) fn set_whiteout_time(&self, dir: &Dir, name: Name<'_>) -> anyhow::Result<()> {
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
