//! Stdin on its way to the command, as far as the command gives credit for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use msb::wire::{HEADER, MAX_DATA, Message, Stream, put_data};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::blocking;
use crate::sending::Sending;

/// Credit for stdin, which the connection's reader gives and stdin's reader spends.
pub struct Credit {
    state: Mutex<State>,
    changed: Condvar,
    bell: EventFd,
}

#[derive(Default)]
struct State {
    bytes: usize,
    unwanted: bool,
}

impl Credit {
    /// None yet.
    ///
    /// # Errors
    /// What `eventfd(2)` says.
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), bell })
    }

    /// The command takes so many bytes more.
    pub fn give(&self, bytes: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(bytes as usize);
        self.ring();
    }

    /// The command takes no more.
    pub fn refuse(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).unwanted = true;
        self.ring();
    }

    fn ring(&self) {
        self.changed.notify_one();
        let _ = self.bell.write(1);
    }

    /// Becomes readable when the credit has changed.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The credit that there is; `None` once the command takes no more. Silences the bell.
    pub fn now(&self) -> Option<usize> {
        let _ = self.bell.read();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (!state.unwanted).then_some(state.bytes)
    }

    /// Waits for credit; `None` once the command takes no more.
    fn available(&self) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes == 0 && !state.unwanted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.unwanted).then_some(state.bytes)
    }

    /// Counts bytes that are sent.
    pub fn spend(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
    }
}

/// Sends stdin from now on, which is a file, a pipe or the like.
pub fn send(sending: &Sending, credit: &Arc<Credit>) {
    let (sending, credit) = (sending.clone(), Arc::clone(credit));
    thread::spawn(move || pump(&sending, &credit));
}

/// Sends stdin as credit allows, then its end.
fn pump(sending: &Sending, credit: &Credit) {
    let mut block = vec![0u8; MAX_DATA];
    let mut frame = Vec::with_capacity(MAX_DATA + HEADER);
    while let Some(available) = credit.available() {
        // A closed stdin is at its end.
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
    // What writes to our stdin learns that nothing reads it, as it would from the command itself.
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
}
