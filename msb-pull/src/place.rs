//! Resolves an entry's path inside a layer that is being unpacked. Symlinks of the same layer are followed inside the layer's root,
//! as in containerd. Missing parent directories are made and recorded as implied.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use msb::overlay::beneath::{Dir, Name};
use msb::overlay::whiteout;
use rustix::fs::{FileType, Mode};

use crate::tape::{MAX_PATH, Metadata};

/// How many symlinks one path may contain, as in Linux.
const MAX_SYMLINKS: usize = 40;
const TOO_LONG: &str = "its path is longer than 4095 bytes";
/// The most bytes of directories' xattrs that wait for the end of a layer. Real layers have some hundreds.
const MAX_KEPT: usize = 16 << 20;

/// A directory of the layer. Its attributes are applied when all of its entries exist.
#[derive(Debug)]
pub(crate) enum Known {
    /// Only entries below it were listed.
    Implied,
    /// This layer removed what was there before, so the directory is opaque and has default attributes.
    New,
    /// The layer has an entry for it.
    Listed(Metadata),
}

/// An open directory of the layer, and its path.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) dir: Arc<Dir>,
}

/// The tree of a layer that is being unpacked.
pub(crate) struct Tree {
    root: Arc<Dir>,
    /// By path from the root, so that a directory is followed by what is below it.
    dirs: BTreeMap<PathBuf, Known>,
    /// Bytes of xattrs in `dirs`.
    kept: usize,
    /// The last parent: entries come directory by directory.
    last: Option<(Vec<u8>, Place)>,
}

/// Splits a path of an entry into components. A leading slash and `.` are ignored, and `..` removes the component before it, as in
/// docker and containerd.
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

