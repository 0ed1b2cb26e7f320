//! The caller's terminal. Its settings are changed while a command uses it, and restored whenever msb-exec ends or stops.

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

/// Whether both stdin and stdout are terminals.
pub fn is_on_both_sides() -> bool {
    is_terminal() && isatty(rustix::stdio::stdout())
}

/// The size of the terminal; 24 by 80 if it has none.
pub fn size() -> Resize {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let sizes = streams.into_iter().filter_map(|stream| tcgetwinsize(stream).ok());
    match sizes.into_iter().find(|size| size.ws_row > 0 && size.ws_col > 0) {
        Some(size) => Resize { rows: size.ws_row, cols: size.ws_col },
        None => Resize { rows: 24, cols: 80 },
    }
}

/// How the terminal handles input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every key is passed on unchanged.
    Raw,
    /// Line editing and signals stay as they are; this key also ends a line.
    Lines(u8),
}

/// A terminal with changed settings, on a descriptor of its own, since stdin may be closed or replaced.
struct Changed {
    terminal: OwnedFd,
    before: Termios,
    wanted: Termios,
    /// Whether the wanted settings are in effect.
    is_set: bool,
}

static CHANGED: Mutex<Option<Changed>> = Mutex::new(None);

fn changed() -> MutexGuard<'static, Option<Changed>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the settings of the terminal on stdin, until [`restore`].
///
/// # Errors
/// Those of `tcgetattr(3)` and `tcsetattr(3)`.
pub fn set(mode: Mode) -> io::Result<()> {
    let terminal = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let before = tcgetattr(&terminal)?;
    let mut wanted = before.clone();
    match mode {
        Mode::Raw => wanted.make_raw(),
        Mode::Lines(key) => {
            wanted.special_codes[SpecialCodeIndex::VEOL] = key;
            // With IXON, the terminal would swallow Ctrl-Q and Ctrl-S.
            wanted.input_modes.remove(InputModes::IXON);
        }
    }
    let mut changed = changed();
    let it = changed.insert(Changed { terminal, before, wanted, is_set: false });
    it.set()
}

/// Restores the terminal for good. Does nothing if its settings were not changed.
pub fn restore() {
    if let Some(mut it) = changed().take() {
        it.unset();
    }
}

/// Restores the terminal before this process is stopped.
pub fn suspend() {
    if let Some(it) = &mut *changed() {
        it.unset();
    }
}

/// Changes the settings again after this process was continued in the foreground. Returns whether they are in effect.
pub fn resume() -> bool {
    let mut changed = changed();
    let Some(it) = &mut *changed else { return false };
    // Another foreground job may have changed them meanwhile.
    it.is_set = false;
    it.set().is_ok() && it.is_set
}

impl Changed {
    fn set(&mut self) -> io::Result<()> {
        if self.is_in_foreground() {
            tcsetattr(&self.terminal, OptionalActions::Now, &self.wanted)?;
            self.is_set = true;
        }
        Ok(())
    }

    fn unset(&mut self) {
        if std::mem::take(&mut self.is_set) && self.is_in_foreground() {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }

    /// Whether this process may change the terminal: in the background, tcsetattr(3) would stop it.
    fn is_in_foreground(&self) -> bool {
        tcgetpgrp(&self.terminal).map_or(true, |foreground| foreground == getpgrp())
    }
}
