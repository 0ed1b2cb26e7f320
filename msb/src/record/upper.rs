//! The member `upper`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// The writable layer, in overlayfs form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Upper {
    /// The directory of the layer.
    pub dir: PathBuf,
    /// overlayfs's work directory, on the same file system.
    pub work: PathBuf,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Upper {
    /// A layer and its work directory.
    pub fn new(dir: PathBuf, work: PathBuf) -> Self {
        Self { dir, work, unknown: Unknown::new() }
    }
}
