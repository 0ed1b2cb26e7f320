//! Who patches. Root can do all; others can patch a directory of their own, with what is theirs.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::bail;
use msb::overlay::error::Error;
use rustix::process::{getegid, geteuid, getgroups};

use crate::attributes::Wanted;

/// The user of this process.
#[derive(Clone, Debug)]
pub struct User {
    /// Who owns what is made.
    pub uid: u32,
    /// And which group.
    pub gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// From the process's credentials.
    pub fn of_this_process() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    /// Whether a directory is this user's own. Root owns all.
    pub fn owns(&self, dir: &Path) -> bool {
        self.uid == 0 || dir.metadata().is_ok_and(|meta| meta.uid() == self.uid)
    }

    /// # Errors
    /// A message, for anybody but root.
    pub fn check_is_root(&self) -> anyhow::Result<()> {
        if self.uid != 0 {
            bail!(
                "root is needed: the files of an image have owners, devices and trusted xattrs (run it by sudo; without \
                 root, a directory of your own can be patched)"
            );
        }
        Ok(())
    }

    /// Whether this user may give files what an operation asks for.
    ///
    /// # Errors
    /// A message for an owner that only root can set.
    pub fn check(&self, wanted: Wanted) -> anyhow::Result<()> {
        if self.uid == 0 {
            return Ok(());
        }
        if let Some(uid) = wanted.uid.filter(|&uid| uid != self.uid) {
            bail!("uid {uid}: root alone gives files to other users (run it by sudo)");
        }
        if let Some(gid) = wanted.gid.filter(|&gid| gid != self.gid && !self.groups.contains(&gid)) {
            bail!("gid {gid}: this user is not in that group (run it by sudo)");
        }
        Ok(())
    }

    /// Says what to do about a right that somebody else than root lacks.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lacks = error
            .chain()
            .filter_map(|cause| match cause.downcast_ref::<Error>() {
                Some(Error::System(cause)) => Some(cause),
                _ => cause.downcast_ref::<io::Error>(),
            })
            .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
        if self.uid != 0 && lacks {
            error.context("root is needed for what is not this user's (run it by sudo)")
        } else {
            error
        }
    }
}
