//! The messages of a commit, an overlayfs upper as a stream, and of a [copy](super::copy).
//!
//! The root comes first, as a directory. The entries of a directory follow it, and [`What::Leave`] ends it. A name is a single
//! component, so a stream cannot refer to a path outside the root. A file's content follows it, as data and holes that add up to its
//! size.

use serde::{Deserialize, Serialize};

use super::exec::Text;
use crate::record::owner::Id;

/// One file of an upper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name in the current directory; none for the root and [`What::Leave`].
    #[serde(default)]
    pub name: Option<Text>,
    /// The type of file.
    pub what: What,
    /// Owner, mode, times and xattrs; none for a whiteout, a link or [`What::Leave`].
    #[serde(default)]
    pub attributes: Option<Attributes>,
    /// For a regular file with several names: the number with which [`What::Link`] refers to it.
    #[serde(default)]
    pub number: Option<u64>,
}

/// The type of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A directory; its entries follow.
    Directory {
        /// Whether it is opaque: it hides the directories of that path in the layers below.
        opaque: bool,
    },
    /// The end of the current directory.
    Leave,
    /// A regular file; data and holes follow.
    File {
        /// In bytes.
        size: u64,
    },
    /// A symlink.
    Symlink {
        /// Its target.
        target: Text,
    },
    /// Another name of an earlier file: a hard link.
    Link {
        /// The number of that file.
        to: u64,
    },
    /// In a copy, another name of an earlier file.
    Hardlink {
        /// The path of that file from the first directory.
        path: Text,
    },
    /// A whiteout: the name is deleted.
    Whiteout,
    /// A character or block device.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// The attributes of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    /// The permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: Id,
    /// The group.
    pub gid: Id,
    /// The time of the last modification, in seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes, without those of overlayfs itself.
    pub xattrs: Vec<(Text, Text)>,
}
