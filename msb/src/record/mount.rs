//! The member `mount`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// A root that is mounted on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Mount {
    /// The mount point.
    pub path: PathBuf,
    /// The process that serves it.
    pub pid: i32,
    /// The type that `/proc/self/mountinfo` shows.
    pub fstype: String,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Mount {
    /// The type of msb-mount's file systems.
    pub const FSTYPE: &str = "fuse.msb";

    /// A mount point, the process that serves it and its type.
    pub fn new(path: PathBuf, pid: i32, fstype: String) -> Self {
        Self { path, pid, fstype, unknown: Unknown::new() }
    }
}
