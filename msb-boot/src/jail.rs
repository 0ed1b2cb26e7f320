//! The jail of a process that serves a VM: a root of its own that holds only what was bound into it, no network, an own PID namespace,
//! and only the capabilities that it needs. Each of these processes faces the guest, and libkrun's virtiofs and the block layers follow
//! any name that a guest sends, so a file that is not in the jail cannot be reached.
//!
//! The jail consists of namespaces and capabilities only, so any program can run in one. The PID namespace is made where the process
//! is started, in [`crate::processes`].

use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::{mountinfo, user_namespace};
use msb::tool::capability;
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::pinned_path::PinnedPath;
use crate::unusable::Unusable;

/// The boot share, in the jail of a process that serves it.
pub(crate) const BOOT_SHARE: &str = "/msb/boot";
/// The guest's root, in the jail of a process that serves it.
pub(crate) const ROOT: &str = "/msb/root";
/// The directory for the VM's sockets.
pub(crate) const SOCKET_DIR: &str = "/msb/sockets";
/// The guest's kernel, in the VMM's jail.
pub(crate) const KERNEL: &str = "/msb/kernel";

/// Where distributions have programs and libraries. None of these directories holds users' files.
const SYSTEM: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store"];

/// The capabilities for serving a tree to a guest with many users: acting as each of them, and as root.
const SERVE_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// The capabilities that virtiofsd needs for its own sandbox within the jail. It drops both.
const SANDBOX: CapabilitySet = CapabilitySet::SYS_CHROOT.union(CapabilitySet::SETPCAP);

/// The user that nobody else is.
const NOBODY: u32 = 65534;

/// The limits of the tmpfs that is the jail's root. It holds only directories and mount points.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=256k,nr_inodes=256,mode=0755";

/// The capabilities that a process keeps in its jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capabilities {
    /// None.
    None,
    /// Those for serving a tree with all its owners and file types.
    ServeFiles,
    /// The same, and those for a sandbox within the jail.
    ServeFilesSandboxed,
    /// The one for binding ports below 1024.
    BindPorts,
}

impl Capabilities {
    fn set(self) -> CapabilitySet {
        match self {
            Self::None => CapabilitySet::empty(),
            Self::ServeFiles => SERVE_FILES,
            Self::ServeFilesSandboxed => SERVE_FILES.union(SANDBOX),
            Self::BindPorts => CapabilitySet::NET_BIND_SERVICE,
        }
    }
}

/// A bind mount of a file or directory of the host in the jail.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bind {
    source: Source,
    target: PathBuf,
    writable: bool,
    /// Whether device nodes work in it.
    devices: bool,
}

/// What a bind mount shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    /// The file at a path.
    Path(PathBuf),
    /// The file at a path, if it is still the same one.
    Pinned(PinnedPath),
}

/// The description of a jail. The methods that add to it are named as bubblewrap's options.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Jail {
    binds: Vec<Bind>,
    /// Empty directories.
    dirs: Vec<PathBuf>,
    capabilities: Capabilities,
    /// Whether it keeps the network of the process that starts it.
    shares_net: bool,
    /// The user and group that it becomes; `None` for root.
    user: Option<u32>,
    /// A directory of the host on which the jail's root is mounted before pivot_root(2).
    mount_point: PathBuf,
}

/// Checks that this user can put processes into jails.
///
/// # Errors
/// The privilege that is missing.
pub(crate) fn check_privileges() -> Result<(), Unusable> {
    let missing = capability::check_sys_admin();
    missing.map_err(|missing| Unusable::new(format!("cannot confine a VM: {}", missing.found), missing.remedy))
}

impl Jail {
    /// An empty jail. `mount_point` is any directory of the host.
    pub(crate) fn new(mount_point: &Path, capabilities: Capabilities) -> Self {
        let mount_point = mount_point.to_owned();
        Self { binds: Vec::new(), dirs: Vec::new(), capabilities, shares_net: false, user: None, mount_point }
    }

