//! The agent's report that it is up: one connection from the guest, and one message.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::wire::exec::Ready;
use msb::wire::{self, Message};

/// Waits for the report without blocking.
pub(super) struct Report {
    path: PathBuf,
    listener: UnixListener,
    connection: Option<(UnixStream, wire::Report)>,
}

impl Report {
    /// Listens on a socket at `path`, which is removed when this is dropped.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub(super) fn listen(path: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("{path:?}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), listener, connection: None })
    }

    /// Reads what has arrived. `Some` is the complete report.
    ///
    /// # Errors
    /// An agent that sends something else.
    pub(super) fn take(&mut self) -> anyhow::Result<Option<Ready>> {
        match &mut self.connection {
            None => {
                match self.listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(true)?;
                        // An error is ignored: the agent may have sent its report and closed the connection already.
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
                    Ok(0) => bail!("the agent closed the connection before it had reported"),
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
