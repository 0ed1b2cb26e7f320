//! The messages of a commit: an overlayfs upper as a stream, from a guest that has nothing else to do.
//!
//! The root comes first, as a directory; what is in a directory follows it, and [`What::Leave`] ends it. A name is one
//! component, so nothing in a stream can say where else to go. A file's content follows it, as data and holes that add up to
//! its size.

use serde::{Deserialize, Serialize};

use super::exec::Text;
use crate::record::owner::Id;

/// One file of an upper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name in the directory that is open; of the root, and of [`What::Leave`], empty.
    #[serde(default)]
    pub name: Option<Text>,
    /// What it is.
    pub what: What,
    /// Owner, mode, times and xattrs; none for a whiteout, a link or [`What::Leave`].
    #[serde(default)]
    pub attributes: Option<Attributes>,
    /// For a regular file with several names: the number by which [`What::Link`] means it.
    #[serde(default)]
    pub number: Option<u64>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// What follows is in it.
    Directory {
        /// Whether it hides what the layers below have there.
        opaque: bool,
    },
    /// The end of the directory.
    Leave,
    /// Data and holes follow.
    File {
        /// In bytes.
        size: u64,
    },
    /// A symlink.
    Symlink {
        /// What it holds.
        target: Text,
    },
    /// Another name of a file that came before.
    Link {
        /// Its number.
        to: u64,
    },
    /// The name is gone.
    Whiteout,
    /// A character or block device.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// What a file looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    /// The permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: Id,
    /// The group.
    pub gid: Id,
    /// Seconds and nanoseconds of the last modification.
    pub mtime: (i64, u32),
    /// Names and values, overlayfs's own left out.
    pub xattrs: Vec<(Text, Text)>,
}
