//! The terminal of a command: a pseudoterminal whose controlling end goes to the caller over a socket.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use msb::descriptor;
use oci_spec::runtime::Process;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Makes a terminal of the size that the process has, and sends its controlling end to the socket. Returns the other end.
///
/// # Errors
/// Why there is no terminal, or no socket.
pub(crate) fn open(socket: &Path, process: &Process) -> anyhow::Result<OwnedFd> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("terminal")?;
    grantpt(&controller).and_then(|()| unlockpt(&controller)).context("terminal")?;
    let name = ptsname(&controller, Vec::new()).context("terminal")?;
    let name = name.to_str().context("terminal")?;
    let terminal =
        File::options().read(true).write(true).custom_flags(OpenptFlags::NOCTTY.bits().cast_signed()).open(name);
    let terminal = terminal.with_context(|| format!("terminal {name:?}"))?;
    if let Some(size) = process.console_size() {
        let cells = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(size.height()), ws_col: cells(size.width()), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&controller, size).context("terminal")?;
    }
    let stream = UnixStream::connect(socket).with_context(|| format!("console socket {socket:?}"))?;
    // Callers take the bytes for the terminal's name.
    descriptor::send(&stream, name.as_bytes(), Some(controller.as_fd()))
        .with_context(|| format!("console socket {socket:?}"))?;
    Ok(terminal.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use rustix::termios::tcgetwinsize;

    use super::*;

    #[test]
    fn the_controlling_end_arrives_with_the_size_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let process: Process = serde_json::from_str(
            r#"{"user":{},"cwd":"/","args":["a"],"terminal":true,"consoleSize":{"height":33,"width":99}}"#,
        )
        .unwrap();
        let terminal = open(&path, &process).unwrap();
        assert_eq!(tcgetwinsize(&terminal).unwrap().ws_col, 99);
        let (stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 64];
        let (length, controller) = descriptor::receive(&stream, &mut bytes).unwrap();
        assert!(bytes[..length].starts_with(b"/dev/pts/"));
        // What is written to it is read from the terminal.
        let mut controller = File::from(controller.unwrap());
        controller.write_all(b"typed\n").unwrap();
        let mut line = [0; 6];
        File::from(terminal).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"typed\n");
    }

    #[test]
    fn a_socket_that_is_missing_is_named() {
        let process: Process = serde_json::from_str(r#"{"user":{},"cwd":"/","args":["a"]}"#).unwrap();
        let error = open(Path::new("/msb-missing/socket"), &process).unwrap_err();
        assert!(error.to_string().contains("/msb-missing/socket"), "{error}");
    }
}
