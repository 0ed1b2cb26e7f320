//! The request to the guest to stop, and the agent's answer.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use msb::record::Endpoint;
use msb::vm::rundir::{self, Cause, Ended, Extended, StopRequest};
use msb::wire::exec::{Shutdown, Stopping};
use msb::wire::{Message, dial};

use crate::config::now;

/// The grace if nobody sets another one.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// By how much each message that the guest is still writing data back extends its time, from the message on.
const EXTENSION: Duration = Duration::from_secs(3);
/// The limit of all extensions together.
const MAX_EXTENSION: Duration = Duration::from_secs(60);
/// How many messages of the guest are queued. More messages wait in the guest.
const QUEUE_LENGTH: usize = 16;
/// How much of a guest's message is kept, in characters.
const MAX_CHARACTERS: usize = 400;
/// How long messages that the guest sent before its end may take to arrive. The agent closes the connection after the last one.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The grace: how long the guest may take to stop. msb-stop may have left one in the run directory `dir`.
pub(super) fn grace(dir: &Path) -> Duration {
    rundir::read::<StopRequest>(dir, rundir::STOP).map_or(DEFAULT_GRACE, |stop| Duration::from_millis(stop.grace_ms))
}

/// The time by which a guest must have stopped, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    /// The grace.
    pub grace: Duration,
    /// When the guest is killed.
    pub until: Duration,
    /// The time beyond which no message extends [`Deadline::until`].
    limit: Duration,
}

impl Deadline {
    /// A deadline `grace` after `now`.
    pub(super) fn new(now: Duration, grace: Duration) -> Self {
        let until = now + grace;
        // A grace of zero is never extended.
        let limit = if grace.is_zero() { until } else { until + MAX_EXTENSION };
        Self { grace, until, limit }
    }

    /// A second request to stop. It counts if it leaves less time than the first.
    pub(super) fn hurry(&mut self, now: Duration, grace: Duration) {
        if now + grace < self.until {
            *self = Self::new(now, grace);
        }
    }

    /// The guest is still writing data back. Returns whether that gives it more time.
    pub(super) fn extend(&mut self, now: Duration) -> bool {
        let until = (now + EXTENSION).clamp(self.until, self.limit);
        std::mem::replace(&mut self.until, until) < until
    }

    /// Whether the guest was given more time than the grace.
    pub(super) fn is_extended(&self) -> bool {
        self.until != self.limit.saturating_sub(MAX_EXTENSION) && !self.grace.is_zero()
    }

