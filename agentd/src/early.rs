//! What is mounted before anything else: the kernel's own file systems, from one table, and then the real root, by the steps in
//! boot.json. Ends with the real root as `/`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use msb::overlay::attributes::{copy_attributes, keeping_times};
use msb::overlay::beneath::Dir;
use msb::record::script;
use msb::vm::boot::{self, Boot, Directory, MountStep};
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::{Error, etc, path, run, sys};

struct Early {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// In order; each is moved into the real root later, the ones below another one with it.
const TABLE: &[Early] = &[
    Early { fstype: "proc", target: "/proc", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "sysfs", target: "/sys", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE.union(MsFlags::MS_NODEV), data: None },
    Early { fstype: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, data: Some("mode=0755") },
    Early { fstype: "devpts", target: "/dev/pts", flags: SAFE, data: Some("gid=5,mode=0620,ptmxmode=0666") },
    Early { fstype: "tmpfs", target: "/dev/shm", flags: SAFE.union(MsFlags::MS_NODEV), data: Some("mode=1777") },
];

/// The file systems that move, each with all that is mounted below it.
const MOVED: &[&str] = &["proc", "sys", "dev"];

/// What a program expects in `/dev` beside the kernel's nodes.
const DEV_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Mounts the kernel's file systems. The kernel may have mounted `/dev` itself.
///
/// # Errors
/// The first mount that fails, but for cgroup2, which a kernel may lack.
pub fn mount_kernel_file_systems() -> Result<(), Error> {
    for entry in TABLE {
        let _ = fs::create_dir(entry.target);
        match mount(Some(entry.fstype), entry.target, Some(entry.fstype), entry.flags, entry.data) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) if entry.fstype == "cgroup2" => crate::say(&format!("no cgroup2: {error}")),
            Err(error) => return Err(Error::step(format!("mount {}", entry.target), error.into())),
        }
    }
    for (target, link) in DEV_LINKS {
        // devtmpfs has a node of its own for ptmx; devpts's is the one with our options.
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(target, link).map_err(|error| Error::step(format!("symlink {link}"), error))?;
    }
    Ok(())
}

/// What was made on the way to the real root, to be taken down again at the end.
#[derive(Debug, Default)]
pub struct Made {
    /// Mount points in the real root. The host hears of them: only there is known who else has a shared root.
    pub points: Vec<PathBuf>,
    /// Whether they are the host's to remove.
    shared: bool,
    /// Writable file systems below it, which no path leads to any more.
    below: Vec<OwnedFd>,
}

impl Made {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a mount point. It comes before those that were added earlier: what is in a directory goes before the directory.
    pub fn add(&mut self, point: &Path) {
        self.points.insert(0, point.to_owned());
    }
}

/// Mounts the real root by boot.json's steps and makes it `/`. What was made is in `made`, also after an error.
///
/// # Errors
/// The step that fails, by name.
pub fn enter_root(boot: &Boot, made: &mut Made) -> Result<(), Error> {
    for step in &boot.mounts {
        mount_step(step)?;
        if !step.directories.is_empty() {
            let below = open(&step.target, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            made.below.push(below.map_err(|error| Error::step(format!("open {:?}", step.target), error.into()))?);
        }
    }
    let root = Path::new(boot::NEW_ROOT);
    let Some(step) = boot.mounts.iter().find(|step| step.target == root) else {
        return Err(Error::step("enter the root".into(), io::Error::other("boot.json mounts nothing on /mnt")));
    };
    made.shared = step.fstype == "virtiofs";
    for name in MOVED.iter().chain(&[SHARE]) {
        // A symlink could lead the mount anywhere, also over what is mounted already. Nothing is made before all is clear.
        if fs::symlink_metadata(root.join(name)).is_ok_and(|there| !there.is_dir()) {
            let why = io::Error::other("the image has something else than a directory there");
            return Err(Error::step(format!("mount /{name}"), why));
        }
    }
    for name in MOVED {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        make_mount_point(&to, name, made)?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| Error::step(format!("move {} to the root", from.display()), error.into()))?;
    }
    let msb = root.join(SHARE);
    make_mount_point(&msb, SHARE, made)?;
    let share = Path::new("/").join(boot::MSB_DIR);
    mount(Some(&share), &msb, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| {
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
            mount(None::<&str>, &msb, None::<&str>, read_only | MsFlags::MS_NODEV, None::<&str>)
        })
        .map_err(|error| Error::step("mount /.msb".into(), error.into()))?;
    if let Err(error) = show_profile(root, made) {
        crate::say(&format!("{}: {error}", root.join(PROFILE).display()));
    }
    // As switch_root(8) does it: the new root over the old one, then into it.
    let into = || -> nix::Result<()> {
        nix::unistd::chdir(root)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        nix::unistd::chroot(".")?;
        nix::unistd::chdir("/")
    };
    into().map_err(|error| Error::step("enter the root".into(), error.into()))?;
    // From here on a path is the root's, and the image's symlinks lead nowhere else.
    let run = run::mount_tmpfs(made)?;
    etc::bind_all(&boot.hostname, run.as_deref(), made);
    make_directories(boot);
    Ok(())
}

