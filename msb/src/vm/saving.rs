//! The conversation between msb-snapshot and the supervisor of the VM that it saves, on
//! [`SNAPSHOT_SOCKET`](super::rundir::SNAPSHOT_SOCKET): a request with the directory for the files, and an answer. A VM that is to wait
//! does not go on until the connection is closed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::descriptor;
use crate::store::snapshot::Machine;

/// The longest request, in bytes.
const MAX_REQUEST: usize = 4096;
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// What msb-snapshot wants. The descriptor of the directory comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The VM does not go on until the connection is closed.
    pub wait: bool,
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The files are in the directory.
    Saved(Box<Saved>),
    /// Why they are not.
    Failed(String),
}

/// A VM that was saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The machine.
    pub machine: Machine,
    /// How long the guest was paused, in milliseconds.
    pub paused_ms: u64,
}

/// Asks a supervisor to save its VM in `directory`.
///
/// # Errors
/// Those of sending.
pub fn ask(socket: &UnixStream, request: Request, directory: BorrowedFd<'_>) -> io::Result<()> {
    descriptor::send(socket, &serde_json::to_vec(&request)?, Some(directory)).map(drop)
}

/// Receives the answer, which comes when the VM is saved or saving has failed. This blocks until then.
///
/// # Errors
/// Those of receiving; [`io::ErrorKind::UnexpectedEof`] from a supervisor that has ended.
pub fn receive_answer(socket: &UnixStream) -> io::Result<Answer> {
    let mut line = Vec::new();
    BufReader::new(socket).take(MAX_ANSWER).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Receives a request.
///
/// # Errors
/// Those of receiving; [`io::ErrorKind::InvalidData`] for something else than a request.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Request, OwnedFd)> {
    let mut text = [0; MAX_REQUEST];
    let (length, directory) = descriptor::receive(socket, &mut text)?;
    let directory =
        directory.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a request with a directory"))?;
    Ok((serde_json::from_slice(&text[..length])?, directory))
}

/// Sends an answer.
///
/// # Errors
/// Those of writing.
pub fn answer(mut socket: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    socket.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::thread;

    #[test]
    fn a_request_has_a_directory_and_gets_an_answer() {
        let (client, server) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let supervisor = thread::spawn(move || {
            let (request, directory) = receive(server.as_fd()).unwrap();
            rustix::fs::mkdirat(&directory, "made", rustix::fs::Mode::RWXU).unwrap();
            answer(&server, &Answer::Failed(format!("{}", request.wait))).unwrap();
        });
        let opened = std::fs::File::open(dir.path()).unwrap();
        ask(&client, Request { wait: true }, opened.as_fd()).unwrap();
        let answered = receive_answer(&client).unwrap();
        supervisor.join().unwrap();
        assert_eq!(answered, Answer::Failed("true".into()));
        assert!(dir.path().join("made").is_dir());
        let (client, server) = UnixStream::pair().unwrap();
        drop(server);
        assert!(ask(&client, Request { wait: false }, opened.as_fd()).is_err());
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(br#"{"wait":true}"#).unwrap();
        assert!(receive(server.as_fd()).is_err(), "no directory");
    }
}
