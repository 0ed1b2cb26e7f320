//! What the supervisor tells the gate and the resolver while the VM runs. The gate gets the sockets whose frames it moves and the
//! host's addresses, again each time they change: an address that the host gets while the VM runs is closed to the guest as the
//! others are. The resolver gets the name servers in the same way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::host::{Changes, Host};
use super::message;
use super::name_servers::NameServers;
use super::resolver;
use crate::log;

/// A message to the gate.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ToGate {
    #[serde(flatten)]
    pub host: Host,
    /// What the descriptors that come with it are. The first message has one of each.
    pub sockets: Vec<Socket>,
}

/// A socket of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Socket {
    /// The VMM's frames.
    Guest,
    /// passt's frames.
    Passt,
    /// The resolver's answers.
    Resolver,
}

/// The supervisor's end.
pub(crate) struct Control {
    changes: Changes,
    servers: NameServers,
    gate: Channel,
    resolver: Channel,
}

/// A control socket.
struct Channel {
    socket: OwnedFd,
    /// The process does not know the latest.
    is_due: bool,
}

impl Channel {
    /// A channel, and the other process's end of it.
    fn open() -> anyhow::Result<(Self, OwnedFd)> {
        let (socket, end) = message::control_sockets()?;
        Ok((Self { socket, is_due: false }, end))
    }
}

impl Control {
    /// Begins to watch the host's addresses. Returns the resolver's end and the gate's end too. The resolver finds its socket of
    /// the gate there, and the gate its sockets.
    ///
    /// # Errors
    /// Those of `socket(2)` and of reading the addresses.
    pub(super) fn open(
        servers: NameServers,
        link: &OwnedFd,
        sockets: &[(Socket, &OwnedFd)],
    ) -> anyhow::Result<(Self, OwnedFd, OwnedFd)> {
        let (gate, gate_end) = Channel::open()?;
        let (resolver, resolver_end) = Channel::open()?;
        let control = Self { changes: Changes::listen()?, servers, gate, resolver };
        control.tell_resolver(Some(link))?;
        control.tell_gate(sockets)?;
        Ok((control, resolver_end, gate_end))
    }

    /// What is readable after a change.
    pub(crate) fn changes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(self.changes.as_fd()), self.servers.changes()].into_iter().flatten()
    }

    /// The sockets that have no room for a message that is due.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.gate, &self.resolver].into_iter().filter(|channel| channel.is_due).map(|channel| channel.socket.as_fd())
    }

    /// Reads what has changed, and sends what is due. It never waits for a process.
    ///
    /// # Errors
    /// The gate cannot be told the addresses: it must not go on with old ones.
    pub(crate) fn update(&mut self) -> anyhow::Result<()> {
        let have_addresses_changed = self.changes.drain();
        self.gate.is_due |= have_addresses_changed;
        // A host that has changed its network often has other name servers too.
        self.resolver.is_due |= self.servers.update(have_addresses_changed);
        if self.gate.is_due {
            self.gate.is_due = !self.tell_gate(&[])?;
        }
        if self.resolver.is_due {
            self.resolver.is_due = !self.tell_resolver(None)?;
        }
        Ok(())
    }

    /// Sends the gate another socket in the place of the one that it has.
    ///
    /// # Errors
    /// The gate does not read its messages.
    pub(super) fn replace(&self, socket: Socket, fd: &OwnedFd) -> anyhow::Result<()> {
        match self.tell_gate(&[(socket, fd)])? {
            true => Ok(()),
            false => bail!("the gate does not read its control socket"),
        }
    }

    /// Opens the channel to another resolver, whose socket of the gate is `link`. Returns its end.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub(super) fn reopen_resolver(&mut self, link: &OwnedFd) -> anyhow::Result<OwnedFd> {
        let (channel, end) = Channel::open()?;
        self.resolver = channel;
        self.tell_resolver(Some(link))?;
        Ok(end)
    }

    fn tell_gate(&self, sockets: &[(Socket, &OwnedFd)]) -> anyhow::Result<bool> {
        let (names, fds): (Vec<Socket>, Vec<BorrowedFd<'_>>) =
            sockets.iter().map(|(name, fd)| (*name, fd.as_fd())).unzip();
        let message = ToGate { host: Host::read().context("the host's addresses")?, sockets: names };
        message::send(self.gate.socket.as_fd(), &message, &fds)
    }

    fn tell_resolver(&self, link: Option<&OwnedFd>) -> anyhow::Result<bool> {
        let fds: Vec<BorrowedFd<'_>> = link.iter().map(|link| link.as_fd()).collect();
        let servers = self.servers.list();
        log::note(format_args!("name servers: {servers:?}"));
        message::send(self.resolver.socket.as_fd(), &resolver::Message { servers }, &fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn open() -> (Control, OwnedFd, OwnedFd) {
        let (one, other) = io::pipe().unwrap();
        let (one, other) = (one.into(), other.into());
        let servers = NameServers::fixed(&["192.0.2.1".parse().unwrap()]);
        Control::open(servers, &one, &[(Socket::Guest, &one), (Socket::Passt, &other)]).unwrap()
    }

    fn receive(gate: &OwnedFd) -> Option<(ToGate, Vec<OwnedFd>)> {
        message::receive(gate.as_fd()).unwrap()
    }

    #[test]
    fn the_gate_gets_its_sockets_once_and_the_addresses_after_each_change() {
        let (mut control, resolver, gate) = open();
        let (first, sockets) = receive(&gate).unwrap();
        assert_eq!((first.sockets, sockets.len()), (vec![Socket::Guest, Socket::Passt], 2));
        control.update().unwrap();
        assert!(receive(&gate).is_none());
        control.gate.is_due = true;
        control.update().unwrap();
        assert_eq!(control.waiting().count(), 0);
        let (next, sockets) = receive(&gate).unwrap();
        assert!(next.sockets.is_empty() && sockets.is_empty());
        assert_eq!((next.host.addresses, next.host.networks), (first.host.addresses, first.host.networks));
        let (told, link) = message::receive::<resolver::Message>(resolver.as_fd()).unwrap().unwrap();
        assert_eq!((told.servers, link.len()), (vec!["192.0.2.1:53".parse().unwrap()], 1));
        drop(control);
        assert!(message::receive::<ToGate>(gate.as_fd()).is_err());
    }

    #[test]
    fn the_supervisor_does_not_wait_for_a_process_that_does_not_read() {
        let (mut control, resolver, gate) = open();
        while control.waiting().count() == 0 {
            control.gate.is_due = true;
            control.update().unwrap();
        }
        while receive(&gate).is_some() {}
        control.update().unwrap();
        assert_eq!(control.waiting().count(), 0);
        drop((gate, resolver));
        (control.gate.is_due, control.resolver.is_due) = (true, true);
        control.update().unwrap();
    }
}
