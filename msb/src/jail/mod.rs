//! The jail of a process that serves a VM: a root of its own that holds only what was bound into it, no network, an own PID namespace,
//! only the capabilities and the system calls that it needs. Each of these processes faces the guest, and libkrun's virtiofs and the
//! block layers follow any name that a guest sends, so a file that is not in the jail cannot be reached.
//!
//! What a process may do is in a table, [`profile`]; what it sees is bound by its caller. Everything is set for the calling thread, so
//! any program can run in a jail. The PID namespace is made where the process is started, and [`process`] starts programs.

mod bind;
mod landlock;
pub mod mkfs;
mod page;
mod pinned_path;
mod privileges;
pub mod process;
mod profile;
mod seccomp;
mod syscalls;

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, getrlimit};
use serde::{Deserialize, Serialize};

use self::landlock::Rule;
pub use self::landlock::landlock_abi;
use crate::container;
use crate::inherited;
use crate::overlay::error::{At, Error};
use crate::overlay::{mountinfo, raise_open_files, user_namespace};
use bind::{Bind, Source, make_directory};
pub use page::security_page;
pub use pinned_path::PinnedPath;
pub use privileges::{FIRST_USER, LAST_USER, user_of};
pub use profile::Profile;
use profile::{Execution, Rules, SEALED, User};

/// Where distributions have libraries, and data that belongs to programs. Programs are bound one by one, so there is no shell. None of
/// these directories holds users' files.
const LIBRARIES: [&str; 10] = [
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/qemu",
    "/usr/local/share/qemu",
    "/usr/share/seabios",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
];
/// The same, where they are not links to the directories above.
const ROOT_LIBRARIES: [&str; 3] = ["/lib", "/lib32", "/lib64"];

/// The limits of the tmpfs that is the jail's root. It holds only directories and mount points.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=256k,nr_inodes=256,mode=0755";

/// How many processes and threads the user of a VM may have.
const MAX_THREADS: u64 = 1024;

/// Leaves this process, which must have one thread, nothing but its memory and its open descriptors. That needs no privileges. It keeps
/// its user and its namespaces, and cannot make a call in which they matter.
///
/// # Errors
/// The step that failed. The process must exit then.
pub fn seal() -> Result<(), Error> {
    let limit = SEALED.open_files.map(u64::from);
    for (resource, limit) in [(Resource::Core, Some(0)), (Resource::Nofile, limit)] {
        let limit = Rlimit { current: limit, maximum: limit };
        rustix::process::setrlimit(resource, limit)
            .map_err(io::Error::from)
            .at(|| format!("the limit {resource:?}"))?;
    }
    seccomp::apply(&SEALED, None).at(|| "a filter for system calls")
}

/// The description of a jail. The methods that add to it are named as bubblewrap's options.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Jail {
    profile: Profile,
    binds: Vec<Bind>,
    /// Empty directories.
    dirs: Vec<PathBuf>,
    /// The user and group that it becomes, if its profile says so.
    user: u32,
    /// A directory of the host on which the jail's root is mounted before pivot_root(2).
    mount_point: PathBuf,
}

impl Jail {
    /// An empty jail. `mount_point` is any directory of the host, and `user` the VM's own, from [`user_of`].
    pub fn new(mount_point: &Path, profile: Profile, user: u32) -> Self {
        Self { profile, binds: Vec::new(), dirs: Vec::new(), user, mount_point: mount_point.to_owned() }
    }

    /// Binds a file or a directory with all mounts below it, writable. Device nodes do not work in it.
    #[must_use]
    pub fn bind(self, source: &Path, target: &Path) -> Self {
        self.add(Source::Path(source.to_owned()), target, true)
    }

    /// As [`Self::bind`]. In addition, mounts that the host adds later below a shared mount of the source appear in the jail. They keep
    /// their own flags, so the caller must mount them with `nodev`.
    #[must_use]
    pub fn bind_following(mut self, source: &Path, target: &Path) -> Self {
        let (source, target) = (Source::Path(source.to_owned()), target.to_owned());
        self.binds.push(Bind { source, target, writable: true, follows: true });
        self
    }

    /// Binds a file or a directory with all mounts below it, read-only. Device nodes do not work in it.
    #[must_use]
    pub fn ro_bind(self, source: &Path, target: &Path) -> Self {
        self.add(Source::Path(source.to_owned()), target, false)
    }

    /// Binds a file or a directory with all mounts below it, if it is still the same. It may be inside an earlier bind, where its mount
    /// point must exist. Device nodes do not work in it.
    #[must_use]
    pub fn bind_pinned(self, source: &PinnedPath, target: &Path, writable: bool) -> Self {
        self.add(Source::Pinned(source.clone()), target, writable)
    }

