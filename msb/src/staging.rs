//! An upper while it is being made, by msb-patch or by a commit: aside, and visible in one rename. A run that is killed leaves
//! the old upper or the new one, and what it left aside is cleared away by the next.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, RenameFlags};

use crate::overlay::beneath::{Dir, Entry, Name};
use crate::overlay::upper::{self, WHOLE, Writer, copy_attributes};
use crate::overlay::{Merged, whiteout};
use crate::record::Upper;
use crate::{exit, state, sync};

/// An upper's name while it is made in its work directory, which is on the same file system, and where a later
/// [`Writer`] clears away what a run that was killed has left.
const ASIDE: &str = "msb.upper";

/// An upper that is being made.
#[derive(Debug)]
pub struct Staging {
    /// The directory that holds all that a failure takes away again.
    aside: PathBuf,
    /// Where the new upper is made.
    upper: PathBuf,
    /// The work directory, where it was not there before.
    made_work: Option<PathBuf>,
    publish: Publish,
}

#[derive(Debug)]
enum Publish {
    /// The whole sandbox directory is new: it is renamed into place.
    Sandbox(Draft),
    /// An upper of the caller's that was not there: it is renamed into place.
    New { to: PathBuf, work: PathBuf },
    /// An upper that was there: the two change places.
    Exchange { with: PathBuf, work: PathBuf },
}

/// What [`Staging::begin`] opens.
pub struct Begun {
    /// The staging.
    pub staging: Staging,
    /// What operations work on.
    pub layers: Layers,
}

/// The layers while the upper is being made.
#[derive(Debug)]
pub struct Layers {
    /// The layers with the new upper above them.
    pub root: Merged,
    /// The right to change the new upper.
    pub writer: Writer,
    /// Files of the new upper that are still the old one's, by inode.
    pub borrowed: HashSet<u64>,
}

/// A sandbox's directory while it is being made: locked, so that it is told from an abandoned one.
#[derive(Debug)]
pub struct Draft {
    /// Where it is made.
    pub aside: PathBuf,
    /// Where it will be.
    pub to: PathBuf,
    _lock: File,
}

impl Draft {
    /// Starts a new sandbox under the state directory `home`, and clears away those that were never finished.
    ///
    /// # Errors
    /// What making or locking says.
    pub fn begin(home: &Path) -> anyhow::Result<Self> {
        let sandboxes = home.join("sandboxes");
        state::make_private_dir(&sandboxes).with_context(|| format!("{sandboxes:?}"))?;
        // Nobody may take a directory for abandoned between its making and its locking.
        let _gate = lock_dir(&sandboxes, FlockOperation::LockExclusive).with_context(|| format!("{sandboxes:?}"))?;
        clear_abandoned(&sandboxes);
        let to = sandboxes.join(state::fresh_id()?);
        let aside = state::aside(&to);
        state::make_private_dir(&aside).with_context(|| format!("{aside:?}"))?;
        let lock = lock_dir(&aside, FlockOperation::NonBlockingLockExclusive).with_context(|| format!("{aside:?}"))?;
        Ok(Self { aside, to, _lock: lock })
    }

    /// Makes the sandbox visible, on disk first.
    ///
    /// # Errors
    /// What syncing or renaming says.
    pub fn publish(&self) -> io::Result<()> {
        sync::tree(&self.aside)?;
        fs::rename(&self.aside, &self.to)?;
        state::sync_parent(&self.to)
    }
}

fn lock_dir(dir: &Path, how: FlockOperation) -> io::Result<File> {
    let dir = File::open(dir)?;
    rustix::fs::flock(&dir, how)?;
    Ok(dir)
}

/// Sandboxes that were never finished: dotted, and nobody holds their lock. What cannot be removed is somebody else's
/// trouble, not this run's.
fn clear_abandoned(sandboxes: &Path) {
    for child in fs::read_dir(sandboxes).into_iter().flatten().flatten() {
        if child.file_name().as_bytes().starts_with(b".")
            && let Ok(_lock) = lock_dir(&child.path(), FlockOperation::NonBlockingLockExclusive)
            && let Err(error) = remove(&child.path())
        {
            exit::warn("msb", &format!("{:?}: left by an earlier run, and cannot be removed: {error}", child.path()));
        }
    }
}

