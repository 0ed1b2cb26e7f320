//! The merge rule: which layer answers for a name.
//!
//! A root is a stack of directories in overlayfs form, one upper at most on any number of lowers. Looking a name up in
//! a merged directory asks its parts from the top: the first non-directory answers alone, directories merge until one
//! is opaque or something else is below, a whiteout ends the search; a redirect says that lower layers have the rest of a
//! renamed part elsewhere, and a metacopy has its data below. Everything that reads or writes layers calls this room; no other
//! file decides what is visible. Source: the kernel's `Documentation/filesystems/overlayfs.rst`.

pub mod beneath;
#[cfg(feature = "store")]
pub mod commit;
pub mod device;
pub mod error;
pub mod live;
mod marks;
pub mod mountinfo;
#[cfg(feature = "store")]
pub mod reach;
pub mod resolve;
mod search;
pub mod upper;
pub mod whiteout;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;

use beneath::{Dir, Entry, Name};
use marks::Marks;

/// The place of a layer in the stack.
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

/// A directory as the layers together show it.
///
/// Cloning shares the descriptors. A value is a snapshot of which directories take part: after a copy-up made
/// elsewhere, look the directory up again.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The part in the writable layer, if it is there already.
    pub upper: Option<Arc<Dir>>,
    /// The parts in the lower layers, top first. Empty where the upper part hides them.
    pub lower: Vec<LowerDir>,
    /// The roots of the lower layers, top first: an absolute redirect leads from there.
    roots: Arc<[LowerDir]>,
    /// Whether the upper part says that the lower ones are elsewhere.
    is_redirected: bool,
}

/// A file that is not a directory, and the layer that answers for it.
#[derive(Debug)]
pub struct Leaf {
    /// The file.
    pub entry: Entry,
    /// Its layer.
    pub layer: Layer,
    /// The file of a lower layer that has the data, where `entry` is a metacopy: it has the attributes and the size alone.
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

/// Whether all files of an upper are as we and a guest write them: 0/0 devices for whiteouts, opaque directories, and every file
/// with its own data at its own place.
///
/// # Errors
/// What reading the tree says, and a message for marks that cannot be followed.
pub fn is_plain(upper: &Dir) -> io::Result<bool> {
    let mut is_plain = true;
    upper.walk(|path, entry| {
        let marks = Marks::of(entry).map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))?;
        is_plain &= marks.are_plain();
        Ok(())
    })?;
    Ok(is_plain)
}

/// Raises the number of files that this process may have open as far as it may: looking a path up holds a descriptor for
/// each step in each layer, and there may be hundreds of layers.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let limit: u64 = limit.unwrap_or(1 << 20);
    // Root may go up to the kernel's limit, others to their own.
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
    /// What `open(2)` says; the error names the directory.
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

    /// A directory that is in the upper alone, somewhere below this one.
    pub fn new_upper(&self, upper: Arc<Dir>) -> Self {
        Self { upper: Some(upper), lower: Vec::new(), roots: Arc::clone(&self.roots), is_redirected: false }
    }

    /// This directory, once it is copied up to `upper`.
    pub fn copied_up(&self, upper: Arc<Dir>) -> Self {
        Self { upper: Some(upper), ..self.clone() }
    }

    /// The part that identifies the directory: the topmost lower one, so that copying it up does not change it; but the upper one
    /// where that takes its lower parts from elsewhere, for there they may be those of another directory as well.
    pub fn identity(&self) -> &Dir {
        match self.lower.first() {
            Some(lower) if !self.is_redirected => &lower.dir,
            _ => self.top().0,
        }
    }

    /// The part that answers for the directory's own owner, mode, times and xattrs.
    pub fn top(&self) -> (&Dir, Layer) {
        match (&self.upper, self.lower.first()) {
            (Some(upper), _) => (upper, Layer::Upper),
            (None, Some(lower)) => (&lower.dir, Layer::Lower(lower.layer)),
            (None, None) => unreachable!("a merged directory has a part"),
        }
    }

    /// Whether more than one layer takes part.
    pub fn is_merge(&self) -> bool {
        self.lower.len() + usize::from(self.upper.is_some()) > 1
    }

    /// Looks `name` up by the merge rule.
    ///
    /// # Errors
    /// What opening in a layer says, but for ENOENT; EIO for a metacopy without data below; a message for a redirect that cannot be
    /// followed.
    pub fn lookup(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(self.upper.as_ref(), name)
    }

    /// Looks `name` up in the lower layers alone: what would show if the upper had no such name.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_lower(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(None, name)
    }

    /// The visible names, without `.` and `..`, each once, in no particular order.
    ///
    /// # Errors
    /// What reading a part says.
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
        // Hidden names too: a whiteout answers for its name.
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
        // As the kernel does, files are examined only in a directory that says that they may be whiteouts.
        let files_may_be = Marks::of(&dir.to_entry()?)?.has_xattr_whiteouts;
        for child in dir.read()? {
            let child = child?;
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            let mut file_type = child.file_type();
            let mut is_whiteout = false;
            // A file system may not tell types.
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

    /// Whether nothing is visible.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.list()?.is_empty())
    }
}
