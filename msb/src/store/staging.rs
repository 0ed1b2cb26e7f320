//! An upper while it is being made, by msb-patch or by a commit: in a staging directory, and visible in one rename. A run that is killed
//! leaves the old upper or the new one, and the next run removes its staging directory.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use super::clone::{clone_tree, fill_from, has_more_names};
use super::draft::Draft;
use super::layout::{self, UPPER, WORK};
use super::publish::{make_private_dir, remove_tree, sync_parent};
use super::{Error, sync};
use crate::overlay::Merged;
use crate::overlay::beneath::Dir;
use crate::overlay::error::At;
use crate::overlay::fold::Fold;
use crate::overlay::journal::{self, STAGED};
use crate::overlay::upper::{self, Writer};
use crate::record::Upper;

/// What a new upper starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The upper that exists, in whose place it will be, or an empty one.
    Continue,
    /// The same. An upper with more names than this is not copied: the changes are made above it and then folded into it.
    Fold(usize),
    /// The same, in the store and for no longer than this run: the upper that exists is only read, and may be in use.
    Trial,
    /// An empty one, which will be in the place of the upper that exists.
    Fresh,
    /// A copy of the upper that exists, which stays as it is.
    Copy,
}

/// An upper that is being made.
#[derive(Debug)]
pub struct Staging {
    /// The staging directory, which a failure removes.
    dir: PathBuf,
    /// Where the new upper is made: the staging directory, or a directory in it.
    upper: PathBuf,
    /// Directories that were made for it, the innermost first. They are empty again after a failure.
    made: Vec<PathBuf>,
    publish: Publish,
}

/// How an upper becomes visible.
#[derive(Debug)]
enum Publish {
    /// The whole sandbox is new and is renamed into place.
    Sandbox(Draft),
    /// The upper is new in a directory of the caller's and is renamed into place.
    New { to: PathBuf, work: PathBuf },
    /// The upper changes places with an existing one.
    Exchange { with: PathBuf, work: PathBuf },
    /// The upper is folded into an existing one.
    Fold { into: PathBuf, work: PathBuf, lower: Vec<PathBuf>, done: Option<Fold> },
}

/// An upper that is visible. The one that it replaced exists until the caller decides for one of them. A run that is killed before that
/// keeps the new one.
#[derive(Debug)]
pub struct Published {
    /// Where the upper is, for the record.
    pub upper: Upper,
    /// Why a crash of the machine may undo the rename: its directory could not be synced.
    pub unsynced: Option<io::Error>,
    /// `None` if nothing was changed.
    staging: Option<Staging>,
}

/// The layers while the upper is being made.
#[derive(Debug)]
pub struct Layers {
    /// The layers with the new upper on top.
    pub root: Merged,
    /// The right to change the new upper.
    pub writer: Writer,
    /// The inode numbers of files that the new upper shares with the old one. They must be copied before they are written to.
    pub shared: HashSet<u64>,
    /// Whether the topmost lower layer is the upper that is continued.
    pub is_above: bool,
}

impl Staging {
    /// Starts an upper.
    ///
    /// `named` is a directory of the caller's. It gets mode 0700 and holds `upper` and `work`. Without it the upper is made in a sandbox
    /// in the store at `home`. The upper that exists is the one in `named`, else `continued`; only that one is copied.
    ///
    /// # Errors
    /// [`Error::Caller`] if another process writes the upper, or it is gone, or a copy has no place.
    pub fn begin(
        home: &Path,
        lower: &[PathBuf],
        continued: Option<&Upper>,
        named: Option<&Path>,
        start: Start,
    ) -> Result<(Self, Layers), Error> {
        let layers_alone = Merged::open(lower, None)?;
        let is_fresh = start == Start::Fresh;
        if start == Start::Copy {
            let (staging, writer) = Self::copy(home, &layers_alone, continued, named)?;
            let root = Merged::open(lower, Some(&staging.upper)).inspect_err(|_| staging.discard())?;
            return Ok((staging, Layers { root, writer, shared: HashSet::new(), is_above: false }));
        }
        let existing = match (named, continued) {
            (None, continued) => continued.cloned(),
            (Some(dir), Some(upper)) if upper.dir == dir || upper.dir == dir.join(UPPER) => Some(upper.clone()),
            (Some(dir), _) => existing_in(dir).at(|| format!("upper {dir:?}"))?,
        };
        // An upper that is gone can be replaced, but not continued.
        let existing = existing.filter(|upper| !is_fresh || upper.dir.is_dir());
        if let Some(upper) = existing.as_ref().filter(|upper| !upper.dir.is_dir()) {
            return Err(gone(&upper.dir));
        }
        let above = |upper: &Upper| -> Vec<PathBuf> { [&upper.dir].into_iter().chain(lower).cloned().collect() };
        let (staging, writer, shared, layers) = match (existing, named) {
            (Some(upper), _) if start == Start::Trial => {
                upper::recover(&upper.work).at(|| format!("work {:?}", upper.work))?;
                let layers = above(&upper);
                let (staging, writer) = Self::new_sandbox(home, &Merged::open(&layers, None)?)?;
                (staging, writer, HashSet::new(), Some(layers))
            }
            (Some(upper), _) => {
                let is_large = |least| has_more_names(&upper.dir, least).at(|| format!("upper {:?}", upper.dir));
                let layers = match start {
                    Start::Fold(least) if is_large(least)? => Some(above(&upper)),
                    _ => None,
                };
                let fresh = is_fresh.then_some(&layers_alone);
                let (staging, writer, shared) = Self::exchange(&upper, fresh, layers.as_deref())?;
                (staging, writer, shared, layers)
            }
            (None, Some(dir)) if start != Start::Trial => {
                let (staging, writer) = Self::new_in(dir, &layers_alone)?;
                (staging, writer, HashSet::new(), None)
            }
            (None, _) => {
                let (staging, writer) = Self::new_sandbox(home, &layers_alone)?;
                (staging, writer, HashSet::new(), None)
            }
        };
        let is_above = layers.is_some();
        let root = Merged::open(layers.as_deref().unwrap_or(lower), Some(&staging.upper));
        let root = root.inspect_err(|_| staging.discard())?;
        Ok((staging, Layers { root, writer, shared, is_above }))
    }

