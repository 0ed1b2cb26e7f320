//! copy_file: a file of the host.

use std::ffi::OsStr;
use std::fs::{self, File};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Operation;
use crate::content::Content;
use crate::member::{Mode, Owner, RawPath};
use crate::target::{Done, Target};
use crate::write::Over;

/// The members of copy_file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyFile {
    /// On the host.
    pub src: RawPath,
    /// In the root.
    pub dst: RawPath,
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
}

impl Operation for CopyFile {
    fn path(&self) -> &OsStr {
        &self.dst
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let src = target.on_host(&self.src);
        let of_src = || format!("src {src:?}");
        // By its type first: opening a FIFO waits.
        let meta = fs::metadata(&src).with_context(of_src)?;
        if meta.is_dir() {
            bail!("{}: is a directory (use copy_dir)", of_src());
        }
        if !meta.is_file() {
            bail!("{}: not a regular file", of_src());
        }
        let from = File::open(&src).with_context(of_src)?;
        let default_mode = rustix::fs::fstat(&from)?.st_mode & 0o777;
        let wanted = target.wanted(self.mode, self.uid.as_ref(), self.gid.as_ref())?;
        let over = Over { replace: self.replace, create: true };
        target.write(&self.dst, over, wanted, default_mode, Content::File(&from))
    }
}
