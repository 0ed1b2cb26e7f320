//! The terminal of a command: a pseudoterminal whose controlling end goes to the caller over a socket.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use oci_spec::runtime::Process;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [controller.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // Callers take the bytes for the terminal's name.
    sendmsg(&stream, &[IoSlice::new(name.as_bytes())], &mut control, SendFlags::NOSIGNAL)
        .with_context(|| format!("console socket {socket:?}"))?;
    Ok(terminal.into())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::unix::net::UnixListener;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 64];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
        assert!(bytes.starts_with(b"/dev/pts/"));
        let messages: Vec<_> = control.drain().collect();
        let [RecvAncillaryMessage::ScmRights(_)] = messages.as_slice() else { panic!("no descriptor") };
    }

    #[test]
    fn a_socket_that_is_missing_is_named() {
        let process: Process = serde_json::from_str(r#"{"user":{},"cwd":"/","args":["a"]}"#).unwrap();
        let error = open(Path::new("/msb-missing/socket"), &process).unwrap_err();
        assert!(error.to_string().contains("/msb-missing/socket"), "{error}");
    }
}
