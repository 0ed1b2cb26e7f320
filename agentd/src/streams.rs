//! The streams of a command: pipes or a terminal, and agentd's ends of them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb::wire::exec::Resize;
use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex};

/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// agentd's ends of a command's streams.
#[derive(Debug)]
pub enum Streams {
    /// One pipe each.
    Pipes {
        /// To its stdin. `None`: that is `/dev/null`.
        stdin: Option<OwnedFd>,
        /// From its stdout.
        stdout: OwnedFd,
        /// From its stderr.
        stderr: OwnedFd,
    },
    /// The controlling side of a terminal, for all three.
    Terminal(OwnedFd),
}

/// agentd's ends, and the command's stdin, stdout and stderr.
type Ends = (Streams, [OwnedFd; 3]);

/// The modes of the pipes for stdin and for the outputs. The command's user owns them and can open `/dev/stdin` and `/dev/stdout`, as in a
/// container. Other users, to which the command may switch, can open them in the pipe's direction.
const STDIN_MODE: u32 = 0o644;
const OUTPUT_MODE: u32 = 0o622;

/// Creates a pipe that `owner` can open again through `/proc/self/fd/N`.
fn pipe_of(owner: u32, mode: u32) -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    rustix::fs::fchown(&reader, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    rustix::fs::fchmod(&reader, rustix::fs::Mode::from_raw_mode(mode))?;
    Ok((reader, writer))
}

/// Creates the pipes of a command.
///
/// # Errors
/// Those of `pipe(2)`, `fchown(2)` and `fchmod(2)`.
pub fn pipes(no_stdin: bool, owner: u32) -> io::Result<Ends> {
    let (child_in, stdin): (OwnedFd, Option<OwnedFd>) = if no_stdin {
        let null = match fs::File::open("/dev/null") {
            // A container without /dev. A pipe that nobody writes is at its end, too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => io::pipe()?.0.into(),
            other => other?.into(),
        };
        (null, None)
    } else {
        let (child_end, agent_end) = pipe_of(owner, STDIN_MODE)?;
        (child_end.into(), Some(agent_end.into()))
    };
    let (stdout, child_out) = pipe_of(owner, OUTPUT_MODE)?;
    let (stderr, child_err) = pipe_of(owner, OUTPUT_MODE)?;
    let streams = Streams::Pipes { stdin, stdout: stdout.into(), stderr: stderr.into() };
    Ok((streams, [child_in, child_out.into(), child_err.into()]))
}

/// Creates a terminal of this size for a command.
///
/// # Errors
/// Those of `pts(4)`.
pub fn terminal(size: Resize, owner: u32) -> io::Result<Ends> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let agent_end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&agent_end)?;
    unlockpt(&agent_end)?;
    set_size(&agent_end, size)?;
    let name = ptsname(&agent_end, Vec::new())?;
    let child_end: OwnedFd =
        fs::File::options().read(true).write(true).open(Path::new(OsStr::from_bytes(name.as_bytes())))?.into();
    // tty(1), mesg(1) and su want the terminal to belong to its user.
    rustix::fs::fchown(&child_end, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    let (second, third) = (child_end.try_clone()?, child_end.try_clone()?);
    Ok((Streams::Terminal(agent_end), [child_end, second, third]))
}

/// Sets the size of a terminal.
///
/// # Errors
/// Those of `ioctl(2)`.
pub fn set_size(terminal: &OwnedFd, size: Resize) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// The bytes to write to a terminal for the end of input, after the byte `last`: its EOF character, and a second one in the middle of a
/// line, because the first one only flushes the line (termios(3), VEOF).
pub fn end_of_input(terminal: Option<&OwnedFd>, last: Option<u8>) -> Vec<u8> {
    let state = terminal.and_then(|terminal| rustix::termios::tcgetattr(terminal).ok());
    let special = |index| state.as_ref().map(|state| state.special_codes[index]);
    let eof = special(SpecialCodeIndex::VEOF).filter(|&byte| byte != 0).unwrap_or(END_OF_TRANSMISSION);
    let modes = state.as_ref().map(|state| (state.input_modes, state.local_modes));
    let (input, local) = modes.unwrap_or((InputModes::ICRNL, LocalModes::ICANON));
    let ends_line = |byte: u8| {
        let is_special =
            [SpecialCodeIndex::VEOL, SpecialCodeIndex::VEOL2].into_iter().any(|at| special(at) == Some(byte));
        byte == b'\n' || byte == eof || byte == b'\r' && input.contains(InputModes::ICRNL) || byte != 0 && is_special
    };
    let has_begun = local.contains(LocalModes::ICANON) && last.is_some_and(|byte| !ends_line(byte));
    vec![eof; if has_begun { 2 } else { 1 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_input_is_sent_twice_in_the_middle_of_a_line() {
        for (last, count) in
            [(None, 1), (Some(b'\n'), 1), (Some(b'\r'), 1), (Some(4), 1), (Some(b'c'), 2), (Some(0), 2)]
        {
            assert_eq!(end_of_input(None, last), vec![4; count], "{last:?}");
            let (Streams::Terminal(terminal), _child_end) = terminal(Resize { rows: 24, cols: 80 }, own_uid()).unwrap()
            else {
                panic!("no terminal")
            };
            assert_eq!(end_of_input(Some(&terminal), last), vec![4; count], "{last:?}");
            let mut state = rustix::termios::tcgetattr(&terminal).unwrap();
            state.special_codes[SpecialCodeIndex::VEOF] = b'!';
            state.special_codes[SpecialCodeIndex::VEOL] = b'c';
            state.input_modes.remove(InputModes::ICRNL);
            rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &state).unwrap();
            let count = if matches!(last, None | Some(b'\n' | b'c')) { 1 } else { 2 };
            assert_eq!(end_of_input(Some(&terminal), last), vec![b'!'; count], "{last:?}");
            state.make_raw();
            rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &state).unwrap();
            assert_eq!(end_of_input(Some(&terminal), last).len(), 1, "{last:?}");
        }
    }

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }
}
