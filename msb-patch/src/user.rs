//! The user who runs msb-patch. Root, also that of a user namespace, may do everything. Others may patch a directory of their own,
//! without changing owners.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::bail;
use msb::overlay::error::Error;
use rustix::process::{getegid, geteuid, getgroups};

use crate::attributes::RequestedAttributes;

/// The user of this process.
#[derive(Clone, Debug)]
pub struct User {
    /// The user ID.
    pub uid: u32,
    /// The group ID.
    pub gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Reads the process's credentials.
    pub fn of_this_process() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    /// Whether the user owns a directory. Root counts as the owner of all.
    pub fn owns(&self, dir: &Path) -> bool {
        self.uid == 0 || dir.metadata().is_ok_and(|meta| meta.uid() == self.uid)
    }

    /// Checks that the user may set the requested owner and group.
    ///
    /// # Errors
    /// A message for an owner that only root can set.
    pub fn check(&self, requested: RequestedAttributes) -> anyhow::Result<()> {
        if self.uid == 0 {
            return Ok(());
        }
        if let Some(uid) = requested.uid.filter(|&uid| uid != self.uid) {
            bail!("uid {uid}: only root may give files to other users (run it with sudo)");
        }
        if let Some(gid) = requested.gid.filter(|&gid| gid != self.gid && !self.groups.contains(&gid)) {
            bail!("gid {gid}: this user is not in that group (run it with sudo)");
        }
        Ok(())
    }

    /// Adds a remedy to a permission error of a user other than root.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lacks = error
            .chain()
            .filter_map(|cause| match cause.downcast_ref::<Error>() {
                Some(Error::System(cause)) => Some(cause),
                _ => cause.downcast_ref::<io::Error>(),
            })
            .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
        if self.uid != 0 && lacks {
            error.context("root is needed for files of other users (run it with sudo)")
        } else {
            error
        }
    }
}
