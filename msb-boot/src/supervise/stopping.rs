//! Asking the guest to stop.

use std::io;
use std::path::Path;
use std::time::Duration;

use msb::record::Endpoint;
use msb::rundir::{self, Stop};
use msb::wire::exec::Shutdown;
use msb::wire::{Message, dial};

/// How long a guest may take when nobody says otherwise.
const GRACE: Duration = Duration::from_secs(10);

/// How long the guest may take: msb-stop's wish, if it left one.
pub(super) fn grace(dir: &Path) -> Duration {
    rundir::find::<Stop>(dir, rundir::STOP).map_or(GRACE, |stop| Duration::from_millis(stop.grace_ms))
}

/// Asks the agent, in a thread: an agent that does not answer must not keep the supervisor from anything. Whether it
/// worked shows in the VM's end, so nobody waits for the thread.
pub(super) fn ask(endpoint: Endpoint, grace: Duration) {
    // The guest's commands get half of it, and what comes after them the rest.
    let grace_ms = u64::try_from(grace.as_millis() / 2).unwrap_or(u64::MAX);
    std::thread::spawn(move || {
        let Ok(mut stream) = dial::dial(&endpoint) else { return };
        if Message::Shutdown(Shutdown { grace_ms }).send(&mut stream).is_ok() {
            // Hanging up early could overtake the message.
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    });
}
