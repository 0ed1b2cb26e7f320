//! copy_file: copies a file of the host.

use std::ffi::OsStr;
use std::fs::{self, File};

use anyhow::{Context, bail};

use crate::content::Content;
use crate::member::{RawPath, members_with_attributes};
use crate::operation::Operation;
use crate::target::{Done, Target};
use crate::write::Overwrite;

members_with_attributes! {
/// The members of copy_file.
pub struct CopyFile {
    /// The path on the host.
    pub src: RawPath,
    /// The path in the root.
    pub dst: RawPath,
    /// Overwrite an existing file.
    #[serde(default)]
    pub replace: bool,
}
}

impl Operation for CopyFile {
    fn path(&self) -> &OsStr {
        &self.dst
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let src = target.on_host(&self.src);
        let of_src = || format!("src {src:?}");
        // The type is checked first, because opening a FIFO blocks.
        let meta = fs::metadata(&src).with_context(of_src)?;
        if meta.is_dir() {
            bail!("{}: is a directory (use copy_dir)", of_src());
        }
        if !meta.is_file() {
            bail!("{}: not a regular file", of_src());
        }
        let from = File::open(&src).with_context(of_src)?;
        let default_mode = rustix::fs::fstat(&from)?.st_mode & 0o777;
        let requested = self.attributes(target)?;
        let over = Overwrite { replace: self.replace, create: true };
        target.write(&self.dst, over, requested, default_mode, Content::File(&from))
    }
}
