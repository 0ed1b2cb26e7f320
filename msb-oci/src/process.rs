//! A process of the host that is found again later: its PID may have become another one's.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process, and when it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub pid: i32,
    /// In ticks since the boot.
    pub start_time: u64,
}

impl Identity {
    /// A process of this PID.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let (_, start_time) = stat(pid)?;
        Ok(Self { pid, start_time })
    }
}

/// Its state, and the time of its start.
fn stat(pid: i32) -> io::Result<(u8, u64)> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// See proc_pid_stat(5): the name of the program, which is in parentheses, may hold any byte.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether it runs. A zombie does not.
pub(crate) fn is_alive(identity: &Identity) -> bool {
    stat(identity.pid).is_ok_and(|(state, start)| start == identity.start_time && !matches!(state, b'Z' | b'X'))
}

/// Kills it, and waits for up to `timeout` until it has ended.
///
/// # Errors
/// Those of the signal.
pub(crate) fn kill(identity: &Identity, timeout: Duration) -> io::Result<()> {
    let Some(fd) = open(identity) else { return Ok(()) };
    match pidfd_send_signal(&fd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    }
    wait(&fd, timeout)?;
    Ok(())
}

/// Waits for its end. Returns whether it came within `timeout`.
///
/// # Errors
/// Those of `poll(2)`.
pub(crate) fn has_ended_within(identity: &Identity, timeout: Duration) -> io::Result<bool> {
    match open(identity) {
        Some(fd) => wait(&fd, timeout),
        None => Ok(true),
    }
}

/// Opens it, if it runs.
fn open(identity: &Identity) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(identity.pid)?, PidfdFlags::empty()).ok()?;
    // If it was another process before, it is the right one now or has ended.
    is_alive(identity).then_some(fd)
}

fn wait(fd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return Ok(other? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_and_the_start_are_behind_a_name_with_anything_in_it() {
        let rest = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9";
        for name in ["a", "a) Z (b", ") )"] {
            assert_eq!(parse_stat(format!("12 ({name}) S {rest}").as_bytes()), Some((b'S', 4711)), "{name}");
        }
        assert_eq!(parse_stat(b"12 (a"), None);
        assert_eq!(parse_stat(b"12 (a) S 1"), None);
    }

    #[test]
    fn a_process_is_alive_until_it_is_killed_and_a_later_one_of_its_pid_is_another() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let identity = Identity::of(child.id().cast_signed()).unwrap();
        assert!(is_alive(&identity));
        assert!(!has_ended_within(&identity, Duration::ZERO).unwrap());
        assert!(!is_alive(&Identity { start_time: identity.start_time + 1, ..identity.clone() }));
        kill(&identity, Duration::from_secs(60)).unwrap();
        assert!(!is_alive(&identity), "a zombie has ended");
        child.wait().unwrap();
        kill(&identity, Duration::ZERO).unwrap();
        assert!(has_ended_within(&identity, Duration::ZERO).unwrap());
    }
}
