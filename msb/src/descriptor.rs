//! Sends and receives a descriptor on a Unix socket, beside a message (`SCM_RIGHTS` in unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Sends a message, with a descriptor if there is one. Returns how many bytes were sent.
///
/// # Errors
/// Those of `sendmsg(2)`.
pub fn send(socket: impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if fd.is_some() {
        ancillary.push(SendAncillaryMessage::ScmRights(fd.as_slice()));
    }
    Ok(sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Receives a message. Returns its length and its descriptor. `None` if it has no descriptor, or did not fit.
///
/// # Errors
/// Those of `recvmsg(2)`.
pub fn receive(socket: impl AsFd, message: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let is_complete = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok((received.bytes, fd.filter(|_| is_complete)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_arrives_with_its_descriptor_or_without_one() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let mut message = [0; 8];
        for fd in [None, Some(file.as_fd())] {
            assert_eq!(send(&one, b"text", fd).unwrap(), 4);
            let (length, received) = receive(&other, &mut message).unwrap();
            assert_eq!((&message[..length], received.is_some()), (&b"text"[..], fd.is_some()));
        }
        drop(one);
        assert!(matches!(receive(&other, &mut message), Ok((0, None))));
        assert!(send(&other, b"text", None).is_err());
    }
}
