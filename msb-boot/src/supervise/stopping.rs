//! Asking the guest to stop.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use msb::record::Endpoint;
use msb::rundir::{self, Stop};
use msb::wire::exec::Shutdown;
use msb::wire::{Message, dial};

/// How long a guest may take when nobody says otherwise.
const GRACE: Duration = Duration::from_secs(10);
/// How long words of the guest may take to arrive when it has ended: they were sent before.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long the guest may take: msb-stop's wish, if it left one.
pub(super) fn grace(dir: &Path) -> Duration {
    rundir::find::<Stop>(dir, rundir::STOP).map_or(GRACE, |stop| Duration::from_millis(stop.grace_ms))
}

/// The agent's answer, where it has one: why the guest does not stop by itself.
pub(super) struct Answer(Receiver<String>);

impl Answer {
    /// Words, once the guest has ended. Its last ones may still be on their way.
    pub(super) fn take(&self) -> Option<String> {
        self.0.recv_timeout(LAST_WORDS).ok()
    }
}

/// Asks the agent, in a thread: an agent that does not answer must not keep the supervisor from anything. Whether it
/// worked shows in the VM's end.
pub(super) fn ask(endpoint: Endpoint, grace: Duration) -> Answer {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let Ok(mut stream) = dial::dial(&endpoint) else { return };
        if Message::Shutdown(Shutdown { grace_ms }).send(&mut stream).is_err() {
            return;
        }
        // An agent that can do it says nothing; and hanging up early could overtake the message.
        let _ = stream.set_read_timeout(None);
        if let Ok(Some(Message::Failure(failure))) = Message::receive(&mut stream) {
            let _ = answer.send(msb::exit::printable(&failure.message));
        }
    });
    Answer(answered)
}
