//! Copies between host and guest: the connection's half of [`msb::transfer`], which does the rest.

use std::ffi::OsString;
use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use msb::overlay::beneath::Dir;
use msb::transfer::receive::{self, Incoming, Rules};
use msb::transfer::send::{self, Sink};
use msb::transfer::{TO_GUEST, TO_HOST};
use msb::wire::copy::{Get, Put};
use msb::wire::exec::{Exit, Failure};
use msb::wire::sequence::OwedCredit;
use msb::wire::{self, Message, Stream};

use crate::link::{MAX_PACKET, PEER_TIMEOUT};

/// How many bytes of frames the host may send ahead. That is less than the kernel's buffer for a connection.
const WINDOW: u32 = 1 << 20;

/// Sends a file or a tree to the host.
///
/// # Errors
/// A broken connection, or invalid frames.
pub fn get(connection: UnixStream, request: Get) -> Result<(), wire::Error> {
    let mut host = Host { connection, credit: 0, out: Vec::new() };
    let path = absolute(request.path.into());
    let open = || send::open(&Dir::open(Path::new("/"))?, &path, request.follow);
    let sent = match open() {
        Ok(source) => send::send(&mut host, source),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path:?}: {error}"))),
    };
    host.flush()?;
    end(&mut host.connection, sent)
}

/// Receives a file or a tree from the host.
///
/// # Errors
/// A broken connection, or invalid frames.
pub fn put(connection: UnixStream, request: Put) -> Result<(), wire::Error> {
    let mut answers = connection.try_clone()?;
    Message::Credit(TO_GUEST, WINDOW).send(&mut answers)?;
    let owed = OwedCredit::in_batches_of(WINDOW / 4);
    let mut frames = Frames { frames: BufReader::with_capacity(256 << 10, connection), answers, owed };
    let path = absolute(request.path.into());
    // The guest's own root decides about its privileges.
    let rules = Rules { archive: request.archive, devices: true, privileges: true };
    let received = Dir::open(Path::new("/"))
        .and_then(|root| receive::receive(&mut frames, &root, &path, None, request.contents, rules))
        .map(drop);
    let has_failed = received.is_err();
    end(&mut frames.answers, received)?;
    if has_failed {
        // The kernel would reset a connection with unread frames, and the host would lose the answer.
        frames.answers.set_read_timeout(Some(PEER_TIMEOUT))?;
        while matches!(Message::receive(&mut frames.frames), Ok(Some(_))) {}
    }
    Ok(())
}

/// A relative path is one from the root.
fn absolute(path: OsString) -> PathBuf {
    // A join would drop "/." at the end.
    let mut absolute = OsString::from(if path.as_encoded_bytes().starts_with(b"/") { "" } else { "/" });
    absolute.push(path);
    absolute.into()
}

/// Sends the last frame.
fn end(connection: &mut UnixStream, result: io::Result<()>) -> Result<(), wire::Error> {
    let last = match result {
        Ok(()) => Message::Exit(Exit { code: Some(0), ..Exit::default() }),
        Err(error) => Message::Failure(Failure::new(1, error.to_string())),
    };
    connection.set_write_timeout(Some(PEER_TIMEOUT))?;
    Ok(last.send(connection)?)
}

/// The host as a receiver. Small frames are sent together.
struct Host {
    connection: UnixStream,
    credit: u64,
    out: Vec<u8>,
}

impl Host {
    fn flush(&mut self) -> io::Result<()> {
        for packet in self.out.chunks(MAX_PACKET) {
            self.connection.write_all(packet)?;
        }
        self.out.clear();
        Ok(())
    }
}

impl Sink for Host {
    const STREAM: Stream = TO_HOST;

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let frame = message.to_frame();
        if Message::check_length(&frame).is_err() {
            return Err(io::Error::other("the xattrs of a file are too large to send"));
        }
        while self.credit < frame.len() as u64 {
            // The host grants more when it has what was sent before.
            self.flush()?;
            match Message::receive(&mut self.connection).map_err(io::Error::other)? {
                Some(Message::Credit(TO_HOST, bytes)) => self.credit += u64::from(bytes),
                _ => return Err(io::Error::other("the host hung up")),
            }
        }
        self.credit -= frame.len() as u64;
        if self.out.len() + frame.len() > MAX_PACKET {
            self.flush()?;
        }
        self.out.extend_from_slice(&frame);
        Ok(())
    }
}

/// The host as a sender.
struct Frames {
    frames: BufReader<UnixStream>,
    answers: UnixStream,
    owed: OwedCredit,
}

impl Incoming for Frames {
    const STREAM: Stream = TO_GUEST;

    fn receive(&mut self) -> io::Result<Option<Message>> {
        let message = match Message::receive(&mut self.frames).map_err(io::Error::other)? {
            Some(Message::Eof(TO_GUEST)) => return Ok(None),
            Some(message) => message,
            None => return Err(io::Error::other("the host hung up before it had sent all")),
        };
        if let Some(owed) = self.owed.add(message.frame_length()) {
            Message::Credit(TO_GUEST, owed).send(&mut self.answers)?;
        }
        Ok(Some(message))
    }
}
