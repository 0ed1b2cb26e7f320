//! Messages between the processes of a network: JSON with descriptors, each in one packet of a Unix socket. Nobody waits for a
//! process that does not read its messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message, in bytes. It has room for thousands of addresses.
const MAX_MESSAGE: usize = 1 << 20;
/// The most descriptors that a message has.
const MAX_FDS: usize = 3;

/// Two connected sockets that keep messages apart, neither of which blocks.
///
/// # Errors
/// Those of `socketpair(2)`.
pub(super) fn packet_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The same, for messages with room for many addresses.
///
/// # Errors
/// Those of `socketpair(2)`.
pub(super) fn control_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (own, other) = packet_sockets()?;
    // Without the privilege the message has less room.
    let _ = set_socket_send_buffer_size_force(&own, MAX_MESSAGE);
    Ok((own, other))
}

/// Sends a message. False if the receiver has to read others first.
///
/// # Errors
/// Those of `sendmsg(2)`; a receiver that has ended is none.
pub(super) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> anyhow::Result<bool> {
    let message = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    match sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(true),
        Err(error) => Err(error).context("a control socket"),
    }
}

/// Takes the next message and its descriptors. `None` if there is none.
///
/// # Errors
/// A message that cannot be read, and the sender's end.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> anyhow::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        other => other?,
    };
    if received.bytes == 0 {
        bail!(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        bail!("a message is too long");
    }
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    Ok(Some((serde_json::from_slice(&buffer[..received.bytes])?, fds)))
}
