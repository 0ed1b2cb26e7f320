//! The gate's control socket. The supervisor sends the sockets whose frames the gate moves, and the host's addresses, again each time they
//! change: an address that the host gets while the VM runs is closed to the guest as the others are.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::host::{Changes, Host};

/// The largest message, in bytes. It has room for thousands of addresses.
const MAX_MESSAGE: usize = 1 << 20;
/// The most descriptors that a message has.
const MAX_FDS: usize = 2;

/// The supervisor's end.
pub(crate) struct Control {
    changes: Changes,
    gate: OwnedFd,
    /// The gate does not know the latest addresses.
    is_due: bool,
}

impl Control {
    /// Begins to watch the host's addresses, and sends the gate those of now and its sockets: the guest's, then passt's. Returns the
    /// gate's end too.
    ///
    /// # Errors
    /// Those of `socket(2)` and of reading the addresses.
    pub(super) fn open(sockets: &[OwnedFd; MAX_FDS]) -> anyhow::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (gate, gate_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Without the privilege the message has less room.
        let _ = set_socket_send_buffer_size_force(&gate, MAX_MESSAGE);
        let control = Self { changes: Changes::listen()?, gate, is_due: false };
        control.send_message(&sockets.each_ref().map(AsFd::as_fd))?;
        Ok((control, gate_end))
    }

    /// The socket that is readable after a change.
    pub(crate) fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// The socket to the gate, if a message waits until it is writable.
    pub(crate) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.is_due.then(|| self.gate.as_fd())
    }

    /// Notes a change.
    pub(crate) fn read_changes(&mut self) {
        self.changes.drain();
        self.is_due = true;
    }

    /// Sends the addresses as they are now, if the gate does not know them. It never waits for the gate.
    ///
    /// # Errors
    /// The addresses cannot be read, or do not fit in a message.
    pub(crate) fn send(&mut self) -> anyhow::Result<()> {
        if self.is_due {
            self.is_due = !self.send_message(&[])?;
        }
        Ok(())
    }

    /// Sends the gate another socket of passt.
    ///
    /// # Errors
    /// The gate does not read its messages.
    pub(super) fn replace_passt(&self, socket: &OwnedFd) -> anyhow::Result<()> {
        match self.send_message(&[socket.as_fd()])? {
            true => Ok(()),
            false => bail!("the gate does not read its control socket"),
        }
    }

    /// Sends a message. False if the gate has to read others first.
    fn send_message(&self, fds: &[BorrowedFd<'_>]) -> anyhow::Result<bool> {
        let message = serde_json::to_vec(&Host::read().context("the host's addresses")?)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        match sendmsg(&self.gate, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // The gate has ended, and the VM ends with it.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(true),
            Err(error) => Err(error).context("the gate's control socket"),
        }
    }
}

/// What the gate has received.
#[derive(Debug)]
pub(super) struct Message {
    pub host: Host,
    /// In the first message the guest's and passt's; later none, or another one of passt.
    pub sockets: Vec<OwnedFd>,
}

/// Takes the next message on the gate's end. `None` if there is none.
///
/// # Errors
/// A message that cannot be read: the gate must not go on with old addresses. The supervisor's end.
pub(super) fn receive(control: BorrowedFd<'_>) -> anyhow::Result<Option<Message>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(control, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    {
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        other => other?,
    };
    if received.bytes == 0 {
        bail!(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        bail!("a message is too long");
    }
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    Ok(Some(Message { host: serde_json::from_slice(&buffer[..received.bytes])?, sockets }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_gets_its_sockets_once_and_the_addresses_after_each_change() {
        let (one, other) = io::pipe().unwrap();
        let (mut control, gate) = Control::open(&[one.into(), other.into()]).unwrap();
        let first = receive(gate.as_fd()).unwrap().unwrap();
        assert_eq!(first.sockets.len(), 2);
        control.send().unwrap();
        assert!(receive(gate.as_fd()).unwrap().is_none());
        control.read_changes();
        control.send().unwrap();
        assert!(control.waiting().is_none());
        let next = receive(gate.as_fd()).unwrap().unwrap();
        assert!(next.sockets.is_empty());
        assert_eq!((next.host.addresses, next.host.networks), (first.host.addresses, first.host.networks));
        drop(control);
        assert!(receive(gate.as_fd()).is_err());
    }

    #[test]
    fn the_supervisor_does_not_wait_for_a_gate_that_does_not_read() {
        let (one, other) = io::pipe().unwrap();
        let (mut control, gate) = Control::open(&[one.into(), other.into()]).unwrap();
        while control.waiting().is_none() {
            control.read_changes();
            control.send().unwrap();
        }
        while receive(gate.as_fd()).unwrap().is_some() {}
        control.send().unwrap();
        assert!(control.waiting().is_none());
        drop(gate);
        control.read_changes();
        control.send().unwrap();
    }
}