    /// The deadline for msb-stop, which waits as long.
    pub(super) fn for_msb_stop(&self) -> Extended {
        Extended { until_ms: u64::try_from(self.until.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// A message of the agent.
#[derive(Debug)]
enum AgentMessage {
    /// Why the guest does not end by itself.
    Failure(String),
    /// The progress.
    Stopping(Stopping),
}

/// The agent's answer, as far as it has arrived.
pub(super) struct Answer {
    messages: Receiver<AgentMessage>,
    /// Gets a byte for each message, so that poll(2) can wait for messages.
    wakeup: PipeReader,
    is_open: bool,
    failure: Option<String>,
    killed: Option<Stopping>,
}

impl Answer {
    /// Reads the messages that have arrived. Returns whether there were any: the guest is still stopping then.
    pub(super) fn read(&mut self) -> bool {
        let mut bytes = [0u8; 64];
        self.is_open = !matches!(self.wakeup.read(&mut bytes), Ok(0));
        let mut has_message = false;
        while let Ok(message) = self.messages.try_recv() {
            self.record(message);
            has_message = true;
        }
        has_message
    }

    /// Whether more can arrive.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    fn record(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Failure(why) => self.failure = Some(why),
            AgentMessage::Stopping(Stopping { writing: true, .. }) => {}
            AgentMessage::Stopping(killed) => self.killed = Some(killed),
        }
    }

    /// The end of a guest that has ended by itself.
    pub(super) fn end(&mut self) -> Ended {
        // Its last messages may still be on their way.
        for _ in 0..QUEUE_LENGTH {
            let Ok(message) = self.messages.recv_timeout(LAST_MESSAGE_TIMEOUT) else { break };
            self.record(message);
        }
        end(self.failure.as_deref(), self.killed.as_ref())
    }
}

/// The end of a guest that was asked to stop and has ended by itself, from what its agent said.
fn end(failure: Option<&str>, killed: Option<&Stopping>) -> Ended {
    let mut ended = match failure {
        Some(failure) => Ended::forced(format!("{failure}, ended by force")),
        None => Ended::by(Cause::Stop),
    };
    if let Some(stopping) = killed {
        let (count, what) = match stopping.killed {
            0 => (stopping.killed_others, "process"),
            commands => (commands, "command"),
        };
        let plural = match (count, what) {
            (1, _) => "",
            (_, "process") => "es",
            _ => "s",
        };
        let seconds = Duration::from_millis(stopping.after_ms).as_secs_f32();
        ended.reason.push_str(&format!(", {count} {what}{plural} killed after {seconds:.1} s"));
        ended.killed = stopping.killed;
    }
    ended
}

impl AsFd for Answer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}

/// Asks the agent to stop the guest, in a thread: an agent that does not answer must not block the supervisor. If the request fails, the
/// deadline passes.
///
/// # Errors
/// Those of `pipe(2)`.
pub(super) fn request(endpoint: Endpoint, grace: Duration) -> std::io::Result<Answer> {
    let (sender, messages) = mpsc::sync_channel(QUEUE_LENGTH);
    let (wakeup, wake) = std::io::pipe()?;
    rustix::fs::fcntl_setfl(&wakeup, rustix::fs::OFlags::NONBLOCK)?;
    let until = now() + grace;
    std::thread::spawn(move || converse(&endpoint, until, &sender, wake));
    Ok(Answer { messages, wakeup, is_open: true, failure: None, killed: None })
}

/// Sends the request to stop by `until` on the monotonic clock, and passes the agent's messages on.
fn converse(endpoint: &Endpoint, until: Duration, messages: &SyncSender<AgentMessage>, mut wake: PipeWriter) {
    let Ok(mut stream) = dial::dial(endpoint) else { return };
    // A busy host takes a while to connect. The guest must end within what is left.
    let grace_ms = u64::try_from(until.saturating_sub(now()).as_millis()).unwrap_or(u64::MAX);
    if Message::Shutdown(Shutdown { grace_ms }).send(&mut stream).is_err() {
        return;
    }
    // The connection stays open: closing it early could discard the request.
    while let Ok(Some(message)) = Message::receive(&mut stream) {
        let message = match message {
            Message::Failure(failure) => AgentMessage::Failure(
                msb::tool::exit::printable(&failure.message).chars().take(MAX_CHARACTERS).collect(),
            ),
            Message::Stopping(stopping) => AgentMessage::Stopping(stopping),
            _ => return,
        };
        if messages.send(message).is_err() || wake.write_all(b".").is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_that_writes_gets_more_time_up_to_a_limit() {
        let mut deadline = Deadline::new(seconds(100), seconds(10));
        assert!(!deadline.extend(seconds(101)), "there is time enough");
        assert!(!deadline.is_extended());
        assert!(deadline.extend(seconds(109)));
        assert!(deadline.is_extended());
        assert_eq!((deadline.until, deadline.for_msb_stop().until_ms), (seconds(112), 112_000));
        for now in 110..1000 {
            deadline.extend(seconds(now));
        }
        assert_eq!(deadline.until, seconds(170));
        let mut none = Deadline::new(seconds(100), Duration::ZERO);
        assert!(!none.extend(seconds(100)) && !none.is_extended());
        assert_eq!(none.until, seconds(100));
    }

    #[test]
    fn a_second_request_counts_if_it_leaves_less_time() {
        let mut deadline = Deadline::new(seconds(100), seconds(10));
        deadline.hurry(seconds(101), seconds(20));
        assert_eq!((deadline.until, deadline.grace), (seconds(110), seconds(10)));
        deadline.hurry(seconds(102), seconds(2));
        assert_eq!((deadline.until, deadline.grace), (seconds(104), seconds(2)));
        deadline.extend(seconds(104));
        deadline.hurry(seconds(105), Duration::ZERO);
        assert_eq!(deadline.until, seconds(105));
        assert!(!deadline.extend(seconds(105)));
    }

    #[test]
    fn the_end_names_what_was_killed_and_what_failed() {
        let killed =
            |commands, others, after_ms| Stopping { killed: commands, killed_others: others, after_ms, writing: false };
        for (failure, stopping, reason, forced, count) in [
            (None, None, "stopped", false, 0),
            (None, Some(killed(2, 0, 8000)), "stopped, 2 commands killed after 8.0 s", false, 2),
            (None, Some(killed(1, 5, 750)), "stopped, 1 command killed after 0.8 s", false, 1),
            (None, Some(killed(0, 1, 8000)), "stopped, 1 process killed after 8.0 s", false, 0),
            (None, Some(killed(0, 3, 8000)), "stopped, 3 processes killed after 8.0 s", false, 0),
            (Some("it hangs"), None, "it hangs, ended by force", true, 0),
            (
                Some("it hangs"),
                Some(killed(1, 0, 8000)),
                "it hangs, ended by force, 1 command killed after 8.0 s",
                true,
                1,
            ),
        ] {
            let ended = end(failure, stopping.as_ref());
            assert_eq!((ended.reason.as_str(), ended.forced, ended.killed), (reason, forced, count));
        }
    }
}