    /// Copies `from` with all data: both uppers may be written to later. Without `from` the new one is empty.
    fn copy(home: &Path, layers: &Merged, from: Option<&Upper>, named: Option<&Path>) -> Result<(Self, Writer), Error> {
        if let Some(dir) = named
            && existing_in(dir).at(|| format!("upper {dir:?}"))?.is_some()
        {
            return Err(Error::Caller(format!("upper {dir:?}: exists (name another directory for the copy)")));
        }
        let _source = from.map(lock_source).transpose()?;
        let (staging, writer) = match named {
            Some(dir) => Self::new_in(dir, layers)?,
            None => Self::new_sandbox(home, layers)?,
        };
        if let Some(from) = from {
            let copied = fill_from(&from.dir, &staging.upper, false);
            copied.inspect_err(|_| staging.discard()).at(|| format!("copy of upper {:?}", from.dir))?;
        }
        Ok((staging, writer))
    }

    fn new_sandbox(home: &Path, layers: &Merged) -> Result<(Self, Writer), Error> {
        let draft = Draft::begin(&layout::sandboxes(home))?;
        let dir = draft.dir.clone();
        let (upper, work) = (dir.join(UPPER), dir.join(WORK));
        let made = upper::create(&upper, &work, layers)
            .at(|| format!("upper {upper:?}: owner and mode of the layers' root directory"));
        let writer = made.and_then(|()| lock_upper(&upper, &work)).inspect_err(|_| draft.discard())?;
        Ok((Self { dir, upper, made: Vec::new(), publish: Publish::Sandbox(draft) }, writer))
    }

    /// The sandbox that is being made, if all of it is new.
    pub fn draft(&self) -> Option<&Draft> {
        match &self.publish {
            Publish::Sandbox(draft) => Some(draft),
            _ => None,
        }
    }

    fn new_in(dir: &Path, layers: &Merged) -> Result<(Self, Writer), Error> {
        let upper = Upper::new(dir.join(UPPER), dir.join(WORK));
        if layout::is_sandbox(dir)
            && let Some(sandboxes) = dir.parent()
        {
            make_private_dir(sandboxes).at(|| format!("{sandboxes:?}"))?;
        }
        let mut made = Vec::new();
        if make_missing(dir).at(|| format!("upper {dir:?}"))? {
            made.push(dir.to_owned());
        }
        let begun = (|| {
            if make_missing(&upper.work).at(|| format!("work {:?}", upper.work))? {
                made.insert(0, upper.work.clone());
            }
            let writer = lock_upper(dir, &upper.work)?;
            if upper.dir.exists() {
                return Err(Error::Caller(format!(
                    "upper {dir:?}: another msb-patch has made it just now (run this one again to continue it)"
                )));
            }
            let staged = upper.work.join(STAGED);
            upper::create_upper(&staged, layers).at(|| format!("{staged:?}"))?;
            Ok((staged, writer))
        })();
        match begun {
            Ok((staged, writer)) => {
                let publish = Publish::New { to: upper.dir, work: upper.work };
                Ok((Self { upper: staged.clone(), dir: staged, made, publish }, writer))
            }
            Err(error) => {
                remove_made(&made);
                Err(error)
            }
        }
    }

