//! Sockets that carry frames.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

/// The size of the sockets' send buffers, in bytes. passt drops what does not fit, and TCP slows down.
const SEND_BUFFER: usize = 4 << 20;

/// Two connected stream sockets.
///
/// # Errors
/// Those of socketpair(2) and setsockopt(2).
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    for socket in [&one, &other] {
        match setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER) {
            // The root of a user namespace gets as much as net.core.wmem_max allows.
            Err(Errno::EPERM) => setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER)?,
            other => other?,
        }
    }
    Ok((one.into(), other.into()))
}
