//! The operations, and their members as they are written: strict. `man/msb-ops.5` specifies them.

use std::path::PathBuf;

use base64::Engine;
use serde::{Deserialize, Deserializer};

/// One operation. [`crate::parse`] takes the member `op` for the variant's name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Write a text file.
    Text {
        /// Where.
        path: String,
        /// What.
        content: String,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Write a file of any bytes.
    File {
        /// Where.
        path: String,
        /// What.
        content_base64: Base64,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Make a directory and its parents.
    Mkdir {
        /// Where.
        path: String,
        /// Permissions, also of a directory that is there.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
    },
    /// Add to the end of a file.
    Append {
        /// Where.
        path: String,
        /// What.
        content: String,
    },
    /// Copy a file of the host.
    CopyFile {
        /// On the host.
        src: PathBuf,
        /// In the image.
        dst: String,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Copy a directory of the host, with all below it, into one that may be there.
    CopyDir {
        /// On the host.
        src: PathBuf,
        /// In the image.
        dst: String,
        /// Overwrite files that are there.
        #[serde(default)]
        replace: bool,
    },
    /// Make a symlink.
    Symlink {
        /// What it holds.
        target: String,
        /// Where it is.
        link: String,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Remove a file, or a directory with all below it.
    Remove {
        /// Where.
        path: String,
    },
    /// A script for /.msb/scripts.
    Script {
        /// What it is called by.
        name: String,
        /// What is in it.
        content: String,
    },
}

impl Op {
    /// The operation's name and the path it is about, for words and reports.
    pub fn subject(&self) -> (&'static str, &str) {
        match self {
            Self::Text { path, .. } => ("text", path),
            Self::File { path, .. } => ("file", path),
            Self::Mkdir { path, .. } => ("mkdir", path),
            Self::Append { path, .. } => ("append", path),
            Self::CopyFile { dst, .. } => ("copy_file", dst),
            Self::CopyDir { dst, .. } => ("copy_dir", dst),
            Self::Symlink { link, .. } => ("symlink", link),
            Self::Remove { path } => ("remove", path),
            Self::Script { name, .. } => ("script", name),
        }
    }
}

/// Permission bits: one to four octal digits in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)
            .map_err(|_| serde::de::Error::custom("a quoted octal number is expected, as in \"0644\""))?;
        let is_octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if is_octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(serde::de::Error::custom(format!("{text:?} is not an octal number from \"0000\" to \"7777\""))),
        }
    }
}

/// Bytes, written in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
        bytes.map(Self).map_err(|error| serde::de::Error::custom(format!("no base64: {error}")))
    }
}
