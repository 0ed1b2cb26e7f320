//! The namespaces of a container on the host.
//!
//! What happens in them happens in threads of their own: the root of a user namespace, as a rootless engine has it, may enter what it has
//! made, but may not return to the host's.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, anyhow};
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
    fn of_thread() -> io::Result<Self> {
        let open = |flag, name: &str| Ok::<_, io::Error>((flag, File::open(format!("/proc/thread-self/ns/{name}"))?));
        let namespaces = [
            open(CloneFlags::CLONE_NEWNET, "net")?,
            open(CloneFlags::CLONE_NEWIPC, "ipc")?,
            open(CloneFlags::CLONE_NEWUTS, "uts")?,
            open(CloneFlags::CLONE_NEWNS, "mnt")?,
        ];
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { namespaces, working_directory: rustix::fs::open(".", flags, Mode::empty())? })
    }

    /// Runs `work` in them. This thread stays where it is.
    ///
    /// # Errors
    /// Those of `setns(2)` and `fchdir(2)`, and what `work` says.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        in_thread(|| {
            self.enter().context("namespaces")?;
            work()
        })
    }

    fn enter(&self) -> io::Result<()> {
        // Threads that share their root and working directory cannot enter a mount namespace.
        unshare(CloneFlags::CLONE_FS)?;
        for (flag, file) in &self.namespaces {
            setns(file, *flag)?;
        }
        Ok(rustix::process::fchdir(&self.working_directory)?)
    }
}

/// Makes or opens the namespaces of a plan, and makes a mount namespace, which receives the host's later unmounts. A new UTS namespace
/// gets the host name.
///
/// # Errors
/// The namespace that cannot be made or entered.
pub(crate) fn make(namespaces: &Namespaces, hostname: Option<&str>) -> anyhow::Result<Set> {
    in_thread(|| {
        for (flag, name, namespace) in [
            (CloneFlags::CLONE_NEWNET, "network", &namespaces.network),
            (CloneFlags::CLONE_NEWIPC, "IPC", &namespaces.ipc),
            (CloneFlags::CLONE_NEWUTS, "UTS", &namespaces.uts),
        ] {
            match namespace {
                Namespace::New => unshare(flag).with_context(|| format!("{name} namespace"))?,
                Namespace::Path(path) => enter(path, flag).with_context(|| format!("{name} namespace {path:?}"))?,
            }
        }
        if let (Some(hostname), Namespace::New) = (hostname, &namespaces.uts) {
            let _ = nix::unistd::sethostname(hostname);
        }
        unshare(CloneFlags::CLONE_NEWNS).context("mount namespace")?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("mount namespace")?;
        Set::of_thread().context("namespaces")
    })
}

/// Runs `work` in the network namespace of a file.
///
/// # Errors
/// There is no such namespace. What `work` says.
pub(crate) fn in_network<T: Send>(
    path: &std::path::Path,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    in_thread(|| {
        enter(path, CloneFlags::CLONE_NEWNET).with_context(|| format!("network namespace {path:?}"))?;
        work()
    })
}

/// Runs `work` in the mount namespace of a process.
///
/// # Errors
/// Those of `setns(2)`, and what `work` says.
pub(crate) fn in_mounts<T: Send>(
    process: &OwnedFd,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_FS)?;
        setns(process, CloneFlags::CLONE_NEWNS).context("mount namespace")?;
        work()
    })
}

fn enter(path: &std::path::Path, flag: CloneFlags) -> io::Result<()> {
    Ok(setns(File::open(path)?, flag)?)
}

/// Starts a command as the first process of a new PID namespace.
///
/// # Errors
/// Those of the namespace and of the command.
pub(crate) fn spawn_in_pid_namespace(command: &mut Command) -> anyhow::Result<Child> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWPID)?;
        Ok(command.spawn()?)
    })
}

fn in_thread<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_a_thread_is_the_callers() {
        assert_eq!(in_thread(|| Ok(7)).unwrap(), 7);
        let error = in_network(std::path::Path::new("/nonexistent"), || Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("network namespace \"/nonexistent\""), "{error:#}");
    }
}
