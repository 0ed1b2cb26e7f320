//! The supervisor's end of its talk with the msb-boot that a person called.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use msb::tool::interrupt::Guard;
use msb::tool::line;

use crate::config::Config;
use crate::launch::{PRINTED, Report};

/// The other side.
pub(super) struct Front(UnixStream);

/// What the other side did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It printed the record.
    Printed,
    /// It is gone.
    Gone,
}

impl Front {
    /// Takes it from stdin, which is `/dev/null` then, so that dropping this is hanging up.
    pub(super) fn take() -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(stream))
    }

    /// What to boot.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        let order = line::take(&self.0)?.context("no order")?;
        Ok(serde_json::from_slice(&order)?)
    }

    /// While this lives, long steps of this process are interrupted when the other side goes, or a signal comes.
    pub(super) fn guard(&self) -> io::Result<Guard> {
        Guard::with_peer(self.0.as_fd().try_clone_to_owned()?)
    }

    /// Tells it something. Where it is gone, [`Front::listen`] will say so.
    pub(super) fn tell(&mut self, report: &Report) {
        let mut text = serde_json::to_vec(report).unwrap_or_default();
        text.push(b'\n');
        let _ = self.0.write_all(&text);
    }

    /// Reads what it said, when there is something to read.
    pub(super) fn listen(&mut self) -> Said {
        let mut byte = [0u8];
        match self.0.read(&mut byte) {
            Ok(1) if byte[0] == PRINTED => Said::Printed,
            _ => Said::Gone,
        }
    }
}

impl AsFd for Front {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
