//! The exchange with one name server: a question in a datagram from a random port, or over TCP, RFC 1035 section 4.2.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

/// The size of a message's length over TCP.
const LENGTH: usize = 2;

/// An exchange. The socket is connected, so the kernel takes messages from this server only.
pub(super) struct Exchange {
    server: SocketAddr,
    socket: OwnedFd,
    stream: Option<Stream>,
}

/// What has passed on a TCP connection.
struct Stream {
    /// The question with its length, and how much of it is sent.
    output: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
}

/// What has become of an exchange.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing yet.
    Waiting,
    /// A message from the server.
    Message(Vec<u8>),
    /// It does not answer.
    Failed,
}

impl Exchange {
    /// Sends a question in a datagram. The kernel chooses the port.
    ///
    /// # Errors
    /// Those of `connect(2)` and `send(2)`.
    pub(super) fn datagram(server: SocketAddr, query: &[u8]) -> rustix::io::Result<Self> {
        let socket = open(server, SocketType::DGRAM)?;
        connect(&socket, &server)?;
        send(&socket, query, SendFlags::NOSIGNAL)?;
        Ok(Self { server, socket, stream: None })
    }

    /// Begins to ask the same server over TCP.
    ///
    /// # Errors
    /// Those of `connect(2)`.
    pub(super) fn as_stream(&self, query: &[u8]) -> rustix::io::Result<Self> {
        let socket = open(self.server, SocketType::STREAM)?;
        match connect(&socket, &self.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let length = u16::try_from(query.len()).unwrap_or(u16::MAX).to_be_bytes();
        let stream = Stream { output: [&length, query].concat(), sent: 0, input: Vec::new() };
        Ok(Self { server: self.server, socket, stream: Some(stream) })
    }

    pub(super) fn server(&self) -> SocketAddr {
        self.server
    }

    pub(super) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// What it waits for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let is_sending = self.stream.as_ref().is_some_and(|stream| stream.sent < stream.output.len());
        PollFd::from_borrowed_fd(self.socket.as_fd(), if is_sending { PollFlags::OUT } else { PollFlags::IN })
    }

    /// Sends and receives what is possible now, with the help of a buffer of 64 KiB.
    pub(super) fn advance(&mut self, buffer: &mut [u8]) -> Progress {
        match self.try_advance(buffer) {
            Ok(progress) => progress,
            Err(Errno::AGAIN | Errno::INTR) => Progress::Waiting,
            Err(_) => Progress::Failed,
        }
    }

    fn try_advance(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Progress> {
        let Some(stream) = &mut self.stream else {
            let (length, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
            return Ok(Progress::Message(buffer[..length].to_vec()));
        };
        if stream.sent < stream.output.len() {
            stream.sent += send(&self.socket, &stream.output[stream.sent..], SendFlags::NOSIGNAL)?;
            return Ok(Progress::Waiting);
        }
        let missing = stream.missing().min(buffer.len());
        let (length, _) = recv(&self.socket, &mut buffer[..missing], RecvFlags::empty())?;
        if length == 0 {
            return Ok(Progress::Failed);
        }
        stream.input.extend(&buffer[..length]);
        if stream.missing() > 0 {
            return Ok(Progress::Waiting);
        }
        let message = stream.input.split_off(LENGTH);
        // Another message may follow.
        stream.input.clear();
        Ok(Progress::Message(message))
    }
}

impl Stream {
    /// How many bytes of the answer, or of its length, have not arrived.
    fn missing(&self) -> usize {
        let whole = self.input.first_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
        (LENGTH + whole).saturating_sub(self.input.len())
    }
}

fn open(server: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use rustix::event::poll;

    use super::*;

    /// Advances when something has happened.
    fn advance(exchange: &mut Exchange) -> Progress {
        poll(&mut [exchange.poll_fd()], None).unwrap();
        exchange.advance(&mut vec![0; 65535])
    }

    #[test]
    fn a_datagram_is_answered_or_refused() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut exchange = Exchange::datagram(server.local_addr().unwrap(), b"question").unwrap();
        let mut buffer = [0; 100];
        let (length, client) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"question");
        // What another sends does not arrive.
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().send_to(b"forged", client).unwrap();
        assert_eq!(exchange.advance(&mut vec![0; 65535]), Progress::Waiting);
        server.send_to(b"answer", client).unwrap();
        assert_eq!(advance(&mut exchange), Progress::Message(b"answer".to_vec()));
        let mut exchange = Exchange::datagram(server.local_addr().unwrap(), b"question").unwrap();
        drop(server);
        let again = Exchange::datagram(exchange.server(), b"question");
        assert!(again.is_err() || advance(&mut again.unwrap()) == Progress::Failed);
        assert!(
            !exchange.is_stream() && matches!(exchange.advance(&mut [0; 100]), Progress::Waiting | Progress::Failed)
        );
    }

    #[test]
    fn a_stream_is_read_in_parts() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, server.local_addr().unwrap().port())).unwrap();
        let first = Exchange::datagram(datagrams.local_addr().unwrap(), b"question").unwrap();
        let mut exchange = first.as_stream(b"question").unwrap();
        assert!(exchange.is_stream());
        let (mut connection, _) = server.accept().unwrap();
        assert_eq!(advance(&mut exchange), Progress::Waiting);
        let mut question = [0; 10];
        connection.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"\0\x08question");
        for part in [&b"\0"[..], b"\x06a", b"nswe"] {
            connection.write_all(part).unwrap();
            assert_eq!(advance(&mut exchange), Progress::Waiting);
        }
        connection.write_all(b"r\0\x04more").unwrap();
        for expected in [Progress::Message(b"answer".to_vec()), Progress::Waiting, Progress::Message(b"more".to_vec())]
        {
            assert_eq!(advance(&mut exchange), expected);
        }
        // The end in the middle of an answer.
        let mut exchange = first.as_stream(b"question").unwrap();
        let (mut connection, _) = server.accept().unwrap();
        assert_eq!(advance(&mut exchange), Progress::Waiting);
        connection.write_all(b"\0\x06a").unwrap();
        connection.read_exact(&mut question).unwrap();
        drop(connection);
        while advance(&mut exchange) != Progress::Failed {}
        // Nobody listens.
        drop(server);
        let refused = first.as_stream(b"question");
        assert!(refused.is_err() || advance(&mut refused.unwrap()) == Progress::Failed);
    }
}
