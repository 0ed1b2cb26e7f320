//! The agent's report that it is up: one connection from the guest, one message, and the door is closed.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::wire::exec::Ready;
use msb::wire::{self, Message};

/// Waits for the report, without holding up anything else.
pub(super) struct Report {
    path: PathBuf,
    listener: UnixListener,
    connection: Option<(UnixStream, wire::Report)>,
}

impl Report {
    /// Opens the door.
    pub(super) fn expect_at(path: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("{path:?}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), listener, connection: None })
    }

    /// Takes what has come. `Some`: the whole report.
    ///
    /// # Errors
    /// Words for an agent that says something else.
    pub(super) fn take(&mut self) -> anyhow::Result<Option<Ready>> {
        match &mut self.connection {
            None => {
                match self.listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(true)?;
                        // It may have said all it has to say, and hung up, while this machine was busy.
                        let _ = Message::hello().send(&mut stream);
                        self.connection = Some((stream, wire::Report::default()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
                Ok(None)
            }
            Some((stream, report)) => {
                let mut buffer = [0u8; 4096];
                let bytes = match stream.read(&mut buffer) {
                    Ok(0) => bail!("the agent hung up before it had reported"),
                    Ok(got) => &buffer[..got],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(error) => return Err(error).context("agent"),
                };
                report.take(bytes).context("agent")
            }
        }
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.connection {
            Some((stream, ..)) => stream.as_fd(),
            None => self.listener.as_fd(),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
