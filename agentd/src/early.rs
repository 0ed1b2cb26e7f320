//! The first mounts: the kernel's file systems, from a table, and then the real root, by the steps in boot.json, which becomes `/`.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use msb::overlay::attributes::{copy_attributes, keeping_times};
use msb::overlay::beneath::Dir;
use msb::record::script;
use msb::vm::boot::{self, Boot, Directory, MountStep};
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::cleanup::Cleanup;
use crate::error::Error;
use crate::path::{self, MSB_DIR};
use crate::{console, etc, run, sys, volume};

struct Early {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// The file systems, in the order in which they are mounted. They are moved into the real root later.
const TABLE: &[Early] = &[
    Early { fstype: "proc", target: "/proc", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "sysfs", target: "/sys", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, data: Some("mode=0755") },
    Early { fstype: "devpts", target: "/dev/pts", flags: SAFE, data: Some("gid=5,mode=0620,ptmxmode=0666") },
    Early { fstype: "tmpfs", target: "/dev/shm", flags: SAFE.union(MsFlags::MS_NODEV), data: Some("mode=1777") },
    Early { fstype: "mqueue", target: "/dev/mqueue", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
];

/// The file systems that a kernel may lack.
const OPTIONAL: [&str; 2] = ["cgroup2", "mqueue"];

/// Devices that udev opens to all users. Their drivers check what a user may do.
const FOR_ALL_USERS: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// The mount points that are moved, each with all that is mounted below it.
const MOVED: &[&str] = &["proc", "sys", "dev"];

/// Symlinks that programs expect in `/dev` besides the kernel's nodes.
const DEV_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Makes the initramfs a mount of its own, above the kernel's rootfs, and enters it. pivot_root(2), with which containers get their roots,
/// does not replace the rootfs itself.
///
/// # Errors
/// Those of `mount(2)` and `chroot(2)`.
pub fn leave_rootfs() -> Result<(), Error> {
    let root = Path::new(boot::NEW_ROOT);
    mount(Some("/"), root, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| move_to_root(root))
        .map_err(|error| Error::step("leave the rootfs".into(), error.into()))
}

/// As in switch_root(8): a mount is moved over the root and then entered.
fn move_to_root(mount_point: &Path) -> nix::Result<()> {
    nix::unistd::chdir(mount_point)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

/// Mounts the kernel's file systems. The kernel may have mounted `/dev` itself.
///
/// # Errors
/// The first mount that fails, except those of [`OPTIONAL`].
pub fn mount_kernel_file_systems() -> Result<(), Error> {
    for entry in TABLE {
        let _ = fs::create_dir(entry.target);
        match mount(Some(entry.fstype), entry.target, Some(entry.fstype), entry.flags, entry.data) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) if OPTIONAL.contains(&entry.fstype) => console::log(&format!("no {}: {error}", entry.fstype)),
            Err(error) => return Err(Error::step(format!("mount {}", entry.target), error.into())),
        }
    }
    for (target, link) in DEV_LINKS {
        // devtmpfs has its own node for ptmx; the one of devpts has the options from the table.
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(target, link).map_err(|error| Error::step(format!("symlink {link}"), error))?;
    }
    for device in FOR_ALL_USERS {
        match fs::set_permissions(device, Permissions::from_mode(0o666)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => console::log(&format!("{device}: {error}")),
            _ => {}
        }
    }
    Ok(())
}

/// Mounts the real root by the steps in boot.json and makes it `/`, unless only containers run in it. What was created is in `cleanup`,
/// even after an error.
///
/// # Errors
/// The step that failed.
pub fn enter_root(boot: &Boot, cleanup: &mut Cleanup) -> Result<(), Error> {
    for step in &boot.mounts {
        mount_step(step)?;
        if !step.directories.is_empty() {
            let mount = open(&step.target, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            cleanup
                .lower_mounts
                .push(mount.map_err(|error| Error::step(format!("open {:?}", step.target), error.into()))?);
        }
    }
    let root = Path::new(boot::NEW_ROOT);
    let Some(step) = boot.mounts.iter().find(|step| step.target == root) else {
        return Err(Error::step("enter the root".into(), io::Error::other("boot.json mounts nothing on /mnt")));
    };
    cleanup.is_shared = step.fstype == "virtiofs";
    if boot.bare {
        return Ok(());
    }
    for name in MOVED.iter().chain(&[MSB_DIR]) {
        // With a symlink there, the mount could land anywhere. All names are checked before anything is created.
        if fs::symlink_metadata(root.join(name)).is_ok_and(|there| !there.is_dir()) {
            let why = io::Error::other("the image has something other than a directory there");
            return Err(Error::step(format!("mount /{name}"), why));
        }
    }
    for name in MOVED {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        make_mount_point(&to, name, cleanup)?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| Error::step(format!("move {} to the root", from.display()), error.into()))?;
    }
    let msb = root.join(MSB_DIR);
    make_mount_point(&msb, MSB_DIR, cleanup)?;
    let scripts = root.join(script::GUEST_DIR.trim_start_matches('/'));
    let of_image =
        open(&scripts, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let share = Path::new("/").join(boot::MSB_DIR);
    mount(Some(&share), &msb, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| {
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
            mount(None::<&str>, &msb, None::<&str>, read_only | MsFlags::MS_NODEV, None::<&str>)
        })
        .map_err(|error| Error::step("mount /.msb".into(), error.into()))?;
    if let Ok(of_image) = of_image
        && let Err(error) = show_scripts(root, &scripts, &of_image)
    {
        console::log(&format!("the image's own scripts: {error}"));
    }
    if let Err(error) = bind_profile(root, cleanup) {
        console::log(&format!("{}: {error}", root.join(PROFILE).display()));
    }
    let volumes = volume::open_all(boot)?;
    // Of the initramfs only the agent and the scripts remain, which are in use; the kernel has freed the archive.
    move_to_root(root).map_err(|error| Error::step("enter the root".into(), error.into()))?;
    // From here on, all paths and the image's symlinks are resolved in the real root.
    let run = run::mount_tmpfs(cleanup)?;
    etc::bind_all(boot, run.as_deref(), cleanup);
    // After /run and the files of /etc, which they may replace.
    volume::mount_all(&volumes, cleanup)?;
    make_directories(boot);
    Ok(())
}

/// Creates the directories that the image declares but may lack: its volumes and its working directory. An error is only logged.
fn make_directories(boot: &Boot) {
    let cwd = Some(&boot.defaults.cwd).filter(|cwd| !cwd.is_empty());
    for directory in boot.directories.iter().chain(cwd) {
        if let Err(error) = path::make_directories(Path::new("/"), Path::new(directory), &mut Cleanup::default()) {
            console::log(&format!("create the directory {directory:?}: {error}"));
        }
    }
}

/// Shows the scripts that the image has at the same place, below those of the record: the mount on `/.msb` hides them.
fn show_scripts(root: &Path, scripts: &Path, of_image: &OwnedFd) -> nix::Result<()> {
    // /proc is in the root already.
    let of_image = root.join("proc/self/fd").join(of_image.as_raw_fd().to_string());
    let lower = format!("lowerdir={}:{}", scripts.display(), of_image.display());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), scripts, Some("overlay"), flags, Some(lower.as_str()))
}

