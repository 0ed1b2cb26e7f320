//! The execs that there are, by number, and how somebody who was not there at the start comes to one.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msb::wire::Stream;
use msb::wire::exec::{Exit, Listed, Text};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vsock::VsockStream;

use crate::cgroup::Cgroups;
use crate::reap::Awaited;

/// How many detached execs are remembered after their end.
const REMEMBERED: usize = 32;
/// How much of a command line is listed, in bytes: what all execs together have fits in a frame.
const MAX_LISTED: usize = 200;

/// All execs, and their cgroups.
#[derive(Debug, Default)]
pub struct Execs {
    last: AtomicU32,
    all: Mutex<BTreeMap<u32, Arc<Exec>>>,
    /// Their cgroups.
    pub cgroups: Cgroups,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    /// Its number.
    pub id: u32,
    /// Its command.
    pub process: Arc<Awaited>,
    argv: Vec<Text>,
    detached: AtomicBool,
    door: Mutex<Door>,
    bell: EventFd,
}

/// Where a caller comes in.
#[derive(Debug)]
enum Door {
    /// The exec's own thread serves it.
    Open { attached: bool, waiting: Option<VsockStream> },
    /// Its thread has ended and left what nobody has read yet; `None` while somebody reads it.
    Ended(Option<Rest>),
}

/// What nobody has read of each output.
pub type Rest = Vec<(Stream, VecDeque<u8>)>;

/// What became of somebody who wants to be the caller.
#[derive(Debug)]
pub enum Entry {
    /// The exec's own thread takes over.
    Taken,
    /// The exec has ended: this is left. [`Exec::leave`] must follow.
    Ended(VsockStream, Rest),
    /// There is a caller.
    Busy(VsockStream),
}

impl Execs {
    /// A number for the next exec.
    pub fn number(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Exec>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exec that has started, with a caller but where it is detached.
    ///
    /// # Errors
    /// What `eventfd(2)` says.
    pub fn add(&self, id: u32, process: Arc<Awaited>, argv: &[Text], detached: bool) -> std::io::Result<Arc<Exec>> {
        let exec = Arc::new(Exec {
            id,
            process,
            argv: cut(argv),
            detached: detached.into(),
            door: Mutex::new(Door::Open { attached: !detached, waiting: None }),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        self.lock().insert(id, Arc::clone(&exec));
        Ok(exec)
    }

    /// Forgets an exec that has ended; a detached one only when there are newer ones enough.
    pub fn end(&self, exec: &Exec) {
        let mut all = self.lock();
        if !exec.is_detached() {
            all.remove(&exec.id);
            return;
        }
        let ended: Vec<u32> = all.values().filter(|exec| exec.has_ended()).map(|exec| exec.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(REMEMBERED)) {
            all.remove(id);
        }
    }

    /// The exec of a number.
    pub fn find(&self, id: u32) -> Option<Arc<Exec>> {
        self.lock().get(&id).cloned()
    }

    /// All, as others see them.
    pub fn list(&self) -> Vec<Listed> {
        self.lock().values().map(|exec| exec.listed()).collect()
    }
}

impl Exec {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended.
    pub fn exit(&self) -> Option<Exit> {
        self.process.exit()
    }

    /// Whether it goes on without a caller.
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        matches!(*self.door(), Door::Ended(_))
    }

    /// It goes on without a caller from now on.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::Relaxed);
    }

    /// As others see it.
    pub fn listed(&self) -> Listed {
        let attached = match &*self.door() {
            Door::Open { attached, waiting } => *attached || waiting.is_some(),
            Door::Ended(rest) => rest.is_none(),
        };
        let (detached, exit) = (self.is_detached(), self.exit());
        Listed { id: self.id, pid: self.process.pid, argv: self.argv.clone(), detached, attached, exit }
    }

    /// Somebody wants to be the caller.
    pub fn come_in(&self, connection: VsockStream) -> Entry {
        match &mut *self.door() {
            Door::Open { attached: false, waiting } if waiting.is_none() => {
                *waiting = Some(connection);
                let _ = self.bell.write(1);
                Entry::Taken
            }
            Door::Ended(rest) => match rest.take() {
                Some(rest) => Entry::Ended(connection, rest),
                None => Entry::Busy(connection),
            },
            Door::Open { .. } => Entry::Busy(connection),
        }
    }

    /// Becomes readable when a caller waits.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// The caller that waits.
    pub fn caller(&self) -> Option<VsockStream> {
        let _ = self.bell.read();
        match &mut *self.door() {
            Door::Open { attached, waiting } => {
                let caller = waiting.take();
                *attached |= caller.is_some();
                caller
            }
            Door::Ended(_) => None,
        }
    }

    /// The caller is gone.
    pub fn caller_left(&self) {
        if let Door::Open { attached, .. } = &mut *self.door() {
            *attached = false;
        }
    }

    /// The exec's thread ends, unless a caller came at the last moment, who is returned with the rest.
    pub fn leave(&self, rest: Rest) -> Option<(VsockStream, Rest)> {
        let mut door = self.door();
        if let Door::Open { attached, waiting } = &mut *door
            && let Some(caller) = waiting.take()
        {
            *attached = true;
            return Some((caller, rest));
        }
        *door = Door::Ended(Some(rest));
        None
    }
}

/// A command line cut short.
fn cut(argv: &[Text]) -> Vec<Text> {
    let mut left = MAX_LISTED;
    let mut words = Vec::new();
    for word in argv {
        let word = std::ffi::OsString::from(word.clone());
        let bytes = word.as_bytes();
        if bytes.len() < left {
            left -= bytes.len() + 1;
            words.push(word.as_os_str().into());
        } else {
            words.push(String::from_utf8_lossy(&bytes[..left]).trim_end_matches(char::REPLACEMENT_CHARACTER).into());
            words.push("…".into());
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_line_is_cut() {
        assert_eq!(cut(&["a".into(), "b c".into()]), ["a".into(), Text::from("b c")]);
        let long = cut(&["echo".into(), Text::from("ü".repeat(300)), "x".into()]);
        assert_eq!(long, ["echo".into(), Text::from("ü".repeat(97)), "…".into()]);
    }
}
