//! An upper while it is being made, by msb-patch or by a commit: aside, and visible in one rename. A run that is killed leaves
//! the old upper or the new one, and what it left aside is cleared away by the next.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, RenameFlags};
use rustix::io::Errno;

use crate::overlay::Merged;
use crate::overlay::beneath::{Dir, Entry, Name};
use crate::overlay::upper::{self, Writer};
use crate::record::Upper;
use crate::{overlay::sync, store::home, tool::exit};

/// An upper's name while it is made in its work directory, which is on the same file system, and where a later
/// [`Writer`] clears away what a run that was killed has left.
const ASIDE: &str = "msb.upper";
/// The names of an upper and its work directory in a sandbox, and in a directory of the caller's.
const UPPER: &str = "upper";
const WORK: &str = "work";

/// An upper that is being made.
#[derive(Debug)]
pub struct Staging {
    /// The directory that holds all that a failure takes away again.
    aside: PathBuf,
    /// Where the new upper is made.
    upper: PathBuf,
    /// Directories that were made for it and are empty again after a failure, the innermost first.
    made: Vec<PathBuf>,
    publish: Publish,
}

#[derive(Debug)]
enum Publish {
    /// The whole sandbox directory is new: it is renamed into place.
    Sandbox(Draft),
    /// A new upper in a directory of the caller's: it is renamed into place.
    New { to: PathBuf, work: PathBuf },
    /// An upper that was there: the two change places.
    Exchange { with: PathBuf, work: PathBuf },
}

