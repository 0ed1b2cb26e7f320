//! The caller's terminal: changed while the command has it, and put back at every end and at every stop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use msb::wire::exec::Resize;
use rustix::process::getpgrp;
use rustix::termios::{
    InputModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};

/// Whether stdin is a terminal.
pub fn is_terminal() -> bool {
    isatty(rustix::stdio::stdin())
}

/// Whether a person types, and reads what is answered.
pub fn is_on_both_sides() -> bool {
    is_terminal() && isatty(rustix::stdio::stdout())
}

/// The terminal's size; 24 by 80 where it has none.
pub fn size() -> Resize {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let sizes = streams.into_iter().filter_map(|stream| tcgetwinsize(stream).ok());
    match sizes.into_iter().find(|size| size.ws_row > 0 && size.ws_col > 0) {
        Some(size) => Resize { rows: size.ws_row, cols: size.ws_col },
        None => Resize { rows: 24, cols: 80 },
    }
}

/// What a terminal does with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every key is passed through as it is.
    Raw,
    /// Lines are edited and Ctrl-C is a signal, as before; this key too ends a line.
    Lines(u8),
}

/// The terminal that was changed, by a descriptor of our own: what becomes of stdin does not matter.
struct Changed {
    terminal: OwnedFd,
    before: Termios,
    wanted: Termios,
    /// Whether it is as wanted now.
    is_set: bool,
}

static CHANGED: Mutex<Option<Changed>> = Mutex::new(None);

fn changed() -> MutexGuard<'static, Option<Changed>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the terminal that stdin is, until [`restore`].
///
/// # Errors
/// What `tcgetattr(3)` or `tcsetattr(3)` says.
pub fn set(mode: Mode) -> io::Result<()> {
    let terminal = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let before = tcgetattr(&terminal)?;
    let mut wanted = before.clone();
    match mode {
        Mode::Raw => wanted.make_raw(),
        Mode::Lines(key) => {
            wanted.special_codes[SpecialCodeIndex::VEOL] = key;
            // It would take Ctrl-Q and Ctrl-S for itself.
            wanted.input_modes.remove(InputModes::IXON);
        }
    }
    let mut changed = changed();
    let it = changed.insert(Changed { terminal, before, wanted, is_set: false });
    it.set()
}

/// Puts the terminal back as it was, for good. Does nothing where it was not changed.
pub fn restore() {
    if let Some(mut it) = changed().take() {
        it.unset();
    }
}

/// Puts the terminal back while this process is stopped.
pub fn suspend() {
    if let Some(it) = &mut *changed() {
        it.unset();
    }
}

/// Changes the terminal again when this process goes on, where it is in the foreground. True: there is such a terminal.
pub fn resume() -> bool {
    let mut changed = changed();
    let Some(it) = &mut *changed else { return false };
    // Another foreground job may have changed the terminal meanwhile.
    it.is_set = false;
    it.set().is_ok() && it.is_set
}

impl Changed {
    fn set(&mut self) -> io::Result<()> {
        if self.is_in_front() {
            tcsetattr(&self.terminal, OptionalActions::Now, &self.wanted)?;
            self.is_set = true;
        }
        Ok(())
    }

    fn unset(&mut self) {
        if std::mem::take(&mut self.is_set) && self.is_in_front() {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }

    /// Whether this process may change the terminal: in the background that would stop it, and the terminal is another's.
    fn is_in_front(&self) -> bool {
        tcgetpgrp(&self.terminal).map_or(true, |front| front == getpgrp())
    }
}
