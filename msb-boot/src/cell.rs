//! The cell of a process that serves a VM: a root of its own with just what it was given, no network, nobody to signal, and
//! the few capabilities that it needs. Each faces the guest, and libkrun's virtiofs and the block layers follow any name
//! that a guest sends: what is not in the cell cannot be named.
//!
//! Namespaces and capabilities alone make it, so any process can be put in one, also a program that knows nothing of it. The
//! PID namespace is made where the process is started, in [`crate::supervise::crew`].

use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

/// The boot share in the cells of those that serve it.
pub(crate) const BOOT: &str = "/msb/boot";
/// The guest's root in the cells of those that serve it.
pub(crate) const ROOT: &str = "/msb/root";
/// The directory for the VM's sockets.
pub(crate) const DOOR: &str = "/msb/door";
/// The guest's kernel in the cell of the VMM.
pub(crate) const KERNEL: &str = "/msb/kernel";

/// Where the system's programs and libraries are, on one distribution or another. Nothing of a user's is there.
const SYSTEM: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store"];

/// What serving a tree to a guest whose users are many takes: acting as each of them, and as their root.
const SERVING: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// What virtiofsd takes for a sandbox of its own in ours; it lets go of both.
const CONFINING: CapabilitySet = CapabilitySet::SYS_CHROOT.union(CapabilitySet::SETPCAP);

/// The most memory that a cell's own root may take: directories and mount points.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=256k,nr_inodes=256,mode=0755";

/// What a process may do as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Powers {
    /// Nothing that another user may not.
    None,
    /// Serve a tree with all its owners and kinds of files.
    Serve,
    /// The same, and confine itself further.
    ServeConfined,
}

impl Powers {
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::None => CapabilitySet::empty(),
            Self::Serve => SERVING,
            Self::ServeConfined => SERVING.union(CONFINING),
        }
    }
}

/// One thing of the host that is in the cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shown {
    from: PathBuf,
    to: PathBuf,
    writable: bool,
    /// Device nodes work in it.
    devices: bool,
}

/// A cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    shown: Vec<Shown>,
    powers: Powers,
    /// An existing directory, for the cell's root to be put on before it is the root. It is hidden in there.
    stand: PathBuf,
}

impl Cell {
    /// An empty one. `stand` is any directory of the host.
    pub(crate) fn new(stand: &Path, powers: Powers) -> Self {
        Self { shown: Vec::new(), powers, stand: stand.to_owned() }
    }

    /// Shows a file or a directory, with all that is mounted below it, without its device nodes.
    pub(crate) fn show(mut self, from: &Path, to: impl Into<PathBuf>, writable: bool) -> Self {
        self.shown.push(Shown { from: from.to_owned(), to: to.into(), writable, devices: false });
        self
    }

    /// Shows a device node under its own name, where there is one.
    pub(crate) fn show_device(mut self, device: &str) -> Self {
        if Path::new(device).exists() {
            // Read-only is the node, its mode and owner; the device behind it is as it is.
            self.shown.push(Shown { from: device.into(), to: device.into(), writable: false, devices: true });
        }
        self
    }

    /// Shows what is needed to run `program`: itself, and the system's libraries.
    pub(crate) fn show_program(mut self, program: &Path) -> Self {
        for path in SYSTEM.iter().map(Path::new).filter(|path| path.exists()) {
            self = self.show(path, path, false);
        }
        if SYSTEM.iter().any(|system| program.starts_with(system)) { self } else { self.show(program, program, false) }
    }

    /// Puts this process, which has one thread, into the cell. What it has open stays open.
    ///
    /// # Errors
    /// Words for the step that failed; the process must end then.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        msb::overlay::raise_open_files();
        // A core would hold the guest's memory.
        rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        let apart =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        nix::sched::unshare(apart).context("namespaces of its own")?;
        self.build().context("a root of its own")?;
        self.give_up_powers().context("fewer privileges")
    }

    fn build(&self) -> anyhow::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("propagation")?;
        // Copies first: the new root may hide the originals.
        let trees: Vec<OwnedFd> = self.shown.iter().map(Shown::tree).collect::<Result<_, _>>()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("cell", &self.stand, "tmpfs", flags, ROOT_OPTIONS).context("tmpfs")?;
        std::env::set_current_dir(&self.stand)?;
        for (shown, tree) in self.shown.iter().zip(&trees) {
            shown.put(tree).with_context(|| format!("{:?}", shown.from))?;
        }
        drop(trees);
        self.narrow_what_is_below()?;
        // The old root is stacked on the new one, and taken away.
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("old root")?;
        std::env::set_current_dir("/")?;
        rustix::mount::mount_remount("/", flags | MountFlags::BIND | MountFlags::RDONLY, c"").context("read-only root")
    }

    /// A mount below one that is shown came with it and has flags of its own.
    fn narrow_what_is_below(&self) -> anyhow::Result<()> {
        let table = fs::read("/proc/self/mountinfo")?;
        let mounted: Vec<PathBuf> = msb::overlay::mountinfo::mount_points(&table).map(PathBuf::from).collect();
        for shown in &self.shown {
            let top = self.stand.join(shown.inside());
            for point in mounted.iter().filter(|point| point.starts_with(&top)) {
                rustix::mount::mount_remount(point, shown.flags() | MountFlags::BIND, c"")
                    .with_context(|| format!("{point:?}"))?;
            }
        }
        Ok(())
    }

    fn give_up_powers(&self) -> anyhow::Result<()> {
        let kept = self.powers.capabilities();
        rustix::thread::clear_ambient_capability_set()?;
        for capability in CapabilitySet::all().difference(kept).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // One that this kernel does not know.
                Err(rustix::io::Errno::INVAL) => {}
                other => other?,
            }
        }
        rustix::thread::set_thread_groups(&[])?;
        let had = rustix::thread::capabilities(None)?.permitted;
        if !had.contains(kept) {
            bail!("this user lacks {:?}", kept.difference(had));
        }
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets)?;
        Ok(rustix::thread::set_no_new_privs(true)?)
    }
}

impl Shown {
    /// Its path seen from the cell's root, which is not the root yet.
    fn inside(&self) -> &Path {
        self.to.strip_prefix("/").unwrap_or(&self.to)
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::NOSUID;
        flags.set(MountFlags::NODEV, !self.devices);
        flags.set(MountFlags::RDONLY, !self.writable);
        flags
    }

    /// A copy of the mounts.
    fn tree(&self) -> anyhow::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        rustix::mount::open_tree(CWD, &self.from, flags).with_context(|| format!("{:?}", self.from))
    }

    /// Puts the copy in its place in the working directory.
    fn put(&self, tree: &OwnedFd) -> anyhow::Result<()> {
        let place = self.inside();
        if let Some(parent) = place.parent() {
            DirBuilder::new().mode(0o755).recursive(true).create(parent)?;
        }
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir() {
            DirBuilder::new().mode(0o755).recursive(true).create(place)?;
        } else {
            File::create_new(place)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, place, flags)?;
        Ok(())
    }
}