    fn add(mut self, source: Source, target: &Path, writable: bool) -> Self {
        self.binds.push(Bind { source, target: target.to_owned(), writable, follows: false });
        self
    }

    /// Binds a device node at its own path, if the host has it.
    #[must_use]
    pub fn dev_bind_try(self, device: &Path) -> Self {
        // A read-only mount protects the node's mode and owner; the device itself can still be written to.
        if device.exists() { self.add(Source::Device(device.into()), device, false) } else { self }
    }

    /// Binds what `program` needs to run: the program itself and the system's libraries.
    #[must_use]
    pub fn ro_bind_program(mut self, program: &Path) -> Self {
        let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|there| !there.is_symlink());
        for path in LIBRARIES.iter().chain(&ROOT_LIBRARIES).map(Path::new) {
            if is_dir(path) {
                self = self.ro_bind(path, path);
            } else if let (true, Ok(real)) =
                (ROOT_LIBRARIES.iter().any(|root| path == Path::new(root)), path.canonicalize())
            {
                // The name of the dynamic loader in every program has it.
                self = self.ro_bind(&real, path);
            }
        }
        if self.binds.iter().any(|bind| program.starts_with(&bind.target)) {
            self
        } else {
            self.ro_bind(program, program)
        }
    }

    /// Makes an empty directory.
    #[must_use]
    pub fn dir(mut self, target: &Path) -> Self {
        self.dirs.push(target.to_owned());
        self
    }

    /// Moves this process, which must have one thread, into the jail. Open descriptors stay open.
    ///
    /// # Errors
    /// The step that failed. The process must exit then: it may be half confined.
    pub fn enter(&self) -> Result<(), Error> {
        raise_open_files();
        let rules = self.isolate()?;
        self.limit(None)?;
        self.restrict(rules, None)
    }

    /// Moves this process, which must have one thread, into the jail, and executes a program there. Returns only on failure.
    pub fn execute(&self, program: &Path, args: &[OsString]) -> Error {
        match self.try_execute(program, args) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_execute(&self, program: &Path, args: &[OsString]) -> Result<std::convert::Infallible, Error> {
        let subject = || format!("{program:?}");
        let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let path = c_string(program.as_os_str()).at(subject)?;
        let args: Vec<CString> = args.iter().map(|arg| c_string(arg)).collect::<Result<_, _>>().at(subject)?;
        let args: Vec<CString> = [path.clone()].into_iter().chain(args).collect();
        let variable = |(name, value): (OsString, OsString)| {
            let mut variable = name;
            variable.push("=");
            variable.push(value);
            c_string(&variable)
        };
        let env: Vec<CString> = std::env::vars_os().map(variable).collect::<Result<_, _>>().at(subject)?;
        raise_open_files();
        if !self.rules().inherits_files {
            inherited::close(&[])?;
        }
        let program_rules = landlock::program(program).at(subject)?;
        let mut rules = self.isolate()?;
        rules.extend(program_rules);
        let (Execution::Once, Some(limit)) = (self.rules().execution, self.rules().open_files) else {
            self.limit(None)?;
            self.restrict(rules, None)?;
            return nix::unistd::execve(&path, &args, &env).map_err(io::Error::from).at(subject);
        };
        // The filter lets this one number be executed. It is closed by the execution, and no descriptor can have it again, because the
        // limit of open files is below it. A filter sees no paths: this number and an absolute path would do for another file of the
        // jail, and it is Landlock that allows none but this program and its loader.
        let file = rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
        let highest = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(1);
        let number = i32::try_from(highest.min(limit.into())).unwrap_or(i32::MAX);
        let file: OwnedFd = file.and_then(|file| Ok(rustix::io::fcntl_dupfd_cloexec(file, number)?)).at(subject)?;
        self.limit(Some(file.as_raw_fd()))?;
        self.restrict(rules, Some(file.as_raw_fd()))?;
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        nix::unistd::execveat(&file, c"", &args, &env, flags).map_err(io::Error::from).at(subject)
    }

    fn rules(&self) -> Rules {
        self.profile.rules()
    }

    fn user(&self) -> Option<u32> {
        (self.rules().user == User::OfVm).then_some(self.user)
    }

    /// The namespaces, the root, the user and the capabilities. Returns the rules for the files.
    fn isolate(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = Rule::inherited().at(|| "inherited descriptors")?;
        // The new root has no /proc that would tell. In a user namespace the groups may be the only access to /dev/kvm.
        let keeps_groups = !user_namespace::is_initial();
        let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        namespaces.set(CloneFlags::CLONE_NEWNET, !self.rules().has_network);
        container::step(nix::sched::unshare(namespaces).map_err(io::Error::from), "new namespaces")?;
        rules.extend(self.mount_root().at(|| "a new root")?);
        privileges::drop(self.rules().capabilities, self.user(), keeps_groups).at(|| "dropping privileges")?;
        Ok(rules)
    }

    /// The limits of this process. `program` is a descriptor above that of open files.
    fn limit(&self, program: Option<RawFd>) -> Result<(), Error> {
        let set = |resource, value: u64| {
            // Only root may raise the maximum.
            let value = getrlimit(resource).maximum.map_or(value, |maximum| value.min(maximum));
            let limit = Rlimit { current: Some(value), maximum: Some(value) };
            rustix::process::setrlimit(resource, limit)
                .map_err(io::Error::from)
                .at(|| format!("the limit {resource:?}"))
        };
        // A core dump would contain the guest's memory.
        set(Resource::Core, 0)?;
        set(Resource::Memlock, 0)?;
        if self.user().is_some_and(privileges::is_alone) {
            set(Resource::Nproc, MAX_THREADS)?;
        }
        let open_files = program.map(|program| program.unsigned_abs().into());
        match open_files.or(self.rules().open_files.map(u64::from)) {
            Some(limit) => set(Resource::Nofile, limit),
            None => Ok(()),
        }
    }

    /// Landlock, and the filter for system calls. Nothing above works any more after this.
    fn restrict(&self, rules: Vec<Rule>, program: Option<RawFd>) -> Result<(), Error> {
        landlock::restrict(&self.rules(), rules).at(|| "Landlock")?;
        seccomp::apply(&self.rules(), program).at(|| "a filter for system calls")
    }

    /// Returns the rules for what is bound.
    fn mount_root(&self) -> Result<Vec<Rule>, Error> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        // These are cloned first: the clone of a private mount receives no later mounts.
        let following = self.binds.iter().map(|bind| bind.follows.then(|| bind.clone_tree()).transpose());
        let following: Vec<Option<OwnedFd>> = following.collect::<Result<_, _>>()?;
        container::step(rustix::mount::mount_change("/", private).map_err(io::Error::from), "propagation")?;
        // All sources are cloned before the tmpfs is mounted, which may hide them.
        let trees = self.binds.iter().zip(following).map(|(bind, tree)| tree.map_or_else(|| bind.clone_tree(), Ok));
        let trees: Vec<OwnedFd> = trees.collect::<Result<_, _>>()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let tmpfs = rustix::mount::mount("jail", &self.mount_point, "tmpfs", flags, ROOT_OPTIONS);
        tmpfs.map_err(io::Error::from).at(|| "tmpfs")?;
        std::env::set_current_dir(&self.mount_point)?;
        let mut rules = Vec::new();
        for (bind, tree) in self.binds.iter().zip(trees) {
            rules.push(bind.mount(tree, self.user()).at(|| format!("{:?}", bind.target))?);
        }
        for dir in &self.dirs {
            make_directory(dir.strip_prefix("/").unwrap_or(dir)).at(|| format!("{dir:?}"))?;
        }
        self.restrict_submounts()?;
        // pivot_root(2) stacks the old root on the new one, and the unmount takes it away.
        container::step(rustix::process::pivot_root(".", ".").map_err(io::Error::from), "pivot_root")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(io::Error::from).at(|| "old root")?;
        std::env::set_current_dir("/")?;
        let read_only = rustix::mount::mount_remount("/", flags | MountFlags::BIND | MountFlags::RDONLY, c"");
        read_only.map_err(io::Error::from).at(|| "read-only root")?;
        Ok(rules)
    }

    /// Sets each bind's flags on all mounts below it: a cloned submount keeps its own flags. What the host has mounted read-only stays
    /// that.
    fn restrict_submounts(&self) -> Result<(), Error> {
        let table = fs::read("/proc/thread-self/mountinfo")?;
        let mounts = mountinfo::mounts(&table).filter(|mount| Path::new(&mount.point).starts_with(&self.mount_point));
        let mounts: Vec<_> = mounts.collect();
        // The path of a mount that is covered is another file's.
        for mount in mounts.iter().filter(|mount| !mountinfo::is_covered(mount, &mounts)) {
            let point = Path::new(&mount.point);
            // A bind inside another one is the later of the two.
            let is_above = |bind: &&Bind| point.starts_with(self.mount_point.join(bind.relative_target()));
            let Some(bind) = self.binds.iter().rev().find(is_above) else { continue };
            let mut flags = bind.flags() | MountFlags::BIND;
            flags.set(MountFlags::RDONLY, mount.is_readonly || !bind.writable);
            // In a user namespace, flags of the host's mounts cannot be taken away.
            flags.set(MountFlags::NOEXEC, mount.is_noexec);
            rustix::mount::mount_remount(point, flags, c"").map_err(io::Error::from).at(|| format!("{point:?}"))?;
        }
        Ok(())
    }
}