/// Makes the directories that the image declares and need not have: its volumes and its working directory. Says which one cannot be
/// made.
fn make_directories(boot: &Boot) {
    let cwd = Some(&boot.defaults.cwd).filter(|cwd| !cwd.is_empty());
    for directory in boot.directories.iter().chain(cwd) {
        if let Err(error) = path::make_directories(Path::new("/"), Path::new(directory), &mut Made::new()) {
            crate::say(&format!("make the directory {directory:?}: {error}"));
        }
    }
}

/// Where the boot share is shown.
pub const SHARE: &str = ".msb";
/// What login shells read, where they read such files at all.
pub const PROFILE: &str = "etc/profile.d/msb-scripts.sh";

/// Shows the file that puts the scripts on PATH again where login shells look for it. An image that has no such place needs none.
fn show_profile(root: &Path, made: &mut Made) -> io::Result<()> {
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
                made.add(&Path::new("/").join(PROFILE));
            }
        }
    }
    let source = Path::new("/").join(boot::MSB_DIR).join(script::PROFILE_NAME);
    Ok(mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Mounts by boot.json's steps alone.
///
/// # Errors
/// The step that fails, by name.
pub fn mount_steps(boot: &Boot) -> Result<(), Error> {
    boot.mounts.iter().try_for_each(mount_step)
}

/// A runtime mounts on directories that an image need not have; what we make we also take away.
fn make_mount_point(path: &Path, name: &str, made: &mut Made) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let is_ours = path::make(path, || fs::create_dir(path));
    if is_ours.map_err(|error| Error::step(format!("make the mount point /{name}"), error))? {
        made.add(&Path::new("/").join(name));
    }
    Ok(())
}

/// How far an image is read ahead, in KiB. The kernel's default, 128, makes more of requests, and each takes a way out of the VM.
const READ_AHEAD: usize = 1024;

fn mount_step(step: &MountStep) -> Result<(), Error> {
    if step.fstype == "erofs" {
        // Without it everything works, only slower.
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
    let aside = directory.path.with_extension("new");
    match fs::DirBuilder::new().mode(0o700).create(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if let Some(like) = &directory.like {
        copy_attributes(&Dir::open(like)?.to_entry()?, &Dir::open(&aside)?.to_entry()?)?;
    }
    fs::rename(&aside, &directory.path)
}

/// Takes everything down again, last mount first: what can be unmounted is, the rest is made read-only.
pub fn leave_root(made: &Made) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    for target in
        msb::overlay::mountinfo::mount_points(&table).rev().filter(|target| target != "/" && target != "/proc")
    {
        let _ = umount2(target.as_os_str(), MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(target.as_os_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
    }
    let _ = umount2("/proc", MntFlags::MNT_DETACH);
    for path in made.points.iter().filter(|_| !made.shared) {
        let remove = || fs::remove_dir(path).or_else(|_| fs::remove_file(path));
        let _ = Dir::open(path.parent().unwrap_or(path)).and_then(|parent| keeping_times(&parent, remove));
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>);
    // After that, so that it has nothing to write any more: its journal is empty for the next boot.
    for below in &made.below {
        let _ =
            nix::unistd::fchdir(below).and_then(|()| mount(None::<&str>, ".", None::<&str>, read_only, None::<&str>));
    }
}
