//! A guest that has halted according to its console, while its VMM still runs.

use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use msb::record::Endpoint;
use msb::wire::dial;

use crate::config::now;

/// How long the VMM may run after its guest has halted.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// The same, for a guest that was asked to stop.
pub(super) const STOPPED_GRACE: Duration = Duration::from_millis(200);

/// The console has a message that the guest has halted.
pub(super) struct Halt {
    /// When the VMM is killed.
    pub(super) until: Duration,
    /// Gets a byte if the agent still answers.
    answer: Option<PipeReader>,
}

impl Halt {
    /// The VMM may run for another `grace`. The agent at `endpoint`, if one is given, is asked whether it still answers. If it does,
    /// a process of the guest has forged the message.
    pub(super) fn new(grace: Duration, endpoint: Option<Endpoint>) -> Self {
        Self { until: now() + grace, answer: endpoint.and_then(ask) }
    }

    /// Readable once the agent has answered or cannot be reached.
    pub(super) fn answer(&self) -> Option<BorrowedFd<'_>> {
        self.answer.as_ref().map(AsFd::as_fd)
    }

    /// Reads what [`Halt::answer`] has. True: the agent answers.
    pub(super) fn is_forged(&mut self) -> bool {
        self.answer.take().is_some_and(|mut answer| answer.read(&mut [0]).is_ok_and(|got| got > 0))
    }
}

/// Connects to the agent in a thread. The pipe gets a byte if that succeeds.
fn ask(endpoint: Endpoint) -> Option<PipeReader> {
    let (answer, mut answered) = std::io::pipe().ok()?;
    std::thread::spawn(move || {
        if dial::dial(&endpoint).is_ok() {
            let _ = answered.write_all(b".");
        }
    });
    Some(answer)
}
