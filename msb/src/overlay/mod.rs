//! overlayfs in user space: the merge rule, which says what layer answers for a name, and changes to the upper layer.
//!
//! A root is a stack of directories in overlayfs form: any number of lower layers, and at most one upper layer on top. A lookup in a
//! merged directory searches the layers from the top. The first file that is not a directory is the answer. Directories merge, down to
//! one that is opaque or a layer that has another file there. A whiteout ends the search. Everything that reads or writes layers uses
//! this module, and no other module decides what is visible.
//!
//! The form of the layers, and the rule, are those of the kernel's `Documentation/filesystems/overlayfs.rst`:
//!
//! | feature of overlayfs | layers that have it | changes made here |
//! | --- | --- | --- |
//! | whiteouts: character devices 0/0 | are read | make them |
//! | whiteouts: empty files with the xattr `overlay.whiteout`, in directories with `overlay.opaque=x` | are read | do not make them |
//! | opaque directories: `overlay.opaque=y` | are read | make them |
//! | renamed directories: `overlay.redirect` (`redirect_dir`) | are read, `trusted.` only | do not make them: renaming a directory that a lower layer has fails with EXDEV |
//! | files without data: `overlay.metacopy` (`metacopy`) | are read, `trusted.` only | do not make them; a copy-up copies all data |
//! | fs-verity digests of a metacopy (`verity`) | are ignored | |
//! | the `user.` prefix (`userxattr`) | is read for whiteouts and opaque directories; a redirect or metacopy is refused | is used if `trusted.` is not permitted |
//! | data-only lower layers | are not supported | |
//! | `index`, `nfs_export`: `overlay.origin`, `overlay.nlink` and the like | are ignored | as with `index=off`: copying one name of a lower hardlink up leaves the others below |
//! | xattrs of a nested overlayfs: `overlay.overlay.*` | are not shown | are copied up |
//!
//! # Example
//!
//! ```
//! use std::{ffi::OsStr, fs};
//! use msb::overlay::{Layer, Merged, Node, beneath::Name};
//!
//! let dir = tempfile::tempdir()?;
//! let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
//! fs::create_dir(&upper)?;
//! fs::create_dir_all(lower.join("etc"))?;
//! fs::write(lower.join("etc/hostname"), "lower")?;
//!
//! let root = Merged::open(&[&lower], Some(&upper))?;
//! let Some(Node::Dir(etc)) = root.lookup(Name::new(OsStr::new("etc"))?)? else { panic!("a directory") };
//! let names = etc.list()?;
//! assert_eq!((names[0].name.to_str(), names[0].layer), (Some("hostname"), Layer::Lower(0)));
//! # std::io::Result::Ok(())
//! ```

pub mod attributes;
pub mod beneath;
#[cfg(feature = "store")]
pub mod commit;
mod copy_data;
mod copy_up;
pub mod device;
pub mod error;
mod make;
mod marks;
pub mod mountinfo;
#[cfg(feature = "store")]
pub mod reach;
mod rename;
pub mod resolve;
mod search;
pub mod upper;
pub mod whiteout;

pub use copy_data::{copy_data, copy_to_end};
pub use copy_up::{Prepared, WHOLE, clone_leaf, copy_leaf_as};

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;

use beneath::{Dir, Entry, Name};
use marks::Marks;

/// The position of a layer in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// The writable layer.
    Upper,
    /// A read-only layer; 0 is the topmost.
    Lower(usize),
}

/// A directory of one lower layer.
#[derive(Clone, Debug)]
pub struct LowerDir {
    /// Which layer, 0 the topmost.
    pub layer: usize,
    /// The directory.
    pub dir: Arc<Dir>,
}

/// A directory merged from the directories of several layers.
///
/// Cloning shares the descriptors. A value is a snapshot of which layers have the directory: after a copy-up made elsewhere, look the
/// directory up again.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The directory in the upper, if it has been copied up or made there.
    pub upper: Option<Arc<Dir>>,
    /// The directories in lower layers, top first. Empty if the upper hides them.
    pub lower: Vec<LowerDir>,
    /// The roots of the lower layers, top first: absolute redirects start there.
    roots: Arc<[LowerDir]>,
    /// Whether the directory in the upper has a redirect.
    is_redirected: bool,
}

/// A file that is not a directory, and the layer that answers for it.
#[derive(Debug)]
pub struct Leaf {
    /// The file.
    pub entry: Entry,
    /// Its layer.
    pub layer: Layer,
    /// The file of a lower layer that has the data, if `entry` is a metacopy, which has only attributes and the size.
    data: Option<Box<Entry>>,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Node {
    /// A file of any type but directory.
    Leaf(Leaf),
    /// A directory.
    Dir(Merged),
}

/// A name in a merged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// The file's type.
    pub file_type: FileType,
    /// The file's inode number in its layer.
    pub ino: u64,
    /// The layer that answers for the name.
    pub layer: Layer,
}

/// Whether an upper has no other marks than whiteouts that are 0/0 devices, and opaque directories. We and guests write no others, and
/// a guest reads no others.
///
/// # Errors
/// The error of reading the tree; a message for marks that are refused.
pub fn is_plain(upper: &Dir) -> io::Result<bool> {
    let mut is_plain = true;
    upper.walk(|path, entry| {
        let marks = Marks::of(entry).map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))?;
        is_plain &= marks.are_plain();
        Ok(())
    })?;
    Ok(is_plain)
}