/// An upper that is visible. What it replaced is still there, until the caller keeps the new one or takes it back; a run that is
/// killed before either keeps the new one.
#[derive(Debug)]
pub struct Published {
    /// Where the upper is, for the record.
    pub upper: Upper,
    /// Why the rename may be lost if the machine crashes now: its directory could not be synced.
    pub unsynced: Option<io::Error>,
    /// None where nothing was changed.
    staging: Option<Staging>,
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
        home::make_private_dir(&sandboxes).with_context(|| format!("{sandboxes:?}"))?;
        // Nobody may take a directory for abandoned between its making and its locking.
        let _gate = lock_dir(&sandboxes, FlockOperation::LockExclusive).with_context(|| format!("{sandboxes:?}"))?;
        clear_abandoned(&sandboxes);
        let to = sandboxes.join(home::fresh_id()?);
        let aside = home::aside(&to);
        home::make_private_dir(&aside).with_context(|| format!("{aside:?}"))?;
        let lock = lock_dir(&aside, FlockOperation::NonBlockingLockExclusive).with_context(|| format!("{aside:?}"))?;
        Ok(Self { aside, to, _lock: lock })
    }

    /// Makes the sandbox visible, on disk first. The value: why the rename may be lost if the machine crashes now.
    ///
    /// # Errors
    /// What syncing the files or renaming says; then nothing is visible.
    pub fn publish(&self) -> io::Result<Option<io::Error>> {
        sync::tree(&self.aside)?;
        fs::rename(&self.aside, &self.to)?;
        Ok(home::sync_parent(&self.to).err())
    }

    /// Removes the sandbox, visible or not.
    pub fn discard(&self) {
        let _ = fs::rename(&self.to, &self.aside);
        let _ = remove(&self.aside);
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
    /// Starts an upper: a copy of the one that is to be continued, or an empty one. `named` is the caller's directory, which
    /// gets mode 0700 and holds `upper` and `work`; without it an upper is made in a sandbox under the state directory `home`.
    /// With `is_fresh`, one that is there is not continued: the new one is empty, and takes its place.
    ///
    /// # Errors
    /// A message; among the reasons that another process writes the upper.
    pub fn begin(
        home: &Path,
        lower: &[PathBuf],
        continued: Option<&Upper>,
        named: Option<&Path>,
        is_fresh: bool,
    ) -> anyhow::Result<Begun> {
        let layers = Merged::open(lower, None)?;
        let existing = match (named, continued) {
            (None, continued) => continued.cloned(),
            (Some(dir), Some(upper)) if upper.dir == dir || upper.dir == dir.join(UPPER) => Some(upper.clone()),
            (Some(dir), _) => existing_in(dir).with_context(|| format!("upper {dir:?}"))?,
        };
        // One that is gone cannot be continued, and need not be.
        let existing = existing.filter(|upper| !is_fresh || upper.dir.is_dir());
        let (staging, writer, borrowed) = match (existing, named) {
            (Some(upper), _) => Self::exchange(&upper, is_fresh.then_some(&layers))?,
            (None, Some(dir)) => Self::new_in(dir, &layers)?,
            (None, None) => Self::new_sandbox(home, &layers)?,
        };
        let root = Merged::open(lower, Some(&staging.upper)).inspect_err(|_| staging.discard())?;
        Ok(Begun { staging, layers: Layers { root, writer, borrowed } })
    }

    fn new_sandbox(home: &Path, layers: &Merged) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        let draft = Draft::begin(home)?;
        let aside = draft.aside.clone();
        let (upper, work) = (aside.join(UPPER), aside.join(WORK));
        let made = upper::create(&upper, &work, layers).with_context(|| format!("{aside:?}"));
        let writer = made.and_then(|()| lock(&upper, &work)).inspect_err(|_| draft.discard())?;
        Ok((Self { aside, upper, made: Vec::new(), publish: Publish::Sandbox(draft) }, writer, HashSet::new()))
    }

    /// The sandbox that is being made, if it is a whole new one.
    pub fn draft(&self) -> Option<&Draft> {
        match &self.publish {
            Publish::Sandbox(draft) => Some(draft),
            _ => None,
        }
    }

    fn new_in(dir: &Path, layers: &Merged) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        let upper = pair(dir.join(UPPER), dir.join(WORK));
        let mut made = Vec::new();
        if make_missing(dir).with_context(|| format!("upper {dir:?}"))? {
            made.push(dir.to_owned());
        }
        let begun = (|| {
            if make_missing(&upper.work).with_context(|| format!("work {:?}", upper.work))? {
                made.insert(0, upper.work.clone());
            }
            let writer = lock(dir, &upper.work)?;
            if upper.dir.exists() {
                bail!("upper {dir:?}: another msb-patch has made it just now (run this one again to continue it)");
            }
            let aside = upper.work.join(ASIDE);
            upper::create_upper(&aside, layers).with_context(|| format!("{aside:?}"))?;
            Ok((aside, writer))
        })();
        match begun {
            Ok((aside, writer)) => {
                let publish = Publish::New { to: upper.dir, work: upper.work };
                Ok((Self { upper: aside.clone(), aside, made, publish }, writer, HashSet::new()))
            }
            Err(error) => {
                remove_made(&made);
                Err(error)
            }
        }
    }

    /// Continues an upper, or begins anew on `fresh` layers what is to take its place.
    fn exchange(upper: &Upper, fresh: Option<&Merged>) -> anyhow::Result<(Self, Writer, HashSet<u64>)> {
        if !upper.dir.is_dir() {
            return Err(anyhow!("upper {:?} is gone", upper.dir));
        }
        let made = if make_missing(&upper.work).with_context(|| format!("work {:?}", upper.work))? {
            vec![upper.work.clone()]
        } else {
            Vec::new()
        };
        let locked = (|| {
            if fs::metadata(&upper.dir)?.dev() != fs::metadata(&upper.work)?.dev() {
                bail!(
                    "upper {:?} and its work directory {:?} are on different file systems (name a directory that is not a mount \
                     point)",
                    upper.dir,
                    upper.work
                );
            }
            lock(&upper.dir, &upper.work)
        })();
        let writer = locked.inspect_err(|_| remove_made(&made))?;
        let aside = upper.work.join(ASIDE);
        let publish = Publish::Exchange { with: upper.dir.clone(), work: upper.work.clone() };
        let staging = Self { upper: aside.clone(), aside, made, publish };
        let made = match fresh {
            Some(layers) => upper::create_upper(&staging.upper, layers).map(|()| HashSet::new()),
            None => clone_tree(&upper.dir, &staging.upper),
        };
        match made {
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
    /// What syncing or renaming says; then the old upper is still in its place, and nothing else is left.
    pub fn publish(self, changed: bool) -> anyhow::Result<Published> {
        let upper = match &self.publish {
            Publish::Sandbox(draft) => pair(draft.to.join(UPPER), draft.to.join(WORK)),
            Publish::New { to: dir, work } | Publish::Exchange { with: dir, work } => pair(dir.clone(), work.clone()),
        };
        if matches!(self.publish, Publish::Exchange { .. }) && !changed {
            self.discard();
            return Ok(Published { upper, unsynced: None, staging: None });
        }
        // The rename is the last step that can fail: what comes after it can be told, and not undone.
        let renamed = (|| match &self.publish {
            Publish::Sandbox(draft) => draft.publish(),
            Publish::New { to, .. } => {
                sync::tree(&self.upper)?;
                let dir = to.parent().unwrap_or(Path::new("/"));
                // An empty directory may have been the caller's, with a mode of his.
                fs::set_permissions(dir, Permissions::from_mode(0o700))?;
                fs::rename(&self.upper, to)?;
                Ok(home::sync_parent(to).and_then(|()| home::sync_parent(dir)).err())
            }
            Publish::Exchange { with, .. } => {
                sync::tree(&self.upper)?;
                exchange(&self.upper, with)?;
                Ok(home::sync_parent(with).err())
            }
        })();
        match renamed {
            Ok(unsynced) => Ok(Published { upper, unsynced, staging: Some(self) }),
            Err(error) => {
                self.discard();
                Err(anyhow!(error).context(format!("upper {:?}", upper.dir)))
            }
        }
    }

    /// Takes everything away again, before it is published.
    pub fn discard(&self) {
        let _ = remove(&self.aside);
        remove_made(&self.made);
    }
}

impl Published {
    /// Removes what was replaced. What of it cannot be removed the next writer of the upper clears away.
    pub fn keep(self) -> Upper {
        if let Some(Staging { aside, publish: Publish::Exchange { .. }, .. }) = &self.staging {
            let _ = remove(aside);
        }
        self.upper
    }

    /// Puts what was there before back into its place.
    ///
    /// # Errors
    /// What renaming says; then the new upper stays.
    pub fn take_back(self) -> io::Result<()> {
        let Some(staging) = &self.staging else { return Ok(()) };
        match &staging.publish {
            Publish::Sandbox(draft) => fs::rename(&draft.to, &draft.aside)?,
            Publish::New { to, .. } => fs::rename(to, &staging.upper)?,
            Publish::Exchange { with, .. } => exchange(&staging.upper, with)?,
        }
        staging.discard();
        Ok(())
    }
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

fn pair(dir: PathBuf, work: PathBuf) -> Upper {
    Upper { dir, work, unknown: serde_json::Map::new() }
}

/// The upper that a directory of the caller's is or holds; `None` where one can be made in it.
///
/// Earlier releases made DIR itself the upper, with its work directory at DIR.work: those go on.
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
        // One with a work directory alone is what a run that was killed has left.
        if names == 0 || names == 1 && has(WORK) {
            return Ok(None);
        }
        if has(UPPER) && has(WORK) {
            return Ok(Some(pair(dir.join(UPPER), dir.join(WORK))));
        }
        // The upper of a directory of ours, or of the kernel's overlayfs.
        let work = dir.with_file_name(WORK);
        if dir.file_name().is_some_and(|name| name == UPPER) && work.is_dir() {
            return Ok(Some(pair(dir.to_owned(), work)));
        }
    }
    Ok(Some(pair(dir.to_owned(), beside)))
}

fn lock(upper: &Path, work: &Path) -> anyhow::Result<Writer> {
    Writer::open(work, false).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            anyhow!("upper {upper:?}: in use by another msb-patch or msb-mount (unmount it first)")
        }
        _ => anyhow!(error).context(format!("work {work:?}")),
    })
}

/// Makes a directory that is missing, with mode 0700. True: it was.
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

fn remove(path: &Path) -> io::Result<()> {
    let parent = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    parent.remove_tree(Name::new(path.file_name().unwrap_or_default())?)
}

/// Copies an upper so that changes to the copy leave the original alone. Data is shared by hardlinks; the inodes that
/// are shared so are returned: before one is written to, it is copied. Files that were hardlinked already are copied, once
/// each, since a link more would not show.
fn clone_tree(from: &Path, to: &Path) -> io::Result<HashSet<u64>> {
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
                let copy = upper::clone_leaf(&entry, &to, name)?;
                if stat.st_nlink > 1 {
                    copied.insert(stat.st_ino, copy);
                }
            }
        }
        upper::clone_attributes(&from.to_entry()?, &to.to_entry()?)?;
    }
    Ok(borrowed)
}
