//! Stdin on its way to the command, as far as the command gives credit for it.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use msb::wire::{HEADER, MAX_DATA, Message, Stream, put_data};

use crate::blocking;
use crate::keys::Watch;
use crate::sending::Sending;

/// Credit for stdin, which the connection's reader gives and stdin's reader spends.
#[derive(Default)]
pub struct Credit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: usize,
    unwanted: bool,
}

impl Credit {
    /// The command takes so many bytes more.
    pub fn give(&self, bytes: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(bytes as usize);
        self.changed.notify_one();
    }

    /// The command takes no more.
    pub fn refuse(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).unwanted = true;
        self.changed.notify_one();
    }

    /// Waits for credit over what is held back already; `None` once the command takes no more.
    fn available(&self, held: usize) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes <= held && !state.unwanted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.unwanted).then(|| state.bytes - held)
    }

    fn spend(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
    }
}

/// Sends stdin from now on. With `watch`, a person types, and `detach` is called when they want to leave.
pub fn send(sending: &Sending, credit: &Arc<Credit>, watch: Option<Watch>, detach: impl FnOnce() + Send + 'static) {
    let (sending, credit) = (sending.clone(), Arc::clone(credit));
    thread::spawn(move || {
        if pump(&sending, &credit, watch) {
            detach();
        }
    });
}

/// Sends stdin as credit allows, then its end. True: the caller wants to leave.
fn pump(sending: &Sending, credit: &Credit, mut watch: Option<Watch>) -> bool {
    let mut block = vec![0u8; MAX_DATA];
    let mut frame = Vec::with_capacity(MAX_DATA + HEADER);
    let mut typed = Vec::new();
    loop {
        let held = watch.as_ref().map_or(0, Watch::held);
        let Some(available) = credit.available(held) else { break };
        let wanted = available.min(MAX_DATA - held);
        // A closed stdin has nothing to say.
        let got = blocking::read(rustix::stdio::stdin(), &mut block[..wanted]).unwrap_or(0);
        if got == 0 {
            let _ = sending.message(&Message::Eof(Stream::Stdin));
            return false;
        }
        let mut bytes = &block[..got];
        let mut wants_to_leave = false;
        if let Some(watch) = &mut watch {
            typed.clear();
            wants_to_leave = watch.pass(bytes, &mut typed);
            bytes = &typed;
        }
        if !bytes.is_empty() {
            credit.spend(bytes.len());
            frame.clear();
            put_data(&mut frame, Stream::Stdin, bytes);
            if sending.frames(&frame).is_err() {
                return false;
            }
        }
        if wants_to_leave {
            return true;
        }
    }
    // Whoever writes to our stdin learns that nobody reads it, as it would from the command itself.
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
    false
}