impl Staging {
    /// Starts an upper: a copy of the one that is to be continued, or an empty one, under the state directory `home` where
    /// nobody names a place.
    ///
    /// # Errors
    /// Words; among them that another process writes the upper.
    pub fn begin(
        home: &Path,
        lower: &[PathBuf],
        continued: Option<&Upper>,
        named: Option<&Path>,
    ) -> anyhow::Result<Begun> {
        let layers = Merged::open(lower, None)?;
        let existing = match (named, continued) {
            (Some(dir), Some(upper)) if upper.dir == dir => Some(upper.clone()),
            (None, Some(upper)) => Some(upper.clone()),
            (Some(dir), _) if dir.exists() => Some(beside(dir)),
            _ => None,
        };
        let (staging, writer, borrowed) = match (existing, named) {
            (Some(upper), _) => Self::exchange(&upper)?,
            (None, Some(dir)) => Self::new_upper(dir, &layers)?,
            (None, None) => Self::new_sandbox(home, &layers)?,
        };
        let root = Merged::open(lower, Some(&staging.upper))?;
        Ok(Begun { staging, layers: Layers { root, writer, borrowed } })
    }

    fn new_sandbox(home: &Path, layers: &Merged) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        let draft = Draft::begin(home)?;
        let aside = draft.aside.clone();
        let (upper, work) = (aside.join("upper"), aside.join("work"));
        upper::create(&upper, &work, layers).with_context(|| format!("{aside:?}"))?;
        let writer = lock(&upper, &work)?;
        Ok((Self { aside, upper, made_work: None, publish: Publish::Sandbox(draft) }, writer, HashSet::new()))
    }

    /// The sandbox that is being made, if it is a whole new one.
    pub fn draft(&self) -> Option<&Draft> {
        match &self.publish {
            Publish::Sandbox(draft) => Some(draft),
            _ => None,
        }
    }

    fn new_upper(dir: &Path, layers: &Merged) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        let work = beside(dir).work;
        let made_work = make_work(&work)?;
        let writer = lock(dir, &work)?;
        if dir.exists() {
            bail!("upper {dir:?}: another msb-patch has made it just now (run this one again to continue it)");
        }
        let aside = work.join(ASIDE);
        let publish = Publish::New { to: dir.to_owned(), work: work.clone() };
        let staging = Self { upper: aside.clone(), aside, made_work: made_work.then_some(work), publish };
        match upper::create_upper(&staging.upper, layers) {
            Ok(()) => Ok((staging, writer, HashSet::new())),
            Err(error) => {
                staging.discard();
                Err(error).with_context(|| format!("{:?}", staging.upper))
            }
        }
    }

    fn exchange(upper: &Upper) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        if !upper.dir.is_dir() {
            return Err(anyhow!("upper {:?} is gone", upper.dir));
        }
        let made_work = make_work(&upper.work)?;
        if fs::metadata(&upper.dir)?.dev() != fs::metadata(&upper.work)?.dev() {
            if made_work {
                let _ = fs::remove_dir(&upper.work);
            }
            bail!(
                "upper {:?} and its work directory {:?} are on different file systems (name a directory that is no mount point)",
                upper.dir,
                upper.work
            );
        }
        let writer = lock(&upper.dir, &upper.work)?;
        let aside = upper.work.join(ASIDE);
        let publish = Publish::Exchange { with: upper.dir.clone(), work: upper.work.clone() };
        let made_work = made_work.then(|| upper.work.clone());
        let staging = Self { upper: aside.clone(), aside, made_work, publish };
        match clone_tree(&upper.dir, &staging.upper, &writer) {
            Ok(borrowed) => Ok((staging, writer, borrowed)),
            Err(error) => {
                staging.discard();
                Err(error).with_context(|| format!("copy of upper {:?}", upper.dir))
            }
        }
    }

    /// Makes the new upper visible, on disk first. One that is continued and was not `changed` stays untouched, so that its
    /// age says so too.
    ///
    /// # Errors
    /// What syncing or renaming says; then the old upper is still there.
    pub fn publish(self, changed: bool) -> anyhow::Result<Upper> {
        if let Publish::Exchange { with, work } = &self.publish
            && !changed
        {
            self.discard();
            return Ok(Upper { dir: with.clone(), work: work.clone(), unknown: serde_json::Map::new() });
        }
        let published = (|| match &self.publish {
            Publish::Sandbox(draft) => draft.publish(),
            Publish::New { to, .. } => {
                sync::tree(&self.upper)?;
                fs::rename(&self.upper, to)?;
                state::sync_parent(to)
            }
            Publish::Exchange { with, .. } => {
                sync::tree(&self.upper)?;
                rustix::fs::renameat_with(CWD, &self.upper, CWD, with, RenameFlags::EXCHANGE)?;
                state::sync_parent(with)
            }
        })();
        if let Err(error) = published {
            self.discard();
            return Err(anyhow!(error).context("upper"));
        }
        let (dir, work) = match &self.publish {
            Publish::Sandbox(draft) => (draft.to.join("upper"), draft.to.join("work")),
            Publish::New { to, work } => (to.clone(), work.clone()),
            Publish::Exchange { with, work } => {
                // What is aside is the old one now.
                let _ = remove(&self.aside);
                (with.clone(), work.clone())
            }
        };
        Ok(Upper { dir, work, unknown: serde_json::Map::new() })
    }

    /// Takes everything away again.
    pub fn discard(&self) {
        let _ = remove(&self.aside);
        if let Some(work) = &self.made_work {
            let _ = fs::remove_dir(work);
        }
    }
}

