//! The process between the guest's network card and a TAP interface: a VMM has a stream of frames, an interface one frame a call. It
//! checks nothing but lengths. Its jail is empty, and has no network.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use msb::jail::Jail;
use msb::tool::exit;
use msb_gate::frame::MAX_FRAME;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::port::{LENGTH, Port};
use crate::inherited_fd::InheritedFd;

/// The process's name in messages.
pub(crate) const NAME: &str = "relay";

/// How many bytes of frames are collected for one write to the guest.
const BATCH: usize = 256 << 10;
/// The size of a batch to which the largest frame is added last.
const BUFFER: usize = BATCH + LENGTH + MAX_FRAME;

/// What the process is told, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    pub jail: Jail,
    /// The VMM's frames.
    pub guest: InheritedFd,
    /// The interface.
    pub tap: InheritedFd,
}

/// The process's main function.
pub(crate) fn run(description: &str) -> ExitCode {
    exit::report(NAME, exit::FAILED, relay(description).map(|()| 0))
}

fn relay(description: &str) -> anyhow::Result<()> {
    let Description { jail, guest, tap } = serde_json::from_str(description).context("description of the relay")?;
    let (guest, tap) = (guest.duplicate()?, tap.duplicate()?);
    jail.enter().context("jail")?;
    let mut guest = Port::new(guest)?;
    let flags = rustix::fs::fcntl_getfl(&tap)?;
    rustix::fs::fcntl_setfl(&tap, flags | OFlags::NONBLOCK)?;
    let mut batch = vec![0; BUFFER];
    let mut is_tap_open = true;
    while guest.is_open {
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !guest.is_drained());
        let mut fds = vec![PollFd::from_borrowed_fd(guest.fd.as_fd(), interest)];
        // While the guest takes nothing, the interface's queue fills, and the kernel drops what is too much.
        if is_tap_open && guest.is_drained() {
            fds.push(PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let (from_guest, from_tap) = (fds[0].revents(), fds.get(1).map_or(PollFlags::empty(), PollFd::revents));
        if from_guest.contains(PollFlags::OUT) {
            guest.drain();
        }
        if from_guest.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            let is_open = guest.read().is_some();
            guest.take_frames(|frame| {
                // The interface may be down, or gone.
                let _ = rustix::io::write(&tap, frame);
            });
            guest.is_open &= is_open;
        }
        if !from_tap.is_empty() {
            is_tap_open = read_tap(&tap, &mut guest, &mut batch);
        }
    }
    Ok(())
}

/// Moves the frames that have arrived on the interface, through a buffer of [`BUFFER`] bytes. False if the interface is gone.
fn read_tap(tap: &OwnedFd, guest: &mut Port, batch: &mut [u8]) -> bool {
    let mut end = 0;
    let mut is_open = true;
    while end < BATCH {
        match rustix::io::read(tap, &mut batch[end + LENGTH..]) {
            Ok(count) if count > MAX_FRAME => {}
            Ok(count) => {
                let length = u32::try_from(count).unwrap_or(0).to_be_bytes();
                batch[end..end + LENGTH].copy_from_slice(&length);
                end += LENGTH + count;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            // EIO while it is down: poll(2) reports it again when it is up.
            Err(error) => {
                is_open = error == Errno::IO;
                break;
            }
        }
    }
    guest.write(&batch[..end]);
    is_open
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn frames_get_their_lengths() {
        // A datagram socket has one frame a call, as a TAP interface.
        let (tap, network) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        let (mut vmm, guest) = UnixStream::pair().unwrap();
        let mut guest = Port::new(guest.into()).unwrap();
        network.send(b"one").unwrap();
        network.send(b"three").unwrap();
        let tap = OwnedFd::from(tap);
        assert!(read_tap(&tap, &mut guest, &mut vec![0; BUFFER]));
        let mut bytes = [0; 16];
        vmm.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\x03one\0\0\0\x05three");

        // Whole frames are taken, one that is too long is skipped, and the rest of the last one is waited for.
        let long = [&u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes()[..], &vec![7; MAX_FRAME + 1]].concat();
        vmm.write_all(&[b"\0\0\0\x03one", long.as_slice(), b"\0\0\0\x05th"].concat()).unwrap();
        let mut frames = Vec::new();
        assert_eq!(guest.read().map(|count| count > 0), Some(true));
        guest.take_frames(|frame| frames.push(frame.to_vec()));
        vmm.write_all(b"ree").unwrap();
        assert_eq!(guest.read().map(|count| count > 0), Some(true));
        guest.take_frames(|frame| frames.push(frame.to_vec()));
        assert_eq!(frames, [b"one".to_vec(), b"three".to_vec()]);
        drop(vmm);
        assert_eq!(guest.read(), None);
    }
}
