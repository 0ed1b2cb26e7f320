//! A difference between two roots, and how it is printed.

use std::io;
use std::path::Path;

use msb::overlay::beneath::Entry;
use msb::overlay::{Layer, Node};
use msb::record::{Text, printable};
use rustix::fs::FileType;
use serde::Serialize;

/// What has happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    Added,
    Changed,
    Removed,
}

/// A file of one of the roots.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct State {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    pub(crate) layer: String,
}

impl State {
    /// The state of what a name stands for.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub(crate) fn of(node: &Node) -> io::Result<Self> {
        let (entry, layer) = match node {
            Node::Leaf(leaf) => return Ok(Self::of_entry(&leaf.entry, leaf.layer)),
            Node::Dir(dir) => (dir.top().0.to_entry()?, dir.top().1),
        };
        Ok(Self::of_entry(&entry, layer))
    }

    fn of_entry(entry: &Entry, layer: Layer) -> Self {
        let stat = entry.stat();
        let has_size = matches!(entry.file_type(), FileType::RegularFile | FileType::Symlink);
        Self {
            kind: kind(entry.file_type()),
            mode: format!("{:04o}", stat.st_mode & 0o7777),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: has_size.then(|| u64::try_from(stat.st_size).unwrap_or(0)),
            layer: layer_name(layer),
        }
    }
}

/// The name of a layer, as in the report of msb-patch.
pub(crate) fn layer_name(layer: Layer) -> String {
    match layer {
        Layer::Upper => "upper".to_owned(),
        Layer::Lower(number) => format!("lower {number}"),
    }
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}

/// One difference.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    path: Text,
    pub(crate) change: Change,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what: Vec<&'static str>,
    #[serde(flatten)]
    now: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<State>,
}

impl Difference {
    /// The difference between two states of a path, at least one of which exists.
    pub(crate) fn new(path: &Path, before: Option<State>, now: Option<State>, what: Vec<&'static str>) -> Self {
        let change = match (&before, &now) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        Self { path: Path::new("/").join(path).as_os_str().into(), change, what, now, before }
    }

    /// The line for a terminal.
    pub(crate) fn text(&self) -> String {
        let letter = match self.change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Removed => 'D',
        };
        let what = if self.what.is_empty() { String::new() } else { format!(" ({})", self.what.join(", ")) };
        format!("{letter} {}{what}", shown(&self.path))
    }
}

/// A path for a terminal.
pub(crate) fn shown(path: &Text) -> String {
    let path = std::ffi::OsString::from(path.clone());
    printable(&path.to_string_lossy())
}
