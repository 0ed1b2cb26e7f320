//! The connection between the supervisor and the client: the messages, and the supervisor's end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::ensure;
use msb::record::Record;
use msb::tool::interrupt::Guard;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// What the supervisor tells the client, one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Report {
    /// A message for stderr.
    Say(String),
    /// The VM is up. This is the record to print.
    Ready(Box<Record>),
    /// The boot failed, and nothing of the VM is left. This is the error.
    Failed(String),
}

/// The byte that the client sends when the record is printed.
pub(crate) const PRINTED: u8 = b'\n';

/// The client, as the supervisor sees it.
pub(super) struct Client(UnixStream);

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It printed the record.
    Printed,
    /// It has exited.
    Gone,
}

impl Client {
    /// Takes the connection from stdin and replaces that with `/dev/null`, so that dropping this closes the connection.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(super) fn from_stdin() -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(stream))
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// A message if the client did not send it.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        // Nothing follows it until the VM is up, so it need not be read byte by byte.
        let mut text = Vec::new();
        BufReader::new(&self.0).read_until(b'\n', &mut text)?;
        ensure!(text.ends_with(b"\n"), "no configuration");
        Ok(serde_json::from_slice(&text)?)
    }

    /// A guard that interrupts long steps of this process when the client exits or a signal comes.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(super) fn guard(&self) -> io::Result<Guard> {
        Guard::with_peer(self.0.as_fd().try_clone_to_owned()?)
    }

    /// Sends a report. Errors are ignored: if the client has exited, [`Client::read`] says so.
    pub(super) fn send(&mut self, report: &Report) {
        let mut text = serde_json::to_vec(report).unwrap_or_default();
        text.push(b'\n');
        let _ = self.0.write_all(&text);
    }

    /// Reads the client's answer. Call it when the descriptor is readable.
    pub(super) fn read(&mut self) -> Answer {
        let mut byte = [0u8];
        match self.0.read(&mut byte) {
            Ok(1) if byte[0] == PRINTED => Answer::Printed,
            _ => Answer::Gone,
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
