//! text: writes a text file.

use std::ffi::OsStr;

use crate::content::Content;
use crate::member::{RawPath, members_with_attributes};
use crate::operation::{Operation, yes};
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Overwrite};

members_with_attributes! {
/// The members of text.
pub struct Text {
    /// The path in the root.
    pub path: RawPath,
    /// The content.
    pub content: String,
    /// Overwrite an existing file.
    #[serde(default)]
    pub replace: bool,
    /// Create a missing file.
    #[serde(default = "yes")]
    pub create: bool,
}
}

impl Operation for Text {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let requested = self.attributes(target)?;
        let over = Overwrite { replace: self.replace, create: self.create };
        target.write(&self.path, over, requested, FILE_MODE, Content::Bytes(self.content.as_bytes()))
    }
}