impl Tree {
    pub(crate) fn new(root: Dir) -> Self {
        Self { root: Arc::new(root), dirs: BTreeMap::from([(PathBuf::new(), Known::Implied)]), kept: 0, last: None }
    }

    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// The directories of the layer, parents first.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = (&PathBuf, &Known)> {
        self.dirs.iter()
    }

    /// Records the attributes of a directory until all of its entries exist.
    ///
    /// # Errors
    /// A message if the attributes of a layer's directories need too much memory.
    pub(crate) fn list(&mut self, path: PathBuf, metadata: Metadata) -> anyhow::Result<()> {
        self.kept += metadata.size();
        if let Some(Known::Listed(before)) = self.dirs.insert(path, Known::Listed(metadata)) {
            self.kept -= before.size();
        }
        ensure!(self.kept <= MAX_KEPT, "the layer's directories have more than {MAX_KEPT} bytes of xattrs");
        Ok(())
    }

    /// The directory that `components` lead to, made where it is missing.
    ///
    /// # Errors
    /// A message for a symlink loop or a path that grows too long; the errors of opening and making.
    pub(crate) fn parent(&mut self, components: &[&OsStr]) -> anyhow::Result<Place> {
        let key = components.iter().map(|part| part.as_bytes()).collect::<Vec<_>>().join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == key
        {
            return Ok(place.clone());
        }
        let path: PathBuf = components.iter().collect();
        // One call is enough if every component is already a directory of this layer, which is the usual case.
        let place = match self.root.descend(&path) {
            Ok(dir) => Place { path, dir: Arc::new(dir) },
            Err(_) => self.walk(components, true)?.ok_or_else(|| anyhow!("its parent cannot be made"))?,
        };
        self.last = Some((key, place.clone()));
        Ok(place)
    }

    /// The directory that `components` lead to, if the layer has it.
    ///
    /// # Errors
    /// As [`Self::parent`].
    pub(crate) fn find(&mut self, components: &[&OsStr]) -> anyhow::Result<Option<Place>> {
        self.walk(components, false)
    }

    fn walk(&mut self, components: &[&OsStr], make: bool) -> anyhow::Result<Option<Place>> {
        let mut pending: VecDeque<OsString> = components.iter().map(|&part| part.to_owned()).collect();
        let mut here = Place { path: PathBuf::new(), dir: self.root.clone() };
        let mut symlinks = 0;
        while let Some(part) = pending.pop_front() {
            if part == ".." {
                here.path.pop();
                here.dir = Arc::new(self.root.descend(&here.path)?);
                continue;
            }
            let name = Name::new(&part)?;
            let entry = here.dir.entry(name)?;
            match entry {
                Some(entry) if entry.is_dir() => {
                    here.path.push(&part);
                    here.dir = Arc::new(entry.to_dir()?);
                }
                Some(entry) if entry.file_type() == FileType::Symlink => {
                    symlinks += 1;
                    ensure!(symlinks <= MAX_SYMLINKS, "its path goes through too many symlinks (a loop?)");
                    let target = entry.read_link()?;
                    if target.as_bytes().starts_with(b"/") {
                        here = Place { path: PathBuf::new(), dir: self.root.clone() };
                    }
                    let parts = target.as_bytes().split(|&byte| byte == b'/');
                    for part in parts.filter(|part| !matches!(*part, b"" | b".")).rev() {
                        pending.push_front(OsStr::from_bytes(part).to_owned());
                    }
                }
                _ if !make => return Ok(None),
                there => {
                    // A file in the way is replaced, as it is when layers are unpacked on top of each other.
                    let hides = there.is_some();
                    if hides {
                        here.dir.unlink(name)?;
                    }
                    here.path.push(&part);
                    ensure!(here.path.as_os_str().len() <= MAX_PATH, TOO_LONG);
                    here.dir = Arc::new(here.dir.mkdir(name, Mode::RWXU)?);
                    if hides {
                        whiteout::make_opaque(&here.dir)?;
                    }
                    self.dirs.insert(here.path.clone(), if hides { Known::New } else { Known::Implied });
                }
            }
        }
        Ok(Some(here))
    }

    /// Removes what this layer has at `name`. Returns whether there was anything.
    ///
    /// # Errors
    /// The error of removing.
    pub(crate) fn clear(&mut self, parent: &Place, name: Name<'_>) -> io::Result<bool> {
        let Some(there) = parent.dir.entry(name)? else { return Ok(false) };
        // The path to the last parent may contain it, even if it is a symlink.
        self.last = None;
        if there.is_dir() {
            self.forget(&parent.path.join(name.as_os_str()));
        }
        parent.dir.remove_tree(name)?;
        Ok(true)
    }

    fn forget(&mut self, path: &Path) {
        let below = self.dirs.range::<Path, _>((Bound::Included(path), Bound::Unbounded));
        let gone: Vec<PathBuf> = below.map(|(dir, _)| dir).take_while(|dir| dir.starts_with(path)).cloned().collect();
        for dir in gone {
            if let Some(Known::Listed(metadata)) = self.dirs.remove(&dir) {
                self.kept -= metadata.size();
            }
        }
    }

    /// Makes the directory of an entry, or reuses an existing one.
    ///
    /// # Errors
    /// The error of making.
    pub(crate) fn directory(&mut self, parent: &Place, name: Name<'_>, metadata: Metadata) -> anyhow::Result<()> {
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
        self.list(path, metadata)
    }

    /// Hides `name` of the lower layers. What this layer has there stays.
    ///
    /// # Errors
    /// The error of making the whiteout.
    pub(crate) fn whiteout(&mut self, parent: &Place, name: Name<'_>) -> anyhow::Result<()> {
        match parent.dir.entry(name)? {
            None => whiteout::make_whiteout(&parent.dir, name)?,
            Some(there) if there.is_dir() => {
                whiteout::make_opaque(&there.to_dir()?)?;
                if let Some(known @ Known::Implied) = self.dirs.get_mut(&parent.path.join(name.as_os_str())) {
                    *known = Known::New;
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The target of a hardlink. A symlink in the last component is not followed, as in `link(2)`.
    ///
    /// # Errors
    /// A message if the layer has no such file.
    pub(crate) fn link_target(&mut self, path: &[u8]) -> anyhow::Result<msb::overlay::beneath::Entry> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let parts = components(path).map_err(|_| anyhow!("hardlink target {shown:?} is outside of the layer"))?;
        let Some((last, parents)) = parts.split_last() else { bail!("hardlink target {shown:?} is no file") };
        let found = match self.find(parents)? {
            Some(parent) => parent.dir.entry(Name::new(last)?)?,
            None => None,
        };
        match found {
            Some(entry) if entry.is_dir() => bail!("hardlink target {shown:?} is a directory"),
            Some(entry) if !whiteout::is_whiteout(entry.stat()) => Ok(entry),
            _ => bail!(
                "hardlink target {shown:?} is not in this layer (the link is to a layer below, which is not supported; \
                 rebuild the layer with both files)"
            ),
        }
    }
}
