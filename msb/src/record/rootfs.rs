//! The member `rootfs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// The read-only base of a root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Rootfs {
    /// Unpacked layers in overlayfs form.
    #[non_exhaustive]
    Layers {
        /// Top first.
        lower: Vec<PathBuf>,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// A directory of the caller, which is never written to.
    #[non_exhaustive]
    Dir {
        /// The directory, as the only element.
        lower: Vec<PathBuf>,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// A disk image with a root file system in it.
    #[non_exhaustive]
    Disk {
        /// The image file.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
}

impl Rootfs {
    /// Unpacked layers, the top one first.
    pub fn layers(lower: Vec<PathBuf>) -> Self {
        Self::Layers { lower, unknown: Unknown::new() }
    }

    /// A directory of the caller.
    pub fn dir(path: PathBuf) -> Self {
        Self::Dir { lower: vec![path], unknown: Unknown::new() }
    }

    /// A disk image.
    pub fn disk(path: PathBuf, format: DiskFormat) -> Self {
        Self::Disk { path, format, unknown: Unknown::new() }
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// An EROFS file system, which is read-only. What a guest writes is on a scratch disk above it.
    Erofs,
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Erofs => "erofs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_shown_as_in_json() {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Erofs] {
            assert_eq!(serde_json::to_value(format).unwrap(), format.to_string());
        }
    }
}
