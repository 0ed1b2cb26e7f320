//! The caller's terminal: raw while the command has it, as it was at every end.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use msb::wire::exec::Resize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

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

/// Hands every key through as it is.
///
/// # Errors
/// What `tcsetattr(3)` says.
pub fn make_raw() -> io::Result<()> {
    let before = tcgetattr(rustix::stdio::stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    Ok(tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?)
}

/// Puts the terminal back as it was. Does nothing where it never was raw.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}
