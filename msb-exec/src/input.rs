//! Sends stdin to the command, as far as the agent grants credit for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use msb::wire::{HEADER, MAX_DATA, Message, Stream, put_data};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::blocking;
use crate::sending::Sending;

/// Credit for stdin. The thread that reads the connection grants it; the thread that reads stdin spends it.
pub struct Credit {
    state: Mutex<State>,
    changed: Condvar,
    changed_event: EventFd,
}

#[derive(Default)]
struct State {
    bytes: usize,
    refused: bool,
}

impl Credit {
    /// No credit yet.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let changed_event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), changed_event })
    }

    /// Adds credit for so many bytes.
    pub fn grant(&self, bytes: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(bytes as usize);
        self.notify();
    }

    /// The command has closed its stdin.
    pub fn refuse(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).refused = true;
        self.notify();
    }

    fn notify(&self) {
        self.changed.notify_one();
        let _ = self.changed_event.write(1);
    }

    /// A descriptor that becomes readable when the credit has changed.
    pub fn changed_event(&self) -> BorrowedFd<'_> {
        self.changed_event.as_fd()
    }

    /// The current credit; `None` once the command has closed its stdin. Clears the event.
    pub fn now(&self) -> Option<usize> {
        let _ = self.changed_event.read();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (!state.refused).then_some(state.bytes)
    }

    /// Waits for credit; `None` once the command has closed its stdin.
    fn available(&self) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes == 0 && !state.refused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.refused).then_some(state.bytes)
    }

    /// Subtracts bytes that were sent.
    pub fn spend(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
    }
}

/// Starts sending stdin, which is not a terminal.
pub fn send(sending: &Sending, credit: &Arc<Credit>) {
    let (sending, credit) = (sending.clone(), Arc::clone(credit));
    thread::spawn(move || pump(&sending, &credit));
}

/// Sends stdin as credit allows, then end-of-file.
fn pump(sending: &Sending, credit: &Credit) {
    let mut block = vec![0u8; MAX_DATA];
    let mut frame = Vec::with_capacity(MAX_DATA + HEADER);
    while let Some(available) = credit.available() {
        // A closed stdin is at end-of-file.
        let got = blocking::read(rustix::stdio::stdin(), &mut block[..available.min(MAX_DATA)]).unwrap_or(0);
        if got == 0 {
            let _ = sending.message(&Message::Eof(Stream::Stdin));
            return;
        }
        credit.spend(got);
        frame.clear();
        put_data(&mut frame, Stream::Stdin, &block[..got]);
        if sending.frames(&frame).is_err() {
            return;
        }
    }
    // Closes the pipe on stdin, so that its writer gets SIGPIPE, as it would from the command itself.
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
}
