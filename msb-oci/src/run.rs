//! `run`: all of a container's life in the foreground.

use std::process::{Child, ExitStatus};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::args::{Create, Delete, Global, Kill};
use crate::{create, delete, kill, start};

/// The signals that are passed on to the command. One of them would otherwise end this process and leave the container.
const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// Runs a container. Returns the status of its command.
///
/// # Errors
/// Why it could not be created or started.
pub(crate) fn run(global: &Global, args: &Create) -> anyhow::Result<u8> {
    let mut stand_in = create::create(global, args)?;
    let status = start::start(global, &args.id)
        .and_then(|()| wait(global, &args.id, &mut stand_in).context("process of the container"));
    let deleted = delete::delete(global, &Delete { id: args.id.clone(), force: true });
    let status = status?;
    deleted?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::KILLED))
}

/// Waits for the end of the container, and passes signals on to its command.
fn wait(global: &Global, id: &str, stand_in: &mut Child) -> anyhow::Result<ExitStatus> {
    let ignored = msb::tool::start::ignored().unwrap_or(SigSet::empty());
    let forwarded: SigSet = FORWARDED.into_iter().filter(|&signal| !ignored.contains(signal)).collect();
    // They stay blocked, so that the container is deleted.
    forwarded.thread_block()?;
    let signals = SignalFd::with_flags(&forwarded, SfdFlags::SFD_CLOEXEC)?;
    let ended = pidfd_open(Pid::from_child(stand_in), PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => _ = other?,
        }
        if !fds[0].revents().is_empty() {
            return Ok(stand_in.wait()?);
        }
        if let Some(info) = signals.read_signal()? {
            let kill = Kill { id: id.to_owned(), signal: info.ssi_signo.to_string(), all: false };
            // A command that has ended meanwhile takes none.
            let _ = kill::kill(global, &kill);
        }
    }
}
