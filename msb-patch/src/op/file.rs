//! file: a file of any bytes.

use std::ffi::OsStr;

use serde::Deserialize;

use super::{Operation, yes};
use crate::content::Content;
use crate::member::{Base64, Mode, Owner, RawPath};
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Over};

/// The members of file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where.
    pub path: RawPath,
    /// What.
    pub content_base64: Base64,
    /// Permissions.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Owner.
    #[serde(default)]
    pub uid: Option<Owner>,
    /// Group.
    #[serde(default)]
    pub gid: Option<Owner>,
    /// Overwrite what is there.
    #[serde(default)]
    pub replace: bool,
    /// Make a file that is missing.
    #[serde(default = "yes")]
    pub create: bool,
}

impl Operation for File {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let wanted = target.wanted(self.mode, self.uid.as_ref(), self.gid.as_ref())?;
        let over = Over { replace: self.replace, create: self.create };
        target.write(&self.path, over, wanted, FILE_MODE, Content::Bytes(&self.content_base64.0))
    }
}