    /// Copies an upper; with `fresh`, makes an empty one on those layers. It will take the place of `upper`. With `above`, makes an empty
    /// one on those layers, the topmost of which is `upper`.
    fn exchange(
        upper: &Upper,
        fresh: Option<&Merged>,
        above: Option<&[PathBuf]>,
    ) -> Result<(Self, Writer, HashSet<u64>), Error> {
        let made = if make_missing(&upper.work).at(|| format!("work {:?}", upper.work))? {
            vec![upper.work.clone()]
        } else {
            Vec::new()
        };
        let locked = (|| {
            if fs::metadata(&upper.dir)?.dev() != fs::metadata(&upper.work)?.dev() {
                return Err(Error::Caller(format!(
                    "upper {:?} and its work directory {:?} are on different file systems (name a directory that is not a mount \
                     point)",
                    upper.dir, upper.work
                )));
            }
            lock_upper(&upper.dir, &upper.work)
        })();
        let writer = locked.inspect_err(|_| remove_made(&made))?;
        let staged = upper.work.join(STAGED);
        let (into, work) = (upper.dir.clone(), upper.work.clone());
        let publish = match above {
            None => Publish::Exchange { with: into, work },
            Some(layers) => {
                Publish::Fold { into, work, lower: layers.get(1..).unwrap_or_default().to_vec(), done: None }
            }
        };
        let staging = Self { upper: staged.clone(), dir: staged, made, publish };
        let made = match (fresh, above) {
            (Some(layers), _) => upper::create_upper(&staging.upper, layers).map(|()| HashSet::new()),
            (None, Some(layers)) => Merged::open(layers, None)
                .and_then(|layers| upper::create_upper(&staging.upper, &layers))
                .map(|()| HashSet::new()),
            (None, None) => clone_tree(&upper.dir, &staging.upper),
        };
        match made {
            Ok(shared) => Ok((staging, writer, shared)),
            Err(error) => {
                staging.discard();
                Err(error).at(|| format!("copy of upper {:?}", upper.dir))
            }
        }
    }

    /// Syncs the new upper and makes it visible. A continued upper that was not `changed` is not touched, so its times stay.
    ///
    /// # Errors
    /// The error of syncing or renaming. The old upper is still in its place then, and the staging directory is removed. After a fold that
    /// could be neither done nor undone, both stay as they are, and the next [`Writer`] completes it.
    pub fn publish(mut self, changed: bool) -> Result<Published, Error> {
        let upper = match &self.publish {
            Publish::Sandbox(draft) => Upper::new(draft.to.join(UPPER), draft.to.join(WORK)),
            Publish::New { to: dir, work }
            | Publish::Exchange { with: dir, work }
            | Publish::Fold { into: dir, work, .. } => Upper::new(dir.clone(), work.clone()),
        };
        if matches!(self.publish, Publish::Exchange { .. } | Publish::Fold { .. }) && !changed {
            self.discard();
            return Ok(Published { upper, unsynced: None, staging: None });
        }
        // The rename is the last step that can fail. What fails after it is reported, not undone.
        let renamed: io::Result<_> = (|| match &mut self.publish {
            Publish::Sandbox(draft) => draft.publish(),
            Publish::New { to, .. } => {
                sync::tree(&self.upper)?;
                let dir = to.parent().unwrap_or(Path::new("/"));
                // An empty directory of the caller's may have had any mode.
                fs::set_permissions(dir, Permissions::from_mode(0o700))?;
                fs::rename(&self.upper, &*to)?;
                Ok(sync_parent(to).and_then(|()| sync_parent(dir)).err())
            }
            Publish::Exchange { with, .. } => {
                sync::tree(&self.upper)?;
                exchange(&self.upper, with)?;
                Ok(sync_parent(with).err())
            }
            Publish::Fold { into, work, lower, done } => {
                sync::tree(&self.upper)?;
                let work = Dir::open(work)?;
                *done = Some(Fold::run(lower, into, &Dir::open(&self.upper)?, &work)?);
                Ok(Fold::sync(&work).err())
            }
        })();
        match renamed {
            Ok(unsynced) => Ok(Published { upper, unsynced, staging: Some(self) }),
            Err(error) => {
                self.discard();
                Err(error).at(|| format!("upper {:?}", upper.dir))
            }
        }
    }

    /// Removes the upper that was not published, and what was made for it. What a journal still names stays: it may have the old upper's
    /// files, and the next [`Writer`] needs it.
    pub fn discard(&self) {
        if let Publish::Fold { work, .. } = &self.publish
            && Dir::open(work).and_then(|work| journal::exists(&work)).unwrap_or(true)
        {
            return;
        }
        let _ = remove_tree(&self.dir);
        remove_made(&self.made);
    }
}

