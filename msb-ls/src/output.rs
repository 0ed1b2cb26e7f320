//! The output of a detached command, from the frames that msb-boot has recorded.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use msb::tool::follow::{self, Sink};
use msb::vm::rundir;
use msb::wire::{Decoded, Decoder, Message, Stream};

/// How long a command that was started just now may take to have a log.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// Shows the output of a command of the VM with the run directory `dir`, on stdout and stderr. With `until`, follows it until the command
/// ends or that descriptor is readable.
///
/// # Errors
/// That there is no such log, and those of reading and writing.
pub fn show(dir: &Path, name: &str, id: u32, until: Option<&OwnedFd>, runs: bool) -> anyhow::Result<()> {
    let log = rundir::exec_log(dir, id);
    if !(log.exists() || runs && follow::wait_for(&log, APPEARS_WITHIN).unwrap_or(false)) {
        bail!("no output of a detached command {id} is kept (msb-exec --list {name} lists commands)");
    }
    Ok(follow::read(&log, &rundir::older_part(&log), Frames::default(), until)?)
}

/// Writes the bytes of each frame to its stream.
#[derive(Default)]
struct Frames {
    decoder: Decoder,
}

impl Sink for Frames {
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<ControlFlow<()>> {
        while let Some(item) = self.decoder.next(&mut bytes).map_err(io::Error::other)? {
            match item {
                Decoded::Message(Message::Output { stream: Stream::Stderr, bytes, .. }) => {
                    io::stderr().write_all(&bytes)?;
                }
                Decoded::Message(Message::Output { bytes, .. }) => io::stdout().write_all(&bytes)?,
                Decoded::Message(Message::Execs(listing)) if listing.execs.iter().any(|exec| exec.exit.is_some()) => {
                    io::stdout().flush()?;
                    return Ok(ControlFlow::Break(()));
                }
                Decoded::Data(..) | Decoded::Message(_) => {}
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
