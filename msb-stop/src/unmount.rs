//! Unmounts what msb-mount mounted, according to the record, and nothing else.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use msb::overlay::mountinfo;
use msb::record::Mount;
use msb::vm::unmount::{UnmountError, unmount as unmount_path};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

/// Unmounts, and waits until the process that served the mount has exited. A path that is no longer a mount point is fine.
///
/// # Errors
/// A mount that is in use, that is not one of msb-mount, or that this user may not unmount.
pub(crate) fn unmount(mount: &Mount) -> anyhow::Result<()> {
    let path = &mount.path;
    let resolved = match resolve(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("mount {path:?}"))?,
    };
    let table = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    ensure!(
        may_unmount(&table, &resolved, mount.pid),
        "mount {path:?}: it is not the mount of the record (see it with: findmnt {path:?})"
    );
    let server = Pid::from_raw(mount.pid)
        .filter(|_| is_msb_mount(mount.pid))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match unmount_path(&resolved, server.as_ref().map(AsFd::as_fd)) {
        Ok(()) | Err(UnmountError::NotMounted) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {path:?}")),
    }
}

/// The path as the mount table has it. Its last name is not followed if it is a symlink, nor does umount(2) follow it.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not end in a name"));
    };
    Ok(parent.canonicalize()?.join(name))
}

/// Whether nothing is mounted at the resolved path, or what msb-mount has mounted, with the overlayfs of the server `pid`. Records come
/// from anywhere, and root may unmount everything.
fn may_unmount(table: &[u8], path: &Path, pid: i32) -> bool {
    let there = mountinfo::mounts(table).rfind(|there| Path::new(&there.point) == path);
    there.is_none_or(|there| {
        let holder = format!("msb:{pid}");
        there.fstype == Mount::FSTYPE || there.fstype == "overlay" && there.source == *holder
    })
}

/// Whether a process of this user runs msb-mount: its ID may have been reused.
fn is_msb_mount(pid: i32) -> bool {
    let is_ours = std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == geteuid().as_raw());
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let is_named = |name: &str| name.trim_end_matches(DELETED) == "msb-mount";
    is_ours && program.file_name().and_then(|name| name.to_str()).is_some_and(is_named)
}

/// What the kernel appends to the path of a program whose file was removed, for example by an upgrade.
const DELETED: &str = " (deleted)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_msb_mount_has_mounted_is_unmounted() {
        let line =
            |point: &str, fstype: &str, source: &str| format!("36 35 0:70 / {point} rw - {fstype} {source} rw\n");
        for (lines, expected) in [
            (vec![], true),
            (vec![line("/mnt", "ext4", "/dev/vda")], true),
            (vec![line("/mnt/root", "fuse.msb", "msb")], true),
            (vec![line("/mnt/root", "overlay", "msb:77")], true),
            (vec![line("/mnt/root", "overlay", "msb:78")], false),
            (vec![line("/mnt/root", "overlay", "overlay")], false),
            (vec![line("/mnt/root", "ext4", "/dev/vda")], false),
            // The later one covers the other.
            (vec![line("/mnt/root", "fuse.msb", "msb"), line("/mnt/root", "tmpfs", "tmpfs")], false),
            (vec![line("/mnt/root", "tmpfs", "tmpfs"), line("/mnt/root", "fuse.msb", "msb")], true),
        ] {
            assert_eq!(may_unmount(lines.concat().as_bytes(), Path::new("/mnt/root"), 77), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_path_is_resolved_up_to_its_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        for (path, expected) in [
            ("real/root", Some("real/root")),
            ("link/root", Some("real/root")),
            ("link/../real/root", Some("real/root")),
            ("real/../link", Some("link")),
            ("missing/root", None),
            ("real/..", None),
        ] {
            assert_eq!(resolve(&base.join(path)).ok(), expected.map(|path| base.join(path)), "{path}");
        }
        assert!(resolve(Path::new("/")).is_err());
    }
}
