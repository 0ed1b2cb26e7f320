//! The member `snapshot`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// A saved VM, from which msb-boot starts others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Snapshot {
    /// The directory with its files.
    pub path: PathBuf,
    /// The digest of its description, which has those of its files: `sha256:HEX`.
    pub digest: String,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Snapshot {
    /// A directory and the digest of the description in it.
    pub fn new(path: PathBuf, digest: String) -> Self {
        Self { path, digest, unknown: Unknown::new() }
    }
}
