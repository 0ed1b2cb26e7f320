//! The process that stands for a container: the one whose PID the caller gets. It ends when the container's command ends, with its status.
//!
//! It is the first process of a PID namespace, its root is the container's tree, and its other namespaces and its cgroup are the
//! container's: callers enter them through its PID, so none of them may be the host's. It holds none of the container's streams.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use msb::inherited;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const ROLE: &str = "--as-stand-in";

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    /// What becomes its root.
    pub tree: PathBuf,
    /// The bundle, where engines look for the file `oom`.
    pub bundle: PathBuf,
    /// Where it says that it is ready, or why not.
    pub ready: RawFd,
    /// Whether it only holds a pod's namespaces.
    pub is_sandbox: bool,
    /// For a sandbox: whether it has the pod's VM, and ends with it.
    pub has_vm: bool,
    /// Where it reads how the command has ended; for a sandbox, that its create has succeeded.
    pub ended: RawFd,
    /// What shows others that it lives.
    pub alive: RawFd,
}

/// What it says when it is ready.
pub(crate) const READY: &[u8] = b"ready";
/// The message for a sandbox that its create has succeeded. If the create is killed, the pipe ends without it.
pub(crate) const CREATED: &[u8] = b"created";

/// The status of a command that ended without one: msb-exec's for failures that are not the command's.
const UNKNOWN: u8 = msb::tool::exit::TOOL_FAILED;
/// The longest line about the end, in bytes.
const MAX_LINE: u64 = 64 << 10;

pub(crate) fn run(description: Description) -> ExitCode {
    // Its callers signal the command by "kill". Nothing else but KILL ends this process, and none of its own has a handler.
    let _ = SigSet::all().thread_set_mask();
    let prepared = prepare(&description);
    let Ok(ready) = inherited::take(description.ready) else { return ExitCode::FAILURE };
    let (ended, alive, bundle) = match prepared {
        Ok(fds) => fds,
        Err(error) => {
            let _ = File::from(ready).write_all(format!("{error:#}").as_bytes());
            return ExitCode::FAILURE;
        }
    };
    if File::from(ready).write_all(READY).is_err() {
        return ExitCode::FAILURE;
    }
    let ended = File::from(ended);
    let status = if !description.is_sandbox {
        status(ended, &bundle)
    } else if is_created(ended) {
        wait_for_signal(description.has_vm.then_some(&alive))
    } else {
        UNKNOWN
    };
    drop(alive);
    status.into()
}

fn prepare(description: &Description) -> anyhow::Result<(OwnedFd, OwnedFd, OwnedFd)> {
    let bundle =
        rustix::fs::open(&description.bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let bundle = bundle.with_context(|| format!("bundle {:?}", description.bundle))?;
    let ended = inherited::take(description.ended).context("descriptors")?;
    let alive = inherited::take(description.alive).context("descriptors")?;
    enter_root(&description.tree).with_context(|| format!("root {:?}", description.tree))?;
    Ok((ended, alive, bundle))
}

/// Makes the tree the root, in a mount namespace that has nothing else.
fn enter_root(tree: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    std::env::set_current_dir(tree)?;
    // pivot_root(2) stacks the old root on the new one, and the unmount takes it away.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Waits until the last writer is gone, and reads the status.
fn status(ended: File, bundle: &OwnedFd) -> u8 {
    let mut text = String::new();
    let _ = ended.take(MAX_LINE).read_to_string(&mut text);
    let end = End::parse(&text);
    if end.is_oom {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _ = rustix::fs::openat(bundle, "oom", flags, Mode::RUSR | Mode::WUSR);
    }
    end.status
}

/// How the command has ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    status: u8,
    /// Whether the guest's kernel killed it for want of memory.
    is_oom: bool,
}

impl End {
    /// Reads what msb-exec writes with --json-status.
    fn parse(text: &str) -> Self {
        let line = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()).unwrap_or_default();
        let status = line["status"].as_u64().and_then(|status| u8::try_from(status).ok());
        Self { status: status.unwrap_or(UNKNOWN), is_oom: line["oom"] == true }
    }
}

/// Waits until the create has ended, and tells whether it succeeded.
fn is_created(created: File) -> bool {
    let mut message = Vec::new();
    created.take(MAX_LINE).read_to_end(&mut message).is_ok() && message == CREATED
}

/// Waits until a signal asks for the end, or the VM that reads `alive` has ended.
fn wait_for_signal(alive: Option<&OwnedFd>) -> u8 {
    const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];
    let Ok(signals) = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC) else { return UNKNOWN };
    loop {
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        // poll(2) reports a pipe without a reader even if no event is requested.
        fds.extend(alive.map(|alive| PollFd::new(alive, PollFlags::empty())));
        if poll(&mut fds, None).is_err_and(|error| error != rustix::io::Errno::INTR) {
            return UNKNOWN;
        }
        if fds.get(1).is_some_and(|alive| !alive.revents().is_empty()) {
            return UNKNOWN;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        let Ok(Some(info)) = signals.read_signal() else { continue };
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        if signal.is_some_and(|signal| ENDING.contains(&signal)) {
            return 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_whose_create_was_killed_is_not_created() {
        for (message, expected) in [(CREATED, true), (&b""[..], false)] {
            let (created, end) = crate::inherited::pipe().unwrap();
            File::from(end).write_all(message).unwrap();
            assert_eq!(is_created(File::from(created)), expected, "{message:?}");
        }
    }

    #[test]
    fn a_sandbox_ends_with_the_vm_that_reads_its_pipe() {
        let (is_read, alive) = crate::inherited::pipe().unwrap();
        drop(is_read);
        assert_eq!(wait_for_signal(Some(&alive)), UNKNOWN);
    }

    #[test]
    fn the_status_is_the_commands_and_a_lost_one_is_a_failure() {
        for (text, status, is_oom) in [
            ("{\"status\":0,\"exit\":0}\n", 0, false),
            ("{\"status\":137,\"signal\":9,\"oom\":true}", 137, true),
            ("{\"status\":255,\"oom\":false}\nrest", 255, false),
            ("{\"status\":256}", UNKNOWN, false),
            ("{}", UNKNOWN, false),
            ("", UNKNOWN, false),
            ("no json", UNKNOWN, false),
        ] {
            assert_eq!(End::parse(text), End { status, is_oom }, "{text:?}");
        }
    }
}