    /// Binds a file or a directory with all mounts below it, writable. Device nodes do not work in it.
    pub(crate) fn bind(self, source: &Path, target: &Path) -> Self {
        self.add(Source::Path(source.to_owned()), target, true)
    }

    /// Binds a file or a directory with all mounts below it, read-only. Device nodes do not work in it.
    pub(crate) fn ro_bind(self, source: &Path, target: &Path) -> Self {
        self.add(Source::Path(source.to_owned()), target, false)
    }

    /// Binds a file or a directory with all mounts below it, if it is still the same. It may be inside an earlier bind, where its mount
    /// point must exist. Device nodes do not work in it.
    pub(crate) fn bind_pinned(self, source: &PinnedPath, target: &Path, writable: bool) -> Self {
        self.add(Source::Pinned(source.clone()), target, writable)
    }

    fn add(mut self, source: Source, target: &Path, writable: bool) -> Self {
        self.binds.push(Bind { source, target: target.to_owned(), writable, devices: false });
        self
    }

    /// Binds a device node at its own path, if the host has it.
    pub(crate) fn dev_bind_try(mut self, device: &str) -> Self {
        if Path::new(device).exists() {
            // A read-only mount protects the node's mode and owner; the device itself can still be written to.
            let source = Source::Path(device.into());
            self.binds.push(Bind { source, target: device.into(), writable: false, devices: true });
        }
        self
    }

    /// Binds what `program` needs to run: the program itself and the system's libraries.
    pub(crate) fn ro_bind_program(mut self, program: &Path) -> Self {
        for path in SYSTEM.iter().map(Path::new).filter(|path| path.exists()) {
            self = self.ro_bind(path, path);
        }
        if SYSTEM.iter().any(|system| program.starts_with(system)) { self } else { self.ro_bind(program, program) }
    }

    /// Makes an empty directory.
    pub(crate) fn dir(mut self, target: &Path) -> Self {
        self.dirs.push(target.to_owned());
        self
    }

    /// Keeps the network.
    pub(crate) fn share_net(mut self) -> Self {
        self.shares_net = true;
        self
    }

    /// Runs as this user and the group of the same number. Capabilities that are kept become ambient.
    pub(crate) fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Moves this process, which must have one thread, into the jail. Open descriptors stay open.
    ///
    /// # Errors
    /// The step that failed. The process must exit then: it may be half confined.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        msb::overlay::raise_open_files();
        // A core dump would contain the guest's memory.
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        namespaces.set(CloneFlags::CLONE_NEWNET, !self.shares_net);
        nix::sched::unshare(namespaces).context("new namespaces")?;
        self.mount_root().context("a new root")?;
        self.drop_capabilities().context("dropping privileges")
    }

    fn mount_root(&self) -> anyhow::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("propagation")?;
        // All sources are cloned before the tmpfs is mounted, which may hide them.
        let trees: Vec<OwnedFd> = self.binds.iter().map(Bind::clone_tree).collect::<Result<_, _>>()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("jail", &self.mount_point, "tmpfs", flags, ROOT_OPTIONS).context("tmpfs")?;
        std::env::set_current_dir(&self.mount_point)?;
        for (bind, tree) in self.binds.iter().zip(&trees) {
            bind.mount(tree).with_context(|| format!("{:?}", bind.target))?;
        }
        drop(trees);
        for dir in &self.dirs {
            make_directory(dir.strip_prefix("/").unwrap_or(dir)).with_context(|| format!("{dir:?}"))?;
        }
        self.restrict_submounts()?;
        // pivot_root(2) stacks the old root on the new one, and the unmount takes it away.
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("old root")?;
        std::env::set_current_dir("/")?;
        rustix::mount::mount_remount("/", flags | MountFlags::BIND | MountFlags::RDONLY, c"").context("read-only root")
    }

    /// Sets each bind's flags on all mounts below it: a cloned submount keeps its own flags. What the host has mounted read-only stays
    /// that.
    fn restrict_submounts(&self) -> anyhow::Result<()> {
        let table = fs::read("/proc/self/mountinfo")?;
        for mount in mountinfo::mounts(&table) {
            let point = Path::new(&mount.point);
            // A bind inside another one is the later of the two.
            let is_above = |bind: &&Bind| point.starts_with(self.mount_point.join(bind.relative_target()));
            let Some(bind) = self.binds.iter().rev().find(is_above) else { continue };
            let mut flags = bind.flags() | MountFlags::BIND;
            flags.set(MountFlags::RDONLY, mount.is_readonly || !bind.writable);
            // In a user namespace, flags of the host's mounts cannot be taken away.
            flags.set(MountFlags::NOEXEC, mount.is_noexec);
            rustix::mount::mount_remount(point, flags, c"").with_context(|| format!("{point:?}"))?;
        }
        Ok(())
    }

    fn drop_capabilities(&self) -> anyhow::Result<()> {
        let kept = self.capabilities.set();
        rustix::thread::clear_ambient_capability_set()?;
        for capability in CapabilitySet::all().difference(kept).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // This kernel does not know the capability.
                Err(rustix::io::Errno::INVAL) => {}
                other => other?,
            }
        }
        // In the user namespace of a user, the group of /dev/kvm has no number with which it could be kept.
        if user_namespace::is_initial() || !self.binds.iter().any(|bind| bind.devices) {
            rustix::thread::set_thread_groups(&[])?;
        }
        if let Some(user) = self.user {
            rustix::thread::set_keep_capabilities(true)?;
            become_user(user)?;
        }
        let permitted = rustix::thread::capabilities(None)?.permitted;
        if !permitted.contains(kept) {
            bail!("this user lacks {:?}", kept.difference(permitted));
        }
        let inheritable = if self.user.is_some() { kept } else { CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
        for capability in inheritable.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(rustix::thread::set_no_new_privs(true)?)
    }
}

