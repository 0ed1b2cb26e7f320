//! The types of a merged root: directories that several layers have, the files in them, and the layer that answers for each.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::beneath::{Dir, Entry};
use super::marks::Marks;

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
    pub(super) roots: Arc<[LowerDir]>,
    /// Whether the directory in the upper has a redirect.
    pub(super) is_redirected: bool,
    /// Whether lower layers may have whiteouts in OCI's form too.
    pub(super) has_oci_whiteouts: bool,
}

/// A file that is not a directory, and the layer that answers for it.
#[derive(Debug)]
pub struct Leaf {
    /// The file.
    pub entry: Entry,
    /// Its layer.
    pub layer: Layer,
    /// The file of a lower layer that has the data, if `entry` is a metacopy, which has only attributes and the size.
    pub(super) data: Option<Box<Entry>>,
    /// Whether it may have an `overlay.origin`.
    #[cfg_attr(not(feature = "store"), expect(dead_code, reason = "only uppers on the host have origins"))]
    pub(super) may_have_origin: bool,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Node {
    /// A file of any type but directory.
    Leaf(Leaf),
    /// A directory.
    Dir(Merged),
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

impl Leaf {
    /// A file with its own data. Its `overlay.origin` is not read.
    pub fn new(entry: Entry, layer: Layer) -> Self {
        Self { entry, layer, data: None, may_have_origin: false }
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
        Self::open_with(lower, upper, Dir::open)
    }

    /// As [`Self::open`], without what is mounted in the lower layers. Where the process may not do that, they are opened as they are.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_alone(lower: &[impl AsRef<Path>], upper: Option<&Path>) -> io::Result<Self> {
        Self::open_with(lower, upper, |path| match Dir::open_alone(path) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::NOSYS | Errno::INVAL)) => {
                Dir::open(path)
            }
            other => other,
        })
    }

    fn open_with(
        lower: &[impl AsRef<Path>],
        upper: Option<&Path>,
        open_lower: impl Fn(&Path) -> io::Result<Dir>,
    ) -> io::Result<Self> {
        let at = |path: &Path, dir: io::Result<Dir>| match dir {
            Ok(dir) => Ok(Arc::new(dir)),
            Err(error) => Err(io::Error::new(error.kind(), format!("{path:?}: {error}"))),
        };
        let upper = upper.map(|path| at(path, Dir::open(path))).transpose()?;
        let lower = lower.iter().map(AsRef::as_ref).enumerate();
        let lower = lower.map(|(layer, path)| Ok(LowerDir { layer, dir: at(path, open_lower(path))? }));
        let lower = lower.collect::<io::Result<Vec<_>>>()?;
        Ok(Self { upper, roots: lower.clone().into(), lower, is_redirected: false, has_oci_whiteouts: false })
    }

    /// Also reads whiteouts and opaque directories of lower layers that have OCI's form (`.wh.NAME`), as fuse-overlayfs does. podman
    /// unpacks layers in that form for a mount program.
    pub fn with_oci_whiteouts(self) -> Self {
        Self { has_oci_whiteouts: true, ..self }
    }

    /// A directory that only the upper has, somewhere below this one.
    pub fn new_upper(&self, upper: Arc<Dir>) -> Self {
        Self { upper: Some(upper), lower: Vec::new(), is_redirected: false, ..self.clone() }
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
}
