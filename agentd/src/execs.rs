//! The execs that there are, by number, and how somebody who was not there at the start comes to one.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msb::wire::Stream;
use msb::wire::exec::{Execs as Listing, Exit, Listed, Text};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vsock::VsockStream;

use crate::cgroup::Cgroups;
use crate::reap::Awaited;

/// How many detached execs are kept whole after their end, with the newest of their outputs.
const KEPT_WHOLE: usize = 32;
/// Of how many detached execs that are not kept whole any more the exit is, the oldest going first. Each takes some 30 bytes.
const KEPT_EXITS: usize = 1 << 16;
/// How much of a command line is listed, in bytes: what all execs together have fits in a frame.
const MAX_LISTED: usize = 200;

/// All execs, and their cgroups.
#[derive(Debug, Default)]
pub struct Execs {
    known: Mutex<Known>,
    /// Their cgroups.
    pub cgroups: Cgroups,
}

#[derive(Debug, Default)]
struct Known {
    /// The newest exec's number; those that there ever were are 1 to this.
    last: u32,
    /// Those that run, and those that are kept whole.
    all: BTreeMap<u32, Arc<Exec>>,
    exits: BTreeMap<u32, Past>,
}

/// What is kept of an exec that ended long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The process ID that its command had.
    pub pid: i32,
    code: Option<u8>,
    signal: Option<u8>,
}

impl Past {
    /// How it ended, without what it took.
    pub fn exit(&self) -> Exit {
        Exit { code: self.code, signal: self.signal.map(i32::from), usage: None }
    }
}

/// What is known of an exec's number.
#[derive(Debug)]
pub enum Found {
    /// It runs, or is kept whole.
    Whole(Arc<Exec>),
    /// It has ended, and only how is still known.
    Exit(Past),
    /// It has ended, and nothing is kept.
    Forgotten,
    /// There never was one.
    Never,
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
    /// Its thread has ended and left the newest of its outputs.
    Ended(Arc<Rest>),
}

/// The newest bytes of each output.
pub type Rest = Vec<(Stream, VecDeque<u8>)>;

/// What became of somebody who wants to be the caller.
#[derive(Debug)]
pub enum Entry {
    /// The exec's own thread takes over.
    Taken,
    /// The exec has ended: this is left.
    Ended(VsockStream, Arc<Rest>),
    /// There is a caller.
    Busy(VsockStream),
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exec that has started, with a caller but where it is detached.
    ///
    /// # Errors
    /// What `eventfd(2)` says.
    pub fn add(&self, process: Arc<Awaited>, argv: &[Text], detached: bool) -> std::io::Result<Arc<Exec>> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut known = self.lock();
        known.last += 1;
        let exec = Arc::new(Exec {
            id: known.last,
            process,
            argv: cut(argv),
            detached: detached.into(),
            door: Mutex::new(Door::Open { attached: !detached, waiting: None }),
            bell,
        });
        known.all.insert(exec.id, Arc::clone(&exec));
        Ok(exec)
    }

    /// Forgets an exec that has ended; of a detached one something is kept, less and less as there are newer ones.
    pub fn end(&self, exec: &Exec) {
        let mut known = self.lock();
        if !exec.is_detached() {
            known.all.remove(&exec.id);
            return;
        }
        let ended: Vec<u32> = known.all.values().filter(|exec| exec.has_ended()).map(|exec| exec.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(KEPT_WHOLE)) {
            if let Some(exec) = known.all.remove(id) {
                known.keep_exit(*id, exec.process.pid, exec.exit().unwrap_or_default());
            }
        }
    }

    /// What is known of a number.
    pub fn find(&self, id: u32) -> Found {
        let known = self.lock();
        match known.all.get(&id) {
            Some(exec) => Found::Whole(Arc::clone(exec)),
            None => known.past(id),
        }
    }

    /// Those that run and those that are kept whole, as others see them, and how many more there are of which the exit is known.
    pub fn list(&self) -> Listing {
        let known = self.lock();
        let execs = known.all.values().map(|exec| exec.listed()).collect();
        Listing { execs, older: u32::try_from(known.exits.len()).unwrap_or(u32::MAX) }
    }
}

impl Known {
    fn keep_exit(&mut self, id: u32, pid: i32, exit: Exit) {
        let signal = exit.signal.and_then(|signal| u8::try_from(signal).ok());
        self.exits.insert(id, Past { pid, code: exit.code, signal });
        while self.exits.len() > KEPT_EXITS {
            self.exits.pop_first();
        }
    }

    /// What is known of an exec that is not kept whole.
    fn past(&self, id: u32) -> Found {
        match self.exits.get(&id) {
            Some(past) => Found::Exit(*past),
            None if (1..=self.last).contains(&id) => Found::Forgotten,
            None => Found::Never,
        }
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
            Door::Ended(_) => false,
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
            Door::Ended(rest) => Entry::Ended(connection, Arc::clone(rest)),
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
        *door = Door::Ended(Arc::new(rest));
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
    fn exits_are_kept_by_the_thousand_and_forgotten_differs_from_never() {
        let mut known = Known { last: 100_000, ..Known::default() };
        let code = |id: u32| Exit { code: Some((id % 200) as u8), ..Exit::default() };
        for id in 1..=99_999 {
            known.keep_exit(id, id as i32 + 7, code(id));
        }
        known.keep_exit(100_000, 5, Exit { signal: Some(64), ..Exit::default() });
        let oldest = 100_000 - KEPT_EXITS as u32 + 1;
        for id in [oldest, oldest + 1, 99_999] {
            let Found::Exit(past) = known.past(id) else { panic!("{id}") };
            assert_eq!((past.pid, past.exit()), (id as i32 + 7, code(id)));
        }
        let Found::Exit(past) = known.past(100_000) else { panic!() };
        assert_eq!(past.exit(), Exit { code: None, signal: Some(64), usage: None });
        assert!(matches!((known.past(1), known.past(oldest - 1)), (Found::Forgotten, Found::Forgotten)));
        assert!(matches!((known.past(0), known.past(100_001)), (Found::Never, Found::Never)));
    }

    #[test]
    fn a_long_command_line_is_cut() {
        assert_eq!(cut(&["a".into(), "b c".into()]), ["a".into(), Text::from("b c")]);
        let long = cut(&["echo".into(), Text::from("ü".repeat(300)), "x".into()]);
        assert_eq!(long, ["echo".into(), Text::from("ü".repeat(97)), "…".into()]);
    }
}
