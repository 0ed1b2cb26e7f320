//! The volumes of a VM: directories and files of the host, and file systems in memory, that are mounted in the guest's root.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// A volume that msb-boot is asked for: a target, and one of `source`, `volume` and `tmpfs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Volume {
    /// What is mounted.
    #[serde(flatten)]
    pub content: VolumeContent,
    /// Where it is mounted in the guest: an absolute path.
    pub target: String,
    /// Whether the guest can only read it.
    #[serde(default)]
    pub readonly: bool,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Volume {
    /// A volume that the guest can write to.
    pub fn new(content: VolumeContent, target: String) -> Self {
        Self { content, target, readonly: false, unknown: Unknown::new() }
    }
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum VolumeContent {
    /// A directory or a regular file of the host.
    Source(PathBuf),
    /// The directory of this name in `$MSB_HOME/volumes`, which is created if it is missing.
    Volume(String),
    /// An empty file system in the guest's memory.
    Tmpfs(Tmpfs),
}

/// A file system in the guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Tmpfs {
    /// The most that it holds, in bytes or with K, M, G or T; null for half of the memory.
    pub size: Option<String>,
    /// The permissions of its root directory, in octal; null for 1777.
    pub mode: Option<String>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A volume of a running VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MountedVolume {
    /// The directory or file of the host; none for a file system in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Where it is mounted in the guest.
    pub target: String,
    /// Whether the guest can only read it.
    pub readonly: bool,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl MountedVolume {
    /// A volume.
    pub fn new(source: Option<PathBuf>, target: String, readonly: bool) -> Self {
        Self { source, target, readonly, unknown: Unknown::new() }
    }
}

/// Checks the name of a volume. It becomes a directory: 1 to 255 letters, digits, `-`, `_` and `.`, the first one a letter or a digit.
///
/// # Errors
/// A message that states the rule.
pub fn check_volume_name(name: &str) -> Result<(), &'static str> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if starts_well && is_plain && name.len() <= 255 {
        Ok(())
    } else {
        Err("a volume's name is 1 to 255 letters, digits, \"-\", \"_\" or \".\", the first a letter or digit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_content_and_keeps_members_that_are_unknown() {
        for text in [
            r#"{"source":"/src","target":"/src","readonly":true}"#,
            r#"{"volume":"cache","target":"/cache","readonly":false,"later":1}"#,
            r#"{"tmpfs":{"size":"64M","mode":"1777","later":2},"target":"/tmp","readonly":false}"#,
        ] {
            let volume: Volume = serde_json::from_str(text).unwrap();
            let again: serde_json::Value = serde_json::to_value(&volume).unwrap();
            assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
        }
        let plain: Volume = serde_json::from_str(r#"{"tmpfs":{},"target":"/tmp"}"#).unwrap();
        assert_eq!(plain, Volume::new(VolumeContent::Tmpfs(Tmpfs::default()), "/tmp".into()));
        for bad in [r#"{"target":"/x"}"#, r#"{"source":"/x"}"#, r#"{"tape":"a","target":"/x"}"#] {
            assert!(serde_json::from_str::<Volume>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_volumes_are_safe_as_directories() {
        for bad in ["", ".", "..", "a/b", "-a", ".a", "a b", &"x".repeat(256)] {
            assert!(check_volume_name(bad).is_err(), "{bad:?}");
        }
        for good in ["node_modules-1.0", &"x".repeat(255)] {
            assert!(check_volume_name(good).is_ok(), "{good:?}");
        }
    }
}
