//! The tree of a layer that is being unpacked. Symlinks of the layer are followed inside its root, as in containerd. Missing
//! parent directories are made and recorded as implied.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::resolve::{End, Error, Last, Step, resolve, resolve_or_make};
use msb::overlay::{Merged, whiteout};
use rustix::fs::Mode;

use crate::directories::{Directories, Origin};
use crate::lower_link::LowerLink;
use msb_archive::{MAX_PATH, Metadata};

const TOO_LONG: &str = "its path is longer than 4095 bytes";
/// An open directory of the layer, and its path.
#[derive(Clone)]
pub(crate) struct Parent {
    pub(crate) path: PathBuf,
    pub(crate) dir: Arc<Dir>,
}

/// The tree of a layer that is being unpacked.
pub(crate) struct Tree {
    /// Of the layer alone, as an upper.
    root: Merged,
    dirs: Directories,
    /// Links to files of the layers below, by the paths of those files.
    lower_links: BTreeMap<PathBuf, LowerLink>,
    /// The last parent: entries come directory by directory.
    last: Option<(Vec<u8>, Parent)>,
}

/// Splits a path of an entry into components. A leading slash and `.` are ignored, and `..` removes the component before it, as
/// in docker and containerd.
///
/// # Errors
/// A message for a `..` that leaves the layer, which no honest layer has.
pub(crate) fn components(path: &[u8]) -> anyhow::Result<Vec<&OsStr>> {
    let mut components: Vec<&OsStr> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => ensure!(components.pop().is_some(), "its path has a \"..\" in it and leaves the layer"),
            part => components.push(OsStr::from_bytes(part)),
        }
    }
    Ok(components)
}

impl Parent {
    /// The last of the directories of a path.
    fn at(steps: &[Step]) -> Self {
        let dir =
            steps.last().and_then(|step| step.dir.upper.clone()).expect("every directory of the layer is in its upper");
        Self { path: path_of(steps), dir }
    }
}

fn path_of(steps: &[Step]) -> PathBuf {
    steps.iter().skip(1).map(|step| &step.name).collect()
}

/// Makes a parent directory that has no entry of its own so far.
fn make_parent(dirs: &mut Directories, steps: &[Step], name: Name<'_>) -> Result<Arc<Dir>, Error> {
    let above = Parent::at(steps);
    let path = above.path.join(name.as_os_str());
    if path.as_os_str().len() > MAX_PATH {
        return Err(Error::Unusable(TOO_LONG));
    }
    let (dir, origin) = match above.dir.mkdir(name, Mode::RWXU) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            above.dir.unlink(name)?;
            let dir = above.dir.mkdir(name, Mode::RWXU)?;
            whiteout::make_opaque(&dir)?;
            (dir, Origin::Replaced)
        }
        other => (other?, Origin::Implied),
    };
    dirs.insert(&path, origin).map_err(Error::Unusable)?;
    Ok(Arc::new(dir))
}

impl Tree {
    /// The tree of the empty directory `root`.
    ///
    /// # Errors
    /// The error of opening it.
    pub(crate) fn new(root: &Path) -> anyhow::Result<Self> {
        let root = Merged::open(&[] as &[&Path], Some(root))?;
        Ok(Self { root, dirs: Directories::default(), lower_links: BTreeMap::new(), last: None })
    }

    fn root(&self) -> &Dir {
        self.root.top().0
    }

    /// The links to files of the layers below.
    pub(crate) fn take_lower_links(&mut self) -> Vec<LowerLink> {
        std::mem::take(&mut self.lower_links).into_values().collect()
    }

