//! What has to be undone in the real root before the machine ends.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What was created or mounted on the way to the real root.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// Mount points that were created in the real root, the innermost first. The host is told of them: only the host knows whether
    /// another VM uses the same shared root.
    pub mount_points: Vec<PathBuf>,
    /// Whether the root is shared, so that the host removes the mount points.
    pub is_shared: bool,
    /// Writable file systems below the root, which have no path any more.
    pub lower_mounts: Vec<OwnedFd>,
}

impl Cleanup {
    /// Adds a mount point that was created. It goes before the earlier ones: a file is removed before its directory.
    pub fn add(&mut self, mount_point: &Path) {
        self.mount_points.insert(0, mount_point.to_owned());
    }
}
