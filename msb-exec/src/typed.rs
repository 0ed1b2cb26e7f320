//! What a person types, on its way to the command. The keys that leave the command are found whatever the guest does: this side
//! reads them without credit, and also when the command takes no more.

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

/// How long the beginning of the detach keys is held back. The next key of theirs may come later: the command has had the beginning then.
const HOLD: Duration = Duration::from_millis(200);
/// How much may wait for credit until no more is read, in bytes: more than a person types, less than a person pastes.
const MOST_WAITING: usize = 256 << 10;

/// Sends what is typed from now on; calls `detach` where the keys are typed that leave the command.
pub fn send(sending: &Sending, credit: &Arc<Credit>, watch: Watch, mode: Mode, detach: impl FnOnce() + Send + 'static) {
    let (sending, credit) = (sending.clone(), Arc::clone(credit));
    let typed = Typed { sending, credit, watch, mode, waiting: VecDeque::new(), end: End::Open };
    thread::spawn(move || {
        if typed.pump() {
            detach();
        }
    });
}

/// Whether the command gets more.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// It may.
    Open,
    /// What waits, and then the end.
    Due,
    /// It has had the end, or wants no more.
    Over,
}

struct Typed {
    sending: Sending,
    credit: Arc<Credit>,
    watch: Watch,
    mode: Mode,
    /// What the command has given no credit for yet.
    waiting: VecDeque<u8>,
    end: End,
}

impl Typed {
    /// Reads and sends until there is nothing more to read or to send to. True: the keys were typed.
    fn pump(mut self) -> bool {
        let mut block = [0u8; 4096];
        let mut may_come = true;
        let mut held_until = None;
        while may_come || self.end == End::Due {
            if self.forward().is_err() {
                return false;
            }
            let reads = may_come && self.waiting.len() < MOST_WAITING;
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
                    // The terminal is gone; or a person typed the end, and may leave the command later.
                    gone => {
                        may_come = gone.is_ok() && self.mode != Mode::Raw && !stdin.contains(PollFlags::HUP);
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

    /// Waits for credit, for what is typed where that `reads`, and no longer than until a moment. What stdin has.
    fn wait(&self, reads: bool, until: Option<Instant>) -> Result<PollFlags, Errno> {
        let stdin = rustix::stdio::stdin();
        let bell = self.credit.bell();
        let mut fds = [PollFd::new(&bell, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds[..if reads { 2 } else { 1 }], limit.as_ref()) {
            Ok(_) => Ok(if reads { fds[1].revents() } else { PollFlags::empty() }),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error),
        }
    }

    /// Sends what credit allows, and behind all of it the end, where that is due.
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
            let front = self.waiting.as_slices().0;
            let count = front.len().min(credit).min(MAX_DATA);
            let mut frame = Vec::with_capacity(count + 8);
            put_data(&mut frame, Stream::Stdin, &front[..count]);
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
