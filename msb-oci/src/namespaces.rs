//! The namespaces of the host and those of the container, between which `create` moves.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::plan::{Namespace, Namespaces};

/// A mount, network, IPC and UTS namespace. Entering that for mounts comes last: it changes what paths mean.
#[derive(Debug)]
pub(crate) struct Set {
    namespaces: [(CloneFlags, File); 4],
    /// The working directory in that mount namespace: setns(2) leaves its root as the working directory.
    working_directory: OwnedFd,
}

impl Set {
    fn of_self() -> io::Result<Self> {
        let open = |flag, name: &str| Ok::<_, io::Error>((flag, File::open(format!("/proc/self/ns/{name}"))?));
        let namespaces = [
            open(CloneFlags::CLONE_NEWNET, "net")?,
            open(CloneFlags::CLONE_NEWIPC, "ipc")?,
            open(CloneFlags::CLONE_NEWUTS, "uts")?,
            open(CloneFlags::CLONE_NEWNS, "mnt")?,
        ];
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { namespaces, working_directory: rustix::fs::open(".", flags, Mode::empty())? })
    }

    /// Moves this process, which must have one thread, there.
    ///
    /// # Errors
    /// Those of `setns(2)` and `fchdir(2)`.
    pub(crate) fn enter(&self) -> io::Result<()> {
        for (flag, file) in &self.namespaces {
            setns(file, *flag)?;
        }
        Ok(rustix::process::fchdir(&self.working_directory)?)
    }
}

/// Where this process came from, and where it is.
#[derive(Debug)]
pub(crate) struct Both {
    pub host: Set,
    pub container: Set,
}

/// Moves this process into the namespaces of a plan, and into a new one for mounts, which receives the host's later unmounts.
///
/// # Errors
/// The namespace that cannot be made or entered.
pub(crate) fn enter(namespaces: &Namespaces) -> anyhow::Result<Both> {
    let host = Set::of_self().context("namespaces")?;
    for (flag, name, namespace) in [
        (CloneFlags::CLONE_NEWNET, "network", &namespaces.network),
        (CloneFlags::CLONE_NEWIPC, "IPC", &namespaces.ipc),
        (CloneFlags::CLONE_NEWUTS, "UTS", &namespaces.uts),
    ] {
        match namespace {
            Namespace::New => unshare(flag).with_context(|| format!("{name} namespace"))?,
            Namespace::Path(path) => {
                let file = File::open(path).with_context(|| format!("{name} namespace {path:?}"))?;
                setns(file, flag).with_context(|| format!("{name} namespace {path:?}"))?;
            }
        }
    }
    unshare(CloneFlags::CLONE_NEWNS).context("mount namespace")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("mount namespace")?;
    Ok(Both { host, container: Set::of_self().context("namespaces")? })
}

/// Starts a command as the first process of a new PID namespace. Later children are in that of this process again.
///
/// # Errors
/// Those of the namespace and of the command.
pub(crate) fn spawn_in_pid_namespace(command: &mut Command) -> io::Result<Child> {
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let child = command.spawn();
    setns(own, CloneFlags::CLONE_NEWPID)?;
    child
}

/// Whether root in a user namespace with this map (user_namespaces(7)) is that of the host: every ID is mapped to itself.
pub(crate) fn is_root_of_host(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_users_namespace_is_not_that_of_the_host() {
        assert!(is_root_of_host("         0          0 4294967295\n"));
        assert!(!is_root_of_host("         0       1000          1\n         1     100000      65536\n"));
        assert!(!is_root_of_host(""));
    }
}
