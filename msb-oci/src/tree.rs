//! The container's tree: its root with the binds on it, in the mount namespace of this thread. The guest gets it as one share, and it is
//! the root of the process that stands for the container.
//!
//! The image is hostile: a destination is resolved in the tree as after `chroot(2)`, one component at a time, and nothing is made outside.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use msb::overlay::Merged;
use msb::overlay::beneath::{Entry, Name};
use msb::overlay::mountinfo::{self, Mount};
use msb::overlay::resolve::{End, Last, Resolved, resolve};
use rustix::fs::{CWD, FileType, Mode, StatVfsMountFlags, fstat, fstatvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};

use crate::plan::{Place, Plan};

/// The directory of the root in the tree.
pub(crate) const ROOT: &str = "rootfs";
/// The limits of the tmpfs that holds the mount points.
const OPTIONS: &std::ffi::CStr = c"size=1m,nr_inodes=4096,mode=0755";

/// Builds the tree of a plan at `tree`, a directory that is made: the root, and beside it the binds that the guest mounts itself.
///
/// # Errors
/// The root, or the bind, that cannot be mounted.
pub(crate) fn build(plan: &Plan, tree: &Path) -> anyhow::Result<()> {
    let root = clone(&plan.rootfs, true).with_context(|| format!("root {:?}", plan.rootfs))?;
    if !is_dir(&root)? {
        bail!("root {:?}: not a directory", plan.rootfs);
    }
    // Sources are opened before anything is mounted, which may hide them.
    let sources: Vec<OwnedFd> = plan
        .binds
        .iter()
        .map(|bind| clone(&bind.source, bind.is_recursive).with_context(|| format!("mount of {:?}", bind.source)))
        .collect::<Result<_, _>>()?;
    fs::create_dir(tree).with_context(|| format!("{tree:?}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("msb-oci", tree, "tmpfs", flags, OPTIONS).with_context(|| format!("{tree:?}"))?;
    let (at_root, beside) = (tree.join(ROOT), tree.join(Place::BESIDE));
    fs::create_dir(&at_root).and_then(|()| fs::create_dir(&beside)).with_context(|| format!("{tree:?}"))?;
    move_mount(&root, "", CWD, &at_root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("root {:?}", plan.rootfs))?;
    mount_change(tree, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for (bind, source) in plan.binds.iter().zip(&sources) {
        let result = match &bind.place {
            Place::Root(destination) => mount(&at_root, destination, source),
            Place::Beside(path) => mount(&beside, path, source),
        };
        result.with_context(|| format!("mount of {:?} ({:?})", bind.source, bind.place))?;
    }
    // Only now: mount points of later binds may be in earlier ones.
    for (_, source) in plan.binds.iter().zip(&sources).filter(|(bind, _)| bind.is_readonly) {
        // The root of a user namespace may not lift noexec from a mount of the host.
        let is_noexec = fstatvfs(source)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
        let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::NOEXEC, is_noexec);
        mount_remount(proc_path(source), flags, c"")?;
    }
    release_other_roots(tree, &plan.rootfs)
}

/// Makes a tree a shared mount, so that later mounts on it propagate to the VM's jail.
///
/// # Errors
/// Those of `mount(2)`.
pub(crate) fn share(tree: &Path) -> anyhow::Result<()> {
    mount_change(tree, MountPropagationFlags::SHARED).with_context(|| format!("{tree:?}"))
}

/// Clones a tree for the VM of a pod. All mounts get nosuid and nodev, also those of the original.
///
/// # Errors
/// Those of `mount(2)` and `open_tree(2)`.
pub(crate) fn copy(tree: &Path) -> anyhow::Result<OwnedFd> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let mounts: Vec<Mount> =
        mountinfo::mounts(&table).filter(|mount| Path::new(&mount.point).starts_with(tree)).collect();
    // The path of a mount that is covered is another file's.
    for mount in mounts.iter().filter(|mount| !mountinfo::is_covered(mount, &mounts)) {
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, mount.is_readonly);
        // The root of a user namespace may not clear noexec of a host's mount.
        flags.set(MountFlags::NOEXEC, mount.is_noexec);
        mount_remount(&mount.point, flags, c"").with_context(|| format!("{:?}", mount.point))?;
    }
    clone(tree, true).with_context(|| format!("{tree:?}"))
}

/// Clones the mounts at a path of the host, detached.
fn clone(path: &Path, is_recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, is_recursive);
    Ok(open_tree(CWD, path, flags)?)
}

fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode).is_dir())
}

