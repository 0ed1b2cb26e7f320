//! All execs by their ID, and how a later caller attaches to one.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use msb::wire::Stream;
use msb::wire::exec::{Execs as Listing, Exit, Listed, Text};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::cgroup::Cgroups;
use crate::limited::Limited;
use crate::reap::Awaited;

/// How many detached execs are kept after their end with the newest bytes of their outputs.
const MAX_ENDED: usize = 32;
/// How many older detached execs have their exit kept. Each takes about 30 bytes.
const MAX_EXITS: usize = 1 << 16;
/// How much of a command line is listed, in bytes, so that the whole list fits into a frame.
const MAX_LISTED: usize = 200;

/// All execs, and their cgroups.
#[derive(Debug, Default)]
pub struct Execs {
    table: Mutex<Table>,
    /// Their cgroups.
    pub cgroups: Cgroups,
}

#[derive(Debug, Default)]
struct Table {
    /// The newest ID. All IDs from 1 to this have been used.
    last: u32,
    /// The execs that run, and the ended ones that are kept.
    all: BTreeMap<u32, Arc<Exec>>,
    /// The exits of older execs.
    exits: BTreeMap<u32, PastExit>,
}

/// The exit of an exec that is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastExit {
    /// The process ID that its command had.
    pub pid: i32,
    code: Option<u8>,
    signal: Option<u8>,
}

impl PastExit {
    /// Its exit, without resource usage.
    pub fn exit(&self) -> Exit {
        Exit { code: self.code, signal: self.signal.map(i32::from), ..Exit::default() }
    }
}

/// The result of looking up an ID.
#[derive(Debug)]
pub enum Lookup {
    /// It runs, or is kept after its end.
    Exec(Arc<Exec>),
    /// It has ended, and only its exit is kept.
    Exit(PastExit),
    /// It has ended, and nothing is kept.
    Forgotten,
    /// The ID has never been used.
    Unused,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    /// Its ID.
    pub id: u32,
    /// Its command.
    pub process: Arc<Awaited>,
    argv: Vec<Text>,
    is_container: bool,
    limited: Weak<Limited>,
    detached: AtomicBool,
    attachment: Mutex<Attachment>,
    caller_event: EventFd,
}

/// The callers of an exec.
#[derive(Debug)]
enum Attachment {
    /// The exec's thread serves callers.
    Running { attached: bool, waiting: Option<UnixStream> },
    /// Its thread has ended and left the newest bytes of its outputs.
    Ended(Arc<KeptOutput>),
}

/// The newest bytes of each output.
pub type KeptOutput = Vec<(Stream, VecDeque<u8>)>;

/// The result of an attempt to attach.
#[derive(Debug)]
pub enum Attached {
    /// The exec's thread serves the connection.
    Accepted,
    /// The exec has ended. Its output is what was kept.
    Ended(UnixStream, Arc<KeptOutput>),
    /// Another caller is attached.
    Busy(UnixStream),
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an exec that has started. It has a caller unless it is detached.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn add(
        &self,
        process: Arc<Awaited>,
        argv: &[Text],
        is_container: bool,
        limited: Weak<Limited>,
        detached: bool,
    ) -> std::io::Result<Arc<Exec>> {
        let caller_event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut table = self.lock();
        table.last += 1;
        let exec = Arc::new(Exec {
            id: table.last,
            process,
            argv: cut(argv),
            is_container,
            limited,
            detached: detached.into(),
            attachment: Mutex::new(Attachment::Running { attached: !detached, waiting: None }),
            caller_event,
        });
        table.all.insert(exec.id, Arc::clone(&exec));
        Ok(exec)
    }

    /// Removes an exec that has ended. A detached one is kept at first, then only its exit, until there are too many newer ones.
    pub fn end(&self, exec: &Exec) {
        let mut table = self.lock();
        if !exec.is_detached() {
            table.all.remove(&exec.id);
            return;
        }
        let ended: Vec<u32> = table.all.values().filter(|exec| exec.has_ended()).map(|exec| exec.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(MAX_ENDED)) {
            if let Some(exec) = table.all.remove(id) {
                table.keep_exit(*id, exec.process.pid, exec.exit().unwrap_or_default());
            }
        }
    }

    /// Looks up an ID.
    pub fn find(&self, id: u32) -> Lookup {
        let table = self.lock();
        match table.all.get(&id) {
            Some(exec) => Lookup::Exec(Arc::clone(exec)),
            None => table.past(id),
        }
    }

    /// Lists the execs that run or are kept, and counts those of which only the exit is kept.
    pub fn list(&self) -> Listing {
        let table = self.lock();
        let execs = table.all.values().map(|exec| exec.listed()).collect();
        Listing { execs, older: u32::try_from(table.exits.len()).unwrap_or(u32::MAX) }
    }
}