impl Published {
    /// Decides for the new upper, and removes the one that it replaced. What cannot be removed is left to the next [`Writer`].
    pub fn keep(self) -> Upper {
        if let Some(Staging { dir, publish: Publish::Exchange { .. } | Publish::Fold { .. }, .. }) = &self.staging {
            let _ = remove_tree(dir);
        }
        self.upper
    }

    /// Decides for the old state, and restores it.
    ///
    /// # Errors
    /// The error of renaming; the new upper stays then.
    pub fn take_back(self) -> io::Result<()> {
        let Some(staging) = &self.staging else { return Ok(()) };
        match &staging.publish {
            Publish::Sandbox(draft) => fs::rename(&draft.to, &draft.dir)?,
            Publish::New { to, .. } => fs::rename(to, &staging.upper)?,
            Publish::Exchange { with, .. } => exchange(&staging.upper, with)?,
            Publish::Fold { work, done: Some(done), .. } => {
                done.undo(&Dir::open(&staging.upper)?, &Dir::open(work)?)?
            }
            Publish::Fold { done: None, .. } => {}
        }
        staging.discard();
        Ok(())
    }
}

/// Locks an upper that is copied.
fn lock_source(from: &Upper) -> Result<Option<OwnedFd>, Error> {
    if !from.dir.is_dir() {
        return Err(gone(&from.dir));
    }
    match upper::lock_to_read(&from.work) {
        Ok(lock) => Ok(Some(lock)),
        // Nothing can write an upper without its work directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(&from.dir)),
        Err(error) => Err(error).at(|| format!("work {:?}", from.work)),
    }
}

fn gone(upper: &Path) -> Error {
    Error::Caller(format!("upper {upper:?} is gone"))
}

fn in_use(upper: &Path) -> Error {
    Error::Caller(upper::in_use(upper))
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// The upper that a directory of the caller's is or holds; `None` if there is none and one can be made in it.
///
/// Earlier releases made DIR itself the upper, with its work directory at DIR.work. Those are still accepted.
fn existing_in(dir: &Path) -> io::Result<Option<Upper>> {
    if !dir.exists() {
        return Ok(None);
    }
    let beside = {
        let mut beside = dir.as_os_str().to_owned();
        beside.push(".work");
        PathBuf::from(beside)
    };
    let names = fs::read_dir(dir)?.count();
    let has = |name: &str| dir.join(name).is_dir();
    let is_private = fs::metadata(dir)?.mode() & 0o077 == 0;
    if !beside.is_dir() || is_private && has(WORK) {
        // A killed run leaves a work directory alone.
        if names == 0 || names == 1 && has(WORK) {
            return Ok(None);
        }
        if has(UPPER) && has(WORK) {
            return Ok(Some(Upper::new(dir.join(UPPER), dir.join(WORK))));
        }
        // The caller may name the upper itself, of a directory made by us or for the kernel's overlayfs.
        let work = dir.with_file_name(WORK);
        if dir.file_name().is_some_and(|name| name == UPPER) && work.is_dir() {
            return Ok(Some(Upper::new(dir.to_owned(), work)));
        }
    }
    Ok(Some(Upper::new(dir.to_owned(), beside)))
}

fn lock_upper(upper: &Path, work: &Path) -> Result<Writer, Error> {
    match Writer::open(work, false) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(upper)),
        other => other.at(|| format!("work {work:?}")),
    }
}

/// Makes a directory with mode 0700 unless it exists. Returns whether it was made.
fn make_missing(dir: &Path) -> io::Result<bool> {
    match rustix::fs::mkdir(dir, Mode::RWXU) {
        Err(Errno::EXIST) if dir.is_dir() => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

fn remove_made(made: &[PathBuf]) {
    for dir in made {
        let _ = fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_journal_names_is_not_discarded() {
        let scratch = tempfile::tempdir().unwrap();
        let (into, work) = (scratch.path().join(UPPER), scratch.path().join(WORK));
        let staged = work.join(STAGED);
        fs::create_dir(&into).unwrap();
        fs::create_dir_all(&staged).unwrap();
        journal::write(&Dir::open(&work).unwrap(), &into, &[]).unwrap();
        let publish = Publish::Fold { into, work: work.clone(), lower: Vec::new(), done: None };
        let staging = Staging { dir: staged.clone(), upper: staged.clone(), made: Vec::new(), publish };
        staging.discard();
        assert!(staged.exists());
        drop(Writer::open(&work, false).unwrap());
        fs::create_dir(&staged).unwrap();
        staging.discard();
        assert!(!staged.exists());
    }
}
