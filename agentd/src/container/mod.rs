//! A container in the guest. A thread enters new namespaces, makes the container's root there, and starts the command, which is the first
//! process of its PID namespace. The thread then ends. A later command of the same container enters its namespaces in a thread of its own.
//!
//! The container's files may be another container's to change, so every path is resolved inside its root with descriptors.

mod device;
mod failed;
mod late;
mod mount;
mod options;
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use msb::overlay::beneath::Dir;
use msb::wire::container::Container;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use failed::{Failed, at};
pub use late::LateMounts;

/// Where the root is assembled. The namespace is the container's own by then, so nobody else sees what is mounted there.
const STAGING: &str = "/dev/shm";

/// Makes a container and enters it, with the calling thread alone. Children of the thread are in it from then on. The first one is its
/// PID 1, and mounts what is returned.
///
/// # Errors
/// The step that failed. The thread must end then.
pub fn enter_new(
    container: &Container,
    guest_root: &Path,
    cgroup: Option<&Path>,
    cwd: &Path,
) -> Result<LateMounts, Failed> {
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(namespaces).map_err(at("new namespaces"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(at("make the mounts private"))?;
    let guest = Dir::open(guest_root).map_err(at("open the guest's root"))?;
    drop_removed_roots(&guest, &container.root);
    let step = || format!("root {:?}", container.root);
    let source = place::lookup(&guest, Path::new(&container.root)).map_err(at(step()))?;
    if !source.is_dir() {
        return Err((step(), io::ErrorKind::NotADirectory.into()));
    }
    // Not what the guest has mounted below it.
    nix::mount::mount(Some(source.proc_path().as_str()), STAGING, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(at(step()))?;
    let root = place::Root { dir: Dir::open(Path::new(STAGING)).map_err(at(step()))?, path: STAGING.into() };
    let late = mount::all(container, &root, &guest, cgroup)?;
    device::make_all(container, &root)?;
    place::make_directory(&root, cwd).map_err(at(format!("workdir {cwd:?}")))?;
    mount::restrict(container, &root)?;
    set_names(container)?;
    // As in pivot_root(2): the old root is stacked on the new one and detached.
    let enter = || -> nix::Result<()> {
        nix::unistd::fchdir(&root.dir)?;
        nix::unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")
    };
    enter().map_err(at("enter the root"))?;
    Ok(late)
}

/// Looks up the roots of earlier containers. If the host has unmounted one below the shared root, the lookup makes the kernel drop its
/// cached entries, and the host's file server closes the files.
fn drop_removed_roots(guest: &Dir, new: &str) {
    static ROOTS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut roots = ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
    roots.retain(|root| place::lookup(guest, Path::new(root)).is_ok());
    roots.insert(new.to_owned());
}

/// Sets the hostname, the domain name and the kernel parameters. Those of namespaces apply to the namespaces of this thread.
fn set_names(container: &Container) -> Result<(), Failed> {
    if let Some(name) = &container.hostname {
        nix::unistd::sethostname(name).map_err(at(format!("hostname {name:?}")))?;
    }
    let domain = container.domainname.as_ref().map(|name| ("kernel.domainname", name));
    for (name, value) in domain.into_iter().chain(container.sysctl.iter().map(|(name, value)| (name.as_str(), value))) {
        let file = sysctl_file(name).ok_or_else(|| (format!("sysctl {name:?}"), io::ErrorKind::InvalidInput.into()))?;
        fs::write(file, value).map_err(at(format!("sysctl {name:?}")))?;
    }
    Ok(())
}

/// The file of a kernel parameter. `None`: it is not one.
fn sysctl_file(name: &str) -> Option<PathBuf> {
    let is_plain = !name.is_empty() && name.split('.').all(|part| !part.is_empty() && !part.contains('/'));
    is_plain.then(|| Path::new("/proc/sys").join(name.replace('.', "/")))
}

/// Enters the namespaces of a process with the calling thread alone.
///
/// # Errors
/// The step that failed. The thread must end then.
pub fn enter(pid: i32) -> Result<(), Failed> {
    let pid = Pid::from_raw(pid).ok_or_else(|| ("its process".to_owned(), io::ErrorKind::NotFound.into()))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(at("its process"))?;
    // A thread that shares its working directory with others cannot change its mount namespace.
    unshare(CloneFlags::CLONE_FS).map_err(at("a working directory of its own"))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    setns(process, namespaces).map_err(at("enter its namespaces"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_parameter_is_a_file_below_proc_sys() {
        for (name, file) in [
            ("kernel.shmmax", Some("/proc/sys/kernel/shmmax")),
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("a/../../b", None),
            ("..", None),
            ("kernel..x", None),
            ("", None),
        ] {
            assert_eq!(sysctl_file(name).as_deref(), file.map(Path::new), "{name}");
        }
    }
}
