//! The merge rule: which layer answers for a name.
//!
//! A root is a stack of directories in overlayfs form, one upper at most on any number of lowers. Looking a name up in
//! a merged directory asks its parts from the top: the first non-directory answers alone, directories merge until one
//! is opaque or something else is below, a whiteout ends the search. Everything that reads or writes layers calls this
//! room; no other file decides what is visible. Source: the kernel's `Documentation/filesystems/overlayfs.rst`.

pub mod beneath;
pub mod live;
pub mod resolve;
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
}

/// A file that is no directory, and the layer that answers for it.
#[derive(Debug)]
pub struct Leaf {
    /// The file.
    pub entry: Entry,
    /// Its layer.
    pub layer: Layer,
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
        Ok(Self { upper, lower: lower.collect::<io::Result<_>>()? })
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
    /// What opening in a layer says, but for ENOENT.
    pub fn lookup(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        let upper = self.upper.iter().map(|dir| (dir, Layer::Upper));
        let lower = self.lower.iter().map(|part| (&part.dir, Layer::Lower(part.layer)));
        Self::lookup_in(upper.chain(lower), name)
    }

    /// Looks `name` up in the lower layers alone: what would show if the upper had no such name.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_lower(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        Self::lookup_in(self.lower.iter().map(|part| (&part.dir, Layer::Lower(part.layer))), name)
    }

    fn lookup_in<'a>(parts: impl Iterator<Item = (&'a Arc<Dir>, Layer)>, name: Name<'_>) -> io::Result<Option<Node>> {
        let mut found: Option<Self> = None;
        let mut parts = parts.peekable();
        while let Some((part, layer)) = parts.next() {
            let Some(entry) = part.entry(name)? else { continue };
            if !entry.is_dir() {
                return Ok(match found {
                    Some(merged) => Some(Node::Dir(merged)),
                    None if whiteout::is_whiteout(entry.stat()) => None,
                    None => Some(Node::Leaf(Leaf { entry, layer })),
                });
            }
            let dir = Arc::new(entry.into_dir()?);
            // The lowest hides nothing.
            let is_opaque = parts.peek().is_some() && whiteout::is_opaque(&dir)?;
            let merged = found.get_or_insert(Self { upper: None, lower: Vec::new() });
            match layer {
                Layer::Upper => merged.upper = Some(dir),
                Layer::Lower(layer) => merged.lower.push(LowerDir { layer, dir }),
            }
            if is_opaque {
                break;
            }
        }
        Ok(found.map(Node::Dir))
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
        for child in dir.read()? {
            let child = child?;
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            let mut file_type = child.file_type();
            let mut is_whiteout = false;
            // Only a device may be a whiteout, and a file system may not tell types.
            if matches!(file_type, FileType::CharacterDevice | FileType::Unknown) {
                let Some(entry) = dir.entry(name)? else { continue };
                file_type = entry.file_type();
                is_whiteout = whiteout::is_whiteout(entry.stat());
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