/// An upper that the caller names has its work directory beside it.
fn beside(dir: &Path) -> Upper {
    let mut work = dir.as_os_str().to_owned();
    work.push(".work");
    Upper { dir: dir.to_owned(), work: work.into(), unknown: serde_json::Map::new() }
}

fn lock(upper: &Path, work: &Path) -> anyhow::Result<Writer> {
    Writer::open(work, false).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            anyhow!("upper {upper:?}: in use by another msb-patch or msb-mount (unmount it first)")
        }
        _ => anyhow!(error).context(format!("work {work:?}")),
    })
}

/// Makes a work directory that is missing. True: it was.
fn make_work(work: &Path) -> anyhow::Result<bool> {
    if work.is_dir() {
        return Ok(false);
    }
    rustix::fs::mkdir(work, Mode::RWXU).map_err(io::Error::from).with_context(|| format!("work {work:?}"))?;
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    let parent = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    parent.remove_tree(Name::new(path.file_name().unwrap_or_default())?)
}

/// Copies an upper so that changes to the copy leave the original alone. Data is shared by hardlinks; the inodes that
/// are shared so are returned, for whoever wants to write to one must copy it first. Files that were hardlinked already
/// are copied, once each, since a link more would not show.
fn clone_tree(from: &Path, to: &Path, writer: &Writer) -> io::Result<HashSet<u64>> {
    rustix::fs::mkdir(to, Mode::from_raw_mode(0o700))?;
    let (from_root, to_root) = (Dir::open(from)?, Dir::open(to)?);
    let mut borrowed = HashSet::new();
    let mut copied: HashMap<u64, Entry> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let (from, to) = (from_root.descend(&path)?, to_root.descend(&path)?);
        for child in from.read()? {
            let child = child?;
            let child = OsStr::from_bytes(child.file_name().to_bytes());
            let Ok(name) = Name::new(child) else { continue };
            let Some(entry) = from.entry(name)? else { continue };
            let stat = entry.stat();
            if entry.is_dir() {
                to.mkdir(name, Mode::from_raw_mode(0o700))?;
                pending.push(path.join(child));
            } else if entry.file_type() == FileType::RegularFile && stat.st_nlink == 1 {
                to.link(name, &entry)?;
                borrowed.insert(stat.st_ino);
            } else if let Some(first) = copied.get(&stat.st_ino) {
                to.link(name, first)?;
            } else {
                let copy = writer.copy_leaf(&entry, &to, name, WHOLE)?;
                if stat.st_nlink > 1 {
                    copied.insert(stat.st_ino, copy);
                }
            }
        }
        let (from, to) = (from.to_entry()?, to.to_entry()?);
        copy_attributes(&from, &to)?;
        if whiteout::is_opaque(&from.to_dir()?)? {
            whiteout::make_opaque(&to.to_dir()?)?;
        }
    }
    Ok(borrowed)
}
