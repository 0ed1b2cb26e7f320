//! Sockets that carry frames.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

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
        setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER)?;
    }
    Ok((one.into(), other.into()))
}