/// Raises the limit of open files of this process to the highest value that it may set. A resolved path has a descriptor open for each
/// of its directories in each layer, and there may be hundreds of layers.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let limit: u64 = limit.unwrap_or(1 << 20);
    // Root may raise it to the limit of the kernel, other users to their hard limit.
    if setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    }
}

impl Leaf {
    /// A file whose data is its own.
    pub fn new(entry: Entry, layer: Layer) -> Self {
        Self { entry, layer, data: None }
    }

    /// The file that holds the data.
    pub fn data(&self) -> &Entry {
        self.data.as_deref().unwrap_or(&self.entry)
    }

    /// Whether the data is in another file than the attributes.
    pub fn is_metacopy(&self) -> bool {
        self.data.is_some()
    }
}

impl Merged {
    /// Opens a stack's root. `lower` is top first.
    ///
    /// # Errors
    /// The error of `open(2)`, with the path.
    pub fn open(lower: &[impl AsRef<Path>], upper: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| {
            let dir = Dir::open(path).map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))?;
            Ok::<_, io::Error>(Arc::new(dir))
        };
        let upper = upper.map(open).transpose()?;
        let lower = lower.iter().enumerate();
        let lower = lower.map(|(layer, path)| Ok(LowerDir { layer, dir: open(path.as_ref())? }));
        let lower = lower.collect::<io::Result<Vec<_>>>()?;
        Ok(Self { upper, roots: lower.clone().into(), lower, is_redirected: false })
    }

    /// A directory that only the upper has, somewhere below this one.
    pub fn new_upper(&self, upper: Arc<Dir>) -> Self {
        Self { upper: Some(upper), lower: Vec::new(), roots: Arc::clone(&self.roots), is_redirected: false }
    }

    /// This directory after its copy-up to `upper`.
    pub fn copied_up(&self, upper: Arc<Dir>) -> Self {
        Self { upper: Some(upper), ..self.clone() }
    }

    /// The directory whose inode number identifies this one: that in the topmost lower layer, so that a copy-up does not change it. With
    /// a redirect it is the one in the upper, since another merged directory may have the same lower ones.
    pub fn identity(&self) -> &Dir {
        match self.lower.first() {
            Some(lower) if !self.is_redirected => &lower.dir,
            _ => self.top().0,
        }
    }

    /// The topmost directory, whose owner, mode, times and xattrs are those of the merged one.
    pub fn top(&self) -> (&Dir, Layer) {
        match (&self.upper, self.lower.first()) {
            (Some(upper), _) => (upper, Layer::Upper),
            (None, Some(lower)) => (&lower.dir, Layer::Lower(lower.layer)),
            (None, None) => unreachable!("a merged directory has a part"),
        }
    }

    /// Whether more than one layer has the directory.
    pub fn is_merge(&self) -> bool {
        self.lower.len() + usize::from(self.upper.is_some()) > 1
    }

    /// Looks `name` up by the merge rule.
    ///
    /// # Errors
    /// The error of opening in a layer, except ENOENT; EIO for a metacopy without data below it; a message for a mark that is refused.
    pub fn lookup(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(self.upper.as_ref(), name)
    }

    /// Looks `name` up in the lower layers only: the result if the upper did not have the name.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_lower(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(None, name)
    }

    /// The visible names without `.` and `..`, each once, in no particular order.
    ///
    /// # Errors
    /// The error of reading in a layer.
    pub fn list(&self) -> io::Result<Vec<Listed>> {
        if !self.is_merge() {
            let (dir, layer) = self.top();
            let mut names = Vec::new();
            Self::list_part(dir, layer, |listed, is_whiteout| {
                if !is_whiteout {
                    names.push(listed);
                }
            })?;
            return Ok(names);
        }
        // Includes names with a whiteout, which hides them in the layers below.
        let mut seen: HashSet<OsString> = HashSet::new();
        let mut names = Vec::new();
        let upper = self.upper.iter().map(|dir| (dir, Layer::Upper));
        let lower = self.lower.iter().map(|part| (&part.dir, Layer::Lower(part.layer)));
        for (part, layer) in upper.chain(lower) {
            Self::list_part(part, layer, |listed, is_whiteout| {
                if seen.insert(listed.name.clone()) && !is_whiteout {
                    names.push(listed);
                }
            })?;
        }
        Ok(names)
    }

    fn list_part(dir: &Dir, layer: Layer, mut each: impl FnMut(Listed, bool)) -> io::Result<()> {
        // As in the kernel, only a directory with this mark is searched for whiteouts that are files.
        let files_may_be = Marks::of(&dir.to_entry()?)?.has_xattr_whiteouts;
        for child in dir.read()? {
            let child = child?;
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            let mut file_type = child.file_type();
            let mut is_whiteout = false;
            // Some file systems do not return types.
            if matches!(file_type, FileType::CharacterDevice | FileType::Unknown)
                || files_may_be && file_type == FileType::RegularFile
            {
                let Some(entry) = dir.entry(name)? else { continue };
                file_type = entry.file_type();
                is_whiteout = whiteout::is_either_whiteout(&entry)?;
            }
            let listed = Listed { name: name.as_os_str().to_owned(), file_type, ino: child.ino(), layer };
            each(listed, is_whiteout);
        }
        Ok(())
    }

    /// Whether no name is visible.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.list()?.is_empty())
    }
}
