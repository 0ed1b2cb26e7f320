//! The requests for a copy. What is copied is a stream of [entries](super::upper::Entry), data and holes: the source's entry first, then,
//! if it is a directory, what it contains, and [`Leave`](super::upper::What::Leave).

use serde::{Deserialize, Serialize};

use super::exec::Text;

/// Host to guest: send the file or tree at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Its path; a relative one is from the root.
    pub path: Text,
    /// Whether a symlink at its end is followed.
    #[serde(default)]
    pub follow: bool,
}

/// Host to guest: a file or tree follows, for a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The path; a relative one is from the root.
    pub path: Text,
    /// Whether what a directory contains goes into the directory at the path, and not the directory itself.
    #[serde(default)]
    pub contents: bool,
    /// Whether owners, and the attributes of directories that exist, are taken over.
    #[serde(default)]
    pub archive: bool,
}