    /// Calls `visit` for each directory of the layer, parents first.
    ///
    /// # Errors
    /// The error of opening one, and those of `visit`.
    pub(crate) fn for_each_dir(
        &self,
        mut visit: impl FnMut(&Path, &Origin, Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.dirs.for_each(|path, origin| visit(path, origin, self.root().descend(path)?.to_entry()?))
    }

    /// Records the attributes of a directory until all of its entries exist.
    ///
    /// # Errors
    /// A message if the list of the layer's directories needs too much memory.
    pub(crate) fn list(&mut self, path: &Path, metadata: Metadata) -> anyhow::Result<()> {
        self.dirs.insert(path, Origin::Listed(metadata)).map_err(anyhow::Error::msg)
    }

    /// The directory that `components` lead to, made where it is missing. A file in the way is replaced, as it is when layers are
    /// unpacked on top of each other.
    ///
    /// # Errors
    /// A message for a symlink loop or a path that grows too long; the errors of opening and making.
    pub(crate) fn parent(&mut self, components: &[&OsStr]) -> anyhow::Result<Parent> {
        let key = components.iter().map(|part| part.as_bytes()).collect::<Vec<_>>().join(&b'/');
        if let Some((last, parent)) = &self.last
            && *last == key
        {
            return Ok(parent.clone());
        }
        let path: PathBuf = components.iter().collect();
        // One call is enough if every component is already a directory of this layer, which is the usual case.
        let parent = match self.root().descend(&path) {
            Ok(dir) => Parent { path, dir: Arc::new(dir) },
            Err(_) => {
                let dirs = &mut self.dirs;
                let mut make = |steps: &[Step], name: Name<'_>| make_parent(dirs, steps, name);
                Parent::at(&resolve_or_make(&self.root, &Path::new("/").join(path), &mut make)?)
            }
        };
        self.last = Some((key, parent.clone()));
        Ok(parent)
    }

    /// The directory that `components` lead to, if the layer has it.
    ///
    /// # Errors
    /// As [`Self::parent`].
    fn find(&self, components: &[&OsStr]) -> anyhow::Result<Option<Parent>> {
        let path: PathBuf = [OsStr::new("/")].iter().chain(components).collect();
        match resolve(&self.root, &path, Last::Follow) {
            Ok(resolved) => Ok(matches!(resolved.end, End::Dir).then(|| Parent::at(&resolved.steps))),
            Err(Error::NotDirectory(_) | Error::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what this layer has at `name`. Returns whether there was anything.
    ///
    /// # Errors
    /// The error of removing.
    pub(crate) fn clear(&mut self, parent: &Parent, name: Name<'_>) -> io::Result<bool> {
        let Some(there) = parent.dir.entry(name)? else { return Ok(false) };
        // The path to the last parent may contain it, even if it is a symlink.
        self.last = None;
        if there.is_dir() {
            self.dirs.remove_tree(&parent.path.join(name.as_os_str()));
        }
        parent.dir.remove_tree(name)?;
        Ok(true)
    }

    /// Makes the directory of an entry, or reuses an existing one.
    ///
    /// # Errors
    /// The error of making.
    pub(crate) fn directory(&mut self, parent: &Parent, name: Name<'_>, metadata: Metadata) -> anyhow::Result<()> {
        let path = parent.path.join(name.as_os_str());
        ensure!(path.as_os_str().len() <= MAX_PATH, TOO_LONG);
        let is_there = match parent.dir.mkdir(name, Mode::RWXU) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                parent.dir.entry(name)?.is_some_and(|entry| entry.is_dir())
            }
            Err(error) => return Err(error).context("mkdir"),
        };
        if !is_there {
            // It replaces a whiteout or a file of this layer, so what the lower layers have here stays hidden.
            self.clear(parent, name)?;
            whiteout::make_opaque(&parent.dir.mkdir(name, Mode::RWXU)?)?;
        }
        self.list(&path, metadata)
    }

    /// Hides `name` of the lower layers. What this layer has there stays.
    ///
    /// # Errors
    /// The error of making the whiteout.
    pub(crate) fn whiteout(&mut self, parent: &Parent, name: Name<'_>) -> anyhow::Result<()> {
        match parent.dir.entry(name)? {
            None => {}
            Some(there) if there.is_dir() => {
                whiteout::make_opaque(&there.to_dir()?)?;
                if let Some(origin @ Origin::Implied) = self.dirs.get_mut(&parent.path.join(name.as_os_str())) {
                    *origin = Origin::Replaced;
                }
                return Ok(());
            }
            Some(there) => {
                let link = self.lower_links.get(&parent.path.join(name.as_os_str()));
                if link.is_none_or(|link| link.inode != there.stat().st_ino) {
                    return Ok(());
                }
                // The name of a file below, which keeps its other name in this layer.
                parent.dir.unlink(name)?;
            }
        }
        whiteout::make_whiteout(&parent.dir, name)?;
        Ok(whiteout::hide_whiteouts(&parent.dir)?)
    }

    /// The target of the hardlink `link`. A symlink in the last component is not followed, as in `link(2)`. If the layer does not
    /// have it, an empty file stands in for a file of a layer below.
    ///
    /// # Errors
    /// A message if the target is a directory, or this layer has removed it.
    pub(crate) fn link_target(&mut self, path: &[u8], link: PathBuf) -> anyhow::Result<Entry> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let parts = components(path).map_err(|_| anyhow!("hardlink target {shown:?} is outside of the layer"))?;
        let Some((last, parents)) = parts.split_last() else { bail!("hardlink target {shown:?} is not a file") };
        let name = Name::new(last)?;
        let target = match self.find(parents)? {
            Some(parent) => parent.dir.entry(name)?,
            None => None,
        };
        match target {
            Some(entry) if entry.is_dir() => bail!("hardlink target {shown:?} is a directory"),
            Some(entry) if !whiteout::is_whiteout(entry.stat()) => Ok(entry),
            Some(_) => bail!("hardlink target {shown:?}: this layer has removed it"),
            None => {
                let above: PathBuf = [OsStr::new("/")].iter().chain(parents).collect();
                // Making the directory would remove the file.
                let is_blocked = matches!(resolve(&self.root, &above, Last::Follow), Err(Error::NotDirectory(_)));
                ensure!(!is_blocked, "hardlink target {shown:?}: this layer has a file in its path");
                let parent = self.parent(parents)?;
                let empty = Entry::of_open(parent.dir.create(name, Mode::RUSR | Mode::WUSR)?)?;
                let (target, inode) = (parent.path.join(last), empty.stat().st_ino);
                let bytes = size_of::<(PathBuf, LowerLink)>() + 2 * target.as_os_str().len() + link.as_os_str().len();
                self.dirs.reserve(bytes).map_err(|_| anyhow!("too many hardlinks to the layers below"))?;
                self.lower_links.insert(target.clone(), LowerLink { target, name: link, inode });
                // Opened again by its name: a link is made to that.
                parent.dir.entry(name)?.context("it vanished")
            }
        }
    }
}