fn mount(root: &Path, destination: &Path, source: &OwnedFd) -> anyhow::Result<()> {
    let is_dir = is_dir(source)?;
    let target = mount_point(root, destination, is_dir)?;
    if target.is_dir() != is_dir {
        let kinds = if is_dir { ("a directory", "a file") } else { ("a file", "a directory") };
        bail!("the source is {}, and the image has {} there", kinds.0, kinds.1);
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(source, "", &target, "", flags)?;
    mount_change(proc_path(source), MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// The path of a mount that is attached.
fn proc_path(mounted: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", mounted.as_raw_fd())
}

/// Finds the file at a path in a root, and makes what is missing: directories, and at the end a directory or an empty file.
fn mount_point(root: &Path, path: &Path, is_dir: bool) -> anyhow::Result<Entry> {
    // Opened again for each bind: an earlier one may be mounted on the way.
    let root = Merged::open(&[] as &[&Path], Some(root))?;
    let Resolved { steps, end } = resolve(&root, &Path::new("/").join(path), Last::Follow)?;
    let mut dir = steps.last().context("it is the root itself")?.dir.top().0.try_clone()?;
    match end {
        End::Dir if steps.len() == 1 => bail!("it is the root itself"),
        End::Dir => Ok(dir.to_entry()?),
        End::Leaf(_, leaf) => Ok(leaf.entry),
        End::Missing(names) => {
            let (last, above) = names.split_last().context("it is the root itself")?;
            for name in above {
                dir = dir.mkdir(Name::new(name)?, Mode::from_raw_mode(0o755))?;
            }
            let last = Name::new(last)?;
            if is_dir {
                dir.mkdir(last, Mode::from_raw_mode(0o755))?;
            } else {
                dir.create(last, Mode::from_raw_mode(0o644))?;
            }
            dir.entry(last)?.context("it was removed")
        }
    }
}

/// Unmounts the roots of other containers, of which this mount namespace has got copies. An engine makes them private, so its unmounts do
/// not reach this namespace, and a container that is started again would have its root mounted twice.
fn release_other_roots(tree: &Path, rootfs: &Path) -> anyhow::Result<()> {
    // The process itself is in another mount namespace than this thread.
    let table = fs::read("/proc/thread-self/mountinfo")?;
    // As the kernel writes mount points.
    let rootfs = rootfs.canonicalize()?;
    let mounts: Vec<_> = mountinfo::mounts(&table).collect();
    for mount in mounts.iter().rev().filter(|mount| mount.fstype == "overlay") {
        let point = Path::new(&mount.point);
        let is_needed = tree.starts_with(point) || point.starts_with(tree);
        if is_root_beside(point, &rootfs) && !is_needed {
            let _ = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    Ok(())
}

/// Whether a mount point is that of this container's root or of another one's of the same engine: only one name in their paths differs.
/// Other overlays are the host's, such as /etc or /usr, and the VM's tools need them.
fn is_root_beside(point: &Path, rootfs: &Path) -> bool {
    point.components().count() == rootfs.components().count()
        && point.components().zip(rootfs.components()).filter(|(one, other)| one != other).count() <= 1
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// Where a path leads, and what was made outside of the root.
    fn resolve_in(make: impl Fn(&Path), path: &str, is_dir: bool) -> (tempfile::TempDir, anyhow::Result<PathBuf>) {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        make(&root);
        let found = mount_point(&root, Path::new(path), is_dir);
        let found = found.map(|entry| fs::read_link(entry.proc_path()).unwrap());
        let found = found.map(|path| path.strip_prefix(root.canonicalize().unwrap()).unwrap().to_owned());
        assert_eq!(fs::read_dir(scratch.path().join("outside")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
        (scratch, found)
    }

    #[test]
    fn a_destination_is_made_where_it_is_missing() {
        for (path, is_dir) in [("/etc/new/dir", true), ("/etc/new/file", false), ("/etc", true)] {
            let (scratch, found) = resolve_in(|_| {}, path, is_dir);
            let found = found.unwrap();
            assert_eq!(Path::new("/").join(&found), Path::new(path));
            assert_eq!(scratch.path().join("root").join(found).is_dir(), is_dir);
        }
    }

    #[test]
    fn symlinks_of_the_image_lead_nowhere_else() {
        type Make = fn(&Path);
        let cases: [(Make, &str, &str); 7] = [
            (|root| symlink("/../../outside", root.join("up")).unwrap(), "/up/x", "outside/x"),
            (|root| symlink("../../../outside", root.join("etc/up")).unwrap(), "/etc/up/x", "outside/x"),
            (|root| symlink("..", root.join("etc/up")).unwrap(), "/etc/up/x", "x"),
            (|root| symlink("/etc", root.join("run")).unwrap(), "/run/secrets", "etc/secrets"),
            (
                |root| symlink("../run/resolv.conf", root.join("etc/resolv.conf")).unwrap(),
                "/etc/resolv.conf",
                "run/resolv.conf",
            ),
            (|root| symlink("/proc/self/root/outside", root.join("p")).unwrap(), "/p/x", "proc/self/root/outside/x"),
            (|root| symlink(root.parent().unwrap().join("outside"), root.join("abs")).unwrap(), "/abs/x", ""),
        ];
        for (make, path, expected) in cases {
            let (_scratch, found) = resolve_in(make, path, false);
            let found = found.unwrap();
            assert!(
                found == Path::new(expected) || (expected.is_empty() && found.ends_with("outside/x")),
                "{path}: {found:?}"
            );
        }
    }

    #[test]
    fn other_roots_are_beside_this_one_and_overlays_of_the_host_are_not() {
        let storage = "/var/lib/containers/storage/overlay";
        let rootfs = format!("{storage}/aa/merged");
        for (point, expected) in [
            (rootfs.as_str(), true),
            (&format!("{storage}/bb/merged"), true),
            (&format!("{storage}/bb/merged/below"), false),
            ("/", false),
            ("/etc", false),
            ("/usr", false),
            ("/var/lib/docker/overlay2/aa/merged", false),
        ] {
            assert_eq!(is_root_beside(Path::new(point), Path::new(&rootfs)), expected, "{point}");
        }
    }

    #[test]
    fn a_loop_a_file_on_the_way_and_the_root_itself_are_errors() {
        for (make, path) in [
            ((|root: &Path| symlink("loop", root.join("loop")).unwrap()) as fn(&Path), "/loop"),
            (|root| fs::write(root.join("file"), "").unwrap(), "/file/x"),
            (|_| {}, "/"),
            (|root| symlink("..", root.join("up")).unwrap(), "/up"),
        ] {
            let (_scratch, found) = resolve_in(make, path, true);
            assert!(found.is_err(), "{path}: {found:?}");
        }
    }
}