impl Table {
    fn keep_exit(&mut self, id: u32, pid: i32, exit: Exit) {
        let signal = exit.signal.and_then(|signal| u8::try_from(signal).ok());
        self.exits.insert(id, PastExit { pid, code: exit.code, signal });
        while self.exits.len() > MAX_EXITS {
            self.exits.pop_first();
        }
    }

    /// Looks up an exec that is not in `all`.
    fn past(&self, id: u32) -> Lookup {
        match self.exits.get(&id) {
            Some(past) => Lookup::Exit(*past),
            None if (1..=self.last).contains(&id) => Lookup::Forgotten,
            None => Lookup::Unused,
        }
    }
}

impl Exec {
    fn attachment(&self) -> MutexGuard<'_, Attachment> {
        self.attachment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is the first process of a container.
    pub fn is_container(&self) -> bool {
        self.is_container
    }

    /// The cgroup of its container, if that has limits and has not ended.
    pub fn limited(&self) -> Option<Arc<Limited>> {
        self.limited.upgrade()
    }

    /// The first word of its command.
    pub fn program(&self) -> OsString {
        self.argv.first().cloned().map(OsString::from).unwrap_or_default()
    }

    /// Its exit, if it has ended.
    pub fn exit(&self) -> Option<Exit> {
        self.process.exit()
    }

    /// Whether it continues without a caller.
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        matches!(*self.attachment(), Attachment::Ended(_))
    }

    /// Lets it continue without a caller.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::Relaxed);
    }

    /// Its entry in a list.
    pub fn listed(&self) -> Listed {
        let attached = match &*self.attachment() {
            Attachment::Running { attached, waiting } => *attached || waiting.is_some(),
            Attachment::Ended(_) => false,
        };
        let (detached, exit) = (self.is_detached(), self.exit());
        Listed { id: self.id, pid: self.process.pid, argv: self.argv.clone(), detached, attached, exit }
    }

    /// Attaches a caller, if there is none.
    pub fn attach(&self, connection: UnixStream) -> Attached {
        match &mut *self.attachment() {
            Attachment::Running { attached: false, waiting } if waiting.is_none() => {
                *waiting = Some(connection);
                let _ = self.caller_event.write(1);
                Attached::Accepted
            }
            Attachment::Ended(kept) => Attached::Ended(connection, Arc::clone(kept)),
            Attachment::Running { .. } => Attached::Busy(connection),
        }
    }

    /// Becomes readable when a new caller waits.
    pub fn caller_event(&self) -> &EventFd {
        &self.caller_event
    }

    /// Takes the new caller.
    pub fn take_waiting(&self) -> Option<UnixStream> {
        let _ = self.caller_event.read();
        match &mut *self.attachment() {
            Attachment::Running { attached, waiting } => {
                let caller = waiting.take();
                *attached |= caller.is_some();
                caller
            }
            Attachment::Ended(_) => None,
        }
    }

    /// Notes that the caller is gone.
    pub fn caller_left(&self) {
        if let Attachment::Running { attached, .. } = &mut *self.attachment() {
            *attached = false;
        }
    }

    /// Ends the exec's service and keeps its output, unless a new caller waits. Then that is returned, with the output.
    pub fn leave(&self, kept: KeptOutput) -> Option<(UnixStream, KeptOutput)> {
        let mut attachment = self.attachment();
        if let Attachment::Running { attached, waiting } = &mut *attachment
            && let Some(caller) = waiting.take()
        {
            *attached = true;
            return Some((caller, kept));
        }
        *attachment = Attachment::Ended(Arc::new(kept));
        None
    }
}

/// A command line, shortened.
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
        let mut table = Table { last: 100_000, ..Table::default() };
        let code = |id: u32| Exit { code: Some((id % 200) as u8), ..Exit::default() };
        for id in 1..=99_999 {
            table.keep_exit(id, id as i32 + 7, code(id));
        }
        table.keep_exit(100_000, 5, Exit { signal: Some(64), ..Exit::default() });
        let oldest = 100_000 - MAX_EXITS as u32 + 1;
        for id in [oldest, oldest + 1, 99_999] {
            let Lookup::Exit(past) = table.past(id) else { panic!("{id}") };
            assert_eq!((past.pid, past.exit()), (id as i32 + 7, code(id)));
        }
        let Lookup::Exit(past) = table.past(100_000) else { panic!() };
        assert_eq!(past.exit(), Exit { signal: Some(64), ..Exit::default() });
        assert!(matches!((table.past(1), table.past(oldest - 1)), (Lookup::Forgotten, Lookup::Forgotten)));
        assert!(matches!((table.past(0), table.past(100_001)), (Lookup::Unused, Lookup::Unused)));
    }

    #[test]
    fn a_long_command_line_is_cut() {
        assert_eq!(cut(&["a".into(), "b c".into()]), ["a".into(), Text::from("b c")]);
        let long = cut(&["echo".into(), Text::from("ü".repeat(300)), "x".into()]);
        assert_eq!(long, ["echo".into(), Text::from("ü".repeat(97)), "…".into()]);
    }
}
