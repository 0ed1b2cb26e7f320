//! A VM that starts from a saved one: the VMM loads the state, and the agent is told what makes this machine another one.
//!
//! Where the time goes, emulated by QEMU 7.2 (a small guest, two processors, real-time priority, Linux 6.18): from the record to the first
//! answered command 199 ms, 0.17 of a boot with a command (1196 ms). Of 185 ms in another run, 8 passed in the client, 10 until QEMU's
//! process, 20 until QEMU had opened the memory, 8 until it had loaded the state; then the guest ran, 62 ms until the agent's report and
//! 84 ms for the command. In these, QEMU translates code that it has not seen: 9600 blocks until the report and 14000 for the command, at
//! 6 µs each (a second command: about 100, and 8 ms in all; a boot with a command: 80000). 84 % of the virtual processor's time is the
//! translator, and 4 % the translated code. So a start takes as much processor time (198 ms) as time, and ten at once on two processors
//! take five times as long as one at the least. Without `-sandbox` QEMU starts no sooner.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use msb::record::Endpoint;
use msb::vm::boot::Boot;
use msb::wire::channel::RESTART;
use msb::wire::exec::Resume;
use msb::wire::{self, Message, dial};
use serde_json::json;

use super::memory::Memory;
use super::parts::Parts;
use crate::guest_memory;
use crate::inherited_fd::InheritedFd;

/// How many random bytes the guest gets.
const ENTROPY: usize = 64;

/// The outcome of loading a state, once there is one.
pub(crate) struct Loaded(PipeReader);

impl Loaded {
    /// Loads in a thread.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub(super) fn start(load: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> io::Result<Self> {
        let (ours, mut theirs) = io::pipe()?;
        std::thread::spawn(move || {
            if let Err(error) = load()
                && !is_end(&error)
            {
                let _ = theirs.write_all(format!("{error:#}").as_bytes());
            }
        });
        Ok(Self(ours))
    }

    /// Waits for the outcome. Returns why the state was not loaded, or `None` if it was.
    pub(crate) fn failure(&self) -> Option<String> {
        let mut message = String::new();
        let _ = (&self.0).read_to_string(&mut message);
        Some(message).filter(|message| !message.is_empty())
    }
}

/// Whether the error says that the VMM has ended. A VMM that refuses the state has written the reason to its stderr.
fn is_end(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let is_end = |error: &io::Error| matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
    error.downcast_ref::<io::Error>().is_some_and(is_end)
}

impl AsFd for Loaded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What makes a machine another one. The time and the random bytes are set when they are sent.
///
/// # Errors
/// Those of `getrandom(2)`.
pub(super) fn other(boot: &Boot, new_machine_id: bool) -> anyhow::Result<Resume> {
    let mut entropy = vec![0; ENTROPY];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    let (hostname, defaults) = (boot.hostname.clone(), boot.defaults.clone());
    Ok(Resume { now_ms: 0, entropy, hostname, defaults, new_machine_id })
}

/// Lets the VMM load the state in the descriptor `state`, which it has inherited, and lets the guest go on. The agent then reports as after
/// a boot.
///
/// # Errors
/// Another VMM than the `expected` one, which is not tried; a state that the VMM does not take; an agent that does not answer.
pub(super) fn run(
    parts: &Parts,
    state: InheritedFd,
    expected: &str,
    endpoint: &Endpoint,
    mut other: Resume,
) -> anyhow::Result<()> {
    let mut monitor = parts.monitor();
    if let Memory::Private { saved, .. } = &parts.memory {
        guest_memory::answer(monitor.socket(), saved.as_fd())?;
    }
    let version = monitor.version()?;
    if version != expected {
        bail!("it was saved by QEMU {expected}, and this is QEMU {version} (make another with msb-snapshot)");
    }
    monitor.execute("migrate-incoming", &json!({"uri": format!("fd:{state}")}), None)?;
    monitor.await_migration()?;
    monitor.execute("cont", &json!({}), None)?;
    drop(monitor);
    rustix::io::write(&parts.channel, &[RESTART])?;
    let mut agent = dial_agent(endpoint)?;
    other.now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    Message::Resume(Box::new(other)).send(&mut agent)?;
    // The agent closes the connection when it has read the message. Closing it here first could discard the message.
    agent.set_read_timeout(Some(dial::TIMEOUT))?;
    let _ = Message::receive(&mut agent);
    Ok(())
}

/// Connects to the agent. On a busy host one attempt may time out. The loop ends when the supervisor ends the VM at its boot limit, because
/// connecting then fails.
fn dial_agent(endpoint: &Endpoint) -> Result<UnixStream, wire::Error> {
    use io::ErrorKind::{TimedOut, WouldBlock};
    loop {
        match dial::dial(endpoint) {
            Err(wire::Error::Io(error)) if matches!(error.kind(), TimedOut | WouldBlock) => {}
            other => return other,
        }
    }
}