/// Becomes a user and the group of the same number. In a user namespace that lacks the number, it is nobody.
fn become_user(user: u32) -> anyhow::Result<()> {
    let become_one = |user: u32| {
        let (uid, gid) = (nix::unistd::Uid::from_raw(user), nix::unistd::Gid::from_raw(user));
        nix::unistd::setresgid(gid, gid, gid).and_then(|()| nix::unistd::setresuid(uid, uid, uid))
    };
    match become_one(user) {
        Err(nix::Error::EINVAL) => become_one(NOBODY).context("nobody")?,
        other => other.with_context(|| format!("user {user}"))?,
    }
    // A change of the user clears it.
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

/// A directory that any user can enter, whatever the umask is.
fn make_directory(path: &Path) -> std::io::Result<()> {
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match DirBuilder::new().mode(0o755).create(&made) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?,
        }
    }
    Ok(())
}

impl Bind {
    /// The target, relative to the jail's root.
    fn relative_target(&self) -> &Path {
        self.target.strip_prefix("/").unwrap_or(&self.target)
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::NOSUID;
        flags.set(MountFlags::NODEV, !self.devices);
        flags.set(MountFlags::RDONLY, !self.writable);
        flags
    }

    /// Clones the mounts at the source, detached from the file system.
    fn clone_tree(&self) -> anyhow::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        match &self.source {
            Source::Path(path) => rustix::mount::open_tree(CWD, path, flags).with_context(|| format!("{path:?}")),
            Source::Pinned(pinned) => pinned
                .open()
                .and_then(|fd| Ok(rustix::mount::open_tree(fd, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?))
                .with_context(|| format!("volume {:?}", pinned.path())),
        }
    }

    /// Mounts the cloned tree on the target, which is made below the working directory.
    fn mount(&self, tree: &OwnedFd) -> anyhow::Result<()> {
        let target = self.relative_target();
        if let Some(parent) = target.parent() {
            make_directory(parent)?;
        }
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir() {
            make_directory(target)?;
        } else {
            match File::create_new(target) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, target, flags)?;
        Ok(())
    }
}