/// The file that login shells read.
pub const PROFILE: &str = "etc/profile.d/msb-scripts.sh";

/// Mounts the file that puts the scripts on PATH in login shells. Nothing is mounted if the image has no `/etc/profile.d`.
fn bind_profile(root: &Path, cleanup: &mut Cleanup) -> io::Result<()> {
    let target = root.join(PROFILE);
    for dir in [root.join("etc"), root.join("etc/profile.d")] {
        if !fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir()) {
            return Ok(());
        }
    }
    match fs::symlink_metadata(&target) {
        Ok(meta) if !meta.is_file() => return Ok(()),
        Ok(_) => {}
        Err(_) => {
            if path::make(&target, || fs::File::create_new(&target).map(drop))? {
                cleanup.add(&Path::new("/").join(PROFILE));
            }
        }
    }
    let source = Path::new("/").join(boot::MSB_DIR).join(script::PROFILE_NAME);
    Ok(mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Mounts the steps of boot.json and nothing else.
///
/// # Errors
/// The step that failed.
pub fn mount_steps(boot: &Boot) -> Result<(), Error> {
    boot.mounts.iter().try_for_each(mount_step)
}

/// Creates a mount point that the image lacks. It is removed again at the end.
fn make_mount_point(path: &Path, name: &str, cleanup: &mut Cleanup) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let is_created = path::make(path, || fs::create_dir(path));
    if is_created.map_err(|error| Error::step(format!("create the mount point /{name}"), error))? {
        cleanup.add(&Path::new("/").join(name));
    }
    Ok(())
}

/// How far the kernel reads ahead in an image, in KiB. With its default, 128, there are more requests, and each takes a VM exit.
const READ_AHEAD: usize = 1024;

fn mount_step(step: &MountStep) -> Result<(), Error> {
    if step.fstype == "erofs" {
        // If it fails, reading is slower and nothing else.
        let _ = sys::set_read_ahead(Path::new(&step.source), READ_AHEAD);
    }
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in &step.options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            other => data.push(other),
        }
    }
    let data = data.join(",");
    mount(Some(step.source.as_str()), &step.target, Some(step.fstype.as_str()), flags, Some(data.as_str())).map_err(
        |error| Error::step(format!("mount {:?} ({}) on {:?}", step.source, step.fstype, step.target), error.into()),
    )?;
    for directory in &step.directories {
        make_directory(directory)
            .map_err(|error| Error::step(format!("make the directory {:?}", directory.path), error))?;
    }
    Ok(())
}

/// Makes a directory that is missing. One that was made and not finished before is made again: it is empty.
fn make_directory(directory: &Directory) -> io::Result<()> {
    if directory.path.is_dir() {
        return Ok(());
    }
    let staging = directory.path.with_extension("new");
    match fs::DirBuilder::new().mode(0o700).create(&staging) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if let Some(like) = &directory.like {
        copy_attributes(&Dir::open(like)?.to_entry()?, &Dir::open(&staging)?.to_entry()?)?;
    }
    fs::rename(&staging, &directory.path)
}

/// Unmounts everything, last mount first, and makes read-only what cannot be unmounted.
pub fn leave_root(cleanup: &Cleanup) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    for target in
        msb::overlay::mountinfo::mount_points(&table).rev().filter(|target| target != "/" && target != "/proc")
    {
        let _ = umount2(target.as_os_str(), MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(target.as_os_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
    }
    let _ = umount2("/proc", MntFlags::MNT_DETACH);
    for path in cleanup.mount_points.iter().filter(|_| !cleanup.is_shared) {
        let remove = || fs::remove_dir(path).or_else(|_| fs::remove_file(path));
        let _ = Dir::open(path.parent().unwrap_or(path)).and_then(|parent| keeping_times(&parent, remove));
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>);
    // These are last, when overlayfs has nothing left to write. A read-only remount empties the journal for the next boot.
    for mount_fd in &cleanup.lower_mounts {
        let _ = nix::unistd::fchdir(mount_fd)
            .and_then(|()| mount(None::<&str>, ".", None::<&str>, read_only, None::<&str>));
    }
}
