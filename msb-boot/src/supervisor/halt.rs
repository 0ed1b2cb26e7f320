//! A guest that has halted according to its console, while its VMM still runs.

use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use msb::record::Endpoint;
use msb::vm::patience::Work;
use msb::wire::dial;

use crate::config::now;

/// How long the VMM may run after its guest has halted.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// The same, for a guest that was asked to stop.
pub(super) const STOPPED_GRACE: Duration = Duration::from_millis(200);
/// How long the VMM of a guest that has work to do may take until its agent answers.
const BUSY_GRACE: Duration = Duration::from_secs(60);
/// The processors of a halted guest have no work on x86-64. Less than this in [`GRACE`] is the VMM's own. On arm64 one of them
/// runs in an endless loop, so the VMM of such a guest is spared until its agent cannot be reached.
const IDLE: Duration = Duration::from_millis(100);

/// The console has a message that the guest has halted.
pub(super) struct Halt {
    /// When the VMM is killed.
    pub(super) until: Duration,
    /// Gets a byte if the agent still answers.
    answer: Option<PipeReader>,
    /// Until when a VMM with work to do is spared.
    limit: Duration,
    /// The VMM's process ID, and its work at the last look.
    vmm: Option<u32>,
    work: Option<Duration>,
}

impl Halt {
    /// The VMM, a process with the number `vmm`, may run for another `grace`. The agent at `endpoint`, if one is given, is asked whether it
    /// still answers. If it does, a process of the guest has forged the message.
    pub(super) fn new(grace: Duration, vmm: Option<u32>, endpoint: Option<Endpoint>) -> Self {
        let limit = now() + BUSY_GRACE;
        Self { until: now() + grace, answer: endpoint.and_then(ask), limit, vmm, work: vmm.and_then(work) }
    }

    /// Whether [`Halt::until`] was moved, because the VMM has had work to do: on a busy host the agent of a guest that goes on may need more
    /// time to answer.
    pub(super) fn spare(&mut self) -> bool {
        let work = self.vmm.and_then(work);
        let is_idle = work.zip(self.work).is_none_or(|(now, before)| is_idle(before, now));
        self.work = work;
        if is_idle || self.answer.is_none() || now() >= self.limit {
            return false;
        }
        self.until = now() + GRACE;
        true
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

/// Whether a process has had no work between two looks. Less work than before is that of fewer threads, and says nothing.
fn is_idle(before: Duration, now: Duration) -> bool {
    (before..before + IDLE).contains(&now)
}

/// How long a process's living threads have run, or have waited for a processor.
fn work(pid: u32) -> Option<Duration> {
    Work::of(pid).map(|work| work.ran + work.waited)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_with_work_is_spared_while_an_answer_is_awaited() {
        let own = std::process::id();
        let (answer, _answered) = std::io::pipe().unwrap();
        let mut halt = Halt { answer: Some(answer), ..Halt::new(Duration::ZERO, Some(own), None) };
        let before = work(own).unwrap();
        while work(own).unwrap() < before + 2 * IDLE {}
        // The other tests are threads of this process: they have work, and they end.
        halt.work = Some(Duration::ZERO);
        let start = now();
        assert!(halt.spare() && halt.until >= start + GRACE);
        halt.vmm = None;
        assert!(!halt.spare(), "it has ended");
        halt.vmm = Some(own);
        halt.work = Some(Duration::ZERO);
        halt.limit = now();
        assert!(!halt.spare(), "the limit has passed");
        halt.limit = now() + BUSY_GRACE;
        halt.work = Some(Duration::ZERO);
        halt.answer = None;
        assert!(!halt.spare(), "the agent cannot be reached");
    }

    #[test]
    fn little_work_since_the_last_look_is_idleness() {
        let before = Duration::from_secs(1);
        assert!(is_idle(before, before) && is_idle(before, before + IDLE / 2));
        assert!(!is_idle(before, before + IDLE));
        assert!(!is_idle(before, before / 2), "a thread has ended");
    }
}
