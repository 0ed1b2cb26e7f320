//! Sends terminal input to the command. The detach keys work whatever the guest does: input is read even without credit, and
//! after the command has closed its stdin.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use msb::wire::{MAX_DATA, Message, Stream, put_data};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::input::Credit;
use crate::keys::Watch;
use crate::sending::Sending;
use crate::tty::Mode;

/// How long the first detach keys are held back. If the next one is typed later, it still detaches; the command has received the
/// first ones by then.
const HOLD: Duration = Duration::from_millis(200);
/// The most bytes that wait for credit before reading stops: more than typed input, less than a large paste.
const MAX_WAITING: usize = 256 << 10;

/// Starts sending input, and calls `detach` when the detach keys are typed.
pub fn send(sending: &Sending, credit: &Arc<Credit>, watch: Watch, mode: Mode, detach: impl FnOnce() + Send + 'static) {
    let (sending, credit) = (sending.clone(), Arc::clone(credit));
    let typed = Typed { sending, credit, watch, mode, waiting: VecDeque::new(), end: End::Open };
    thread::spawn(move || {
        if typed.pump() {
            detach();
        }
    });
}

/// The state of the command's stdin.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// More input may follow.
    Open,
    /// End-of-file follows the waiting input.
    Due,
    /// End-of-file was sent, or the command has closed its stdin.
    Over,
}

struct Typed {
    sending: Sending,
    credit: Arc<Credit>,
    watch: Watch,
    mode: Mode,
    /// Input that waits for credit.
    waiting: VecDeque<u8>,
    end: End,
}

impl Typed {
    /// Reads and sends until input and command have ended. Returns whether the detach keys were typed.
    fn pump(mut self) -> bool {
        let mut block = [0u8; 4096];
        let mut is_open = true;
        let mut held_until = None;
        while is_open || self.end == End::Due {
            if self.forward().is_err() {
                return false;
            }
            let reads = is_open && self.waiting.len() < MAX_WAITING;
            let Ok(stdin) = self.wait(reads, held_until) else { return false };
            if held_until.is_some_and(|until| until <= Instant::now()) {
                held_until = None;
                self.watch.release(&mut self.waiting);
            }
            if !stdin.is_empty() {
                match rustix::io::read(rustix::stdio::stdin(), &mut block) {
                    Err(Errno::INTR | Errno::AGAIN) => continue,
                    Ok(got) if got > 0 => {
                        let found = self.watch.pass(&block[..got], &mut self.waiting);
                        if found {
                            let _ = self.forward();
                            return true;
                        }
                        held_until = (self.watch.held() > 0).then(|| Instant::now() + HOLD);
                    }
                    // The terminal is gone, or end-of-file was typed. Detach keys may still follow the latter.
                    gone => {
                        is_open = gone.is_ok() && self.mode != Mode::Raw && !stdin.contains(PollFlags::HUP);
                        self.watch.release(&mut self.waiting);
                        held_until = None;
                        if self.end == End::Open {
                            self.end = End::Due;
                        }
                    }
                }
            }
        }
        false
    }

    /// Waits for credit, for input if `reads`, and not beyond `until`. Returns the events of stdin.
    fn wait(&self, reads: bool, until: Option<Instant>) -> Result<PollFlags, Errno> {
        let stdin = rustix::stdio::stdin();
        let changed = self.credit.changed_event();
        let mut fds = [PollFd::new(&changed, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds[..if reads { 2 } else { 1 }], limit.as_ref()) {
            Ok(_) => Ok(if reads { fds[1].revents() } else { PollFlags::empty() }),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error),
        }
    }

    /// Sends as much as credit allows, then end-of-file if that is due.
    fn forward(&mut self) -> std::io::Result<()> {
        let Some(mut credit) = self.credit.now() else {
            self.end = End::Over;
            self.waiting.clear();
            return Ok(());
        };
        if self.end == End::Over {
            self.waiting.clear();
        }
        while credit > 0 && !self.waiting.is_empty() {
            let first = self.waiting.as_slices().0;
            let count = first.len().min(credit).min(MAX_DATA);
            let mut frame = Vec::with_capacity(count + 8);
            put_data(&mut frame, Stream::Stdin, &first[..count]);
            self.sending.frames(&frame)?;
            self.waiting.drain(..count);
            self.credit.spend(count);
            credit -= count;
        }
        if self.end == End::Due && self.waiting.is_empty() {
            self.end = End::Over;
            self.sending.message(&Message::Eof(Stream::Stdin))?;
        }
        Ok(())
    }
}
