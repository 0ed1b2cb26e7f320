//! Asking the guest to stop, and what it answers.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use msb::record::Endpoint;
use msb::vm::rundir::{self, Cause, Ended, Extended, Stop};
use msb::wire::exec::{Shutdown, Stopping};
use msb::wire::{Message, dial};

/// How long a guest may take when nobody says otherwise.
const GRACE: Duration = Duration::from_secs(10);
/// How long a guest that writes data back may take from each time that it says so.
const EXTENSION: Duration = Duration::from_secs(3);
/// How long it may take beyond its grace, however often it says so.
const MOST_EXTENSION: Duration = Duration::from_secs(60);
/// How many messages of a guest wait for the supervisor; the guest waits with more.
const WAITING_NEWS: usize = 16;
/// The most characters of a guest's message that are kept.
const MOST_CHARACTERS: usize = 400;
/// How long the guest's messages may take to arrive when it has ended: they were sent before.
const LAST_NEWS: Duration = Duration::from_millis(200);

/// How long the guest may take: msb-stop's wish, if it left one.
pub(super) fn grace(dir: &Path) -> Duration {
    rundir::find::<Stop>(dir, rundir::STOP).map_or(GRACE, |stop| Duration::from_millis(stop.grace_ms))
}

/// Until when a guest that was asked to stop has time, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    /// The grace that was given.
    pub grace: Duration,
    /// When it is killed.
    pub until: Duration,
    /// When it is killed at the latest, whatever it says.
    limit: Duration,
}

impl Deadline {
    /// From now on.
    pub(super) fn new(now: Duration, grace: Duration) -> Self {
        let until = now + grace;
        // No grace at all means what it says.
        let limit = if grace.is_zero() { until } else { until + MOST_EXTENSION };
        Self { grace, until, limit }
    }

    /// A second wish to stop counts where it leaves less time than the first.
    pub(super) fn hurry(&mut self, now: Duration, grace: Duration) {
        if now + grace < self.until {
            *self = Self::new(now, grace);
        }
    }

    /// The guest writes data back. True: it has more time than before.
    pub(super) fn extend(&mut self, now: Duration) -> bool {
        let until = (now + EXTENSION).clamp(self.until, self.limit);
        std::mem::replace(&mut self.until, until) < until
    }

    /// Whether it has more time than the grace.
    pub(super) fn is_extended(&self) -> bool {
        self.until != self.limit.saturating_sub(MOST_EXTENSION) && !self.grace.is_zero()
    }

    /// For msb-stop, which waits as long.
    pub(super) fn note(&self) -> Extended {
        Extended { until_ms: u64::try_from(self.until.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// What the agent says.
#[derive(Debug)]
enum News {
    /// Why the guest does not end by itself.
    Failure(String),
    /// How it goes on.
    Stopping(Stopping),
}

/// The agent's answer, as far as it has come.
pub(super) struct Answer {
    news: Receiver<News>,
    /// Has a byte for each news.
    bell: PipeReader,
    is_open: bool,
    failure: Option<String>,
    killed: Option<Stopping>,
}

impl Answer {
    /// Takes what has come. True: there was something, so the end goes on, and needs time.
    pub(super) fn take(&mut self) -> bool {
        let mut bytes = [0u8; 64];
        self.is_open = !matches!(self.bell.read(&mut bytes), Ok(0));
        let mut goes_on = false;
        while let Ok(news) = self.news.try_recv() {
            self.keep(news);
            goes_on = true;
        }
        goes_on
    }

    /// Whether more can come.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    fn keep(&mut self, news: News) {
        match news {
            News::Failure(why) => self.failure = Some(why),
            News::Stopping(Stopping { writing: true, .. }) => {}
            News::Stopping(killed) => self.killed = Some(killed),
        }
    }

    /// How the guest's end went, once it has ended.
    pub(super) fn end(&mut self) -> Ended {
        // Its last messages may still be on their way.
        for _ in 0..WAITING_NEWS {
            let Ok(news) = self.news.recv_timeout(LAST_NEWS) else { break };
            self.keep(news);
        }
        end(self.failure.as_deref(), self.killed.as_ref())
    }
}

/// The end of a guest that was asked to stop and has ended itself, by what it said.
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
        self.bell.as_fd()
    }
}

/// Asks the agent, in a thread: an agent that does not answer must not keep the supervisor from anything. Whether it
/// worked shows in the VM's end.
///
/// # Errors
/// What `pipe(2)` says.
pub(super) fn ask(endpoint: Endpoint, grace: Duration) -> std::io::Result<Answer> {
    let (sender, news) = mpsc::sync_channel(WAITING_NEWS);
    let (bell, ring) = std::io::pipe()?;
    rustix::fs::fcntl_setfl(&bell, rustix::fs::OFlags::NONBLOCK)?;
    std::thread::spawn(move || listen(&endpoint, grace, &sender, ring));
    Ok(Answer { news, bell, is_open: true, failure: None, killed: None })
}

fn listen(endpoint: &Endpoint, grace: Duration, news: &SyncSender<News>, mut ring: PipeWriter) {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let Ok(mut stream) = dial::dial(endpoint) else { return };
    if Message::Shutdown(Shutdown { grace_ms }).send(&mut stream).is_err() {
        return;
    }
    // Hanging up early could overtake the message.
    while let Ok(Some(message)) = Message::receive(&mut stream) {
        let said = match message {
            Message::Failure(failure) => {
                News::Failure(msb::tool::exit::printable(&failure.message).chars().take(MOST_CHARACTERS).collect())
            }
            Message::Stopping(stopping) => News::Stopping(stopping),
            _ => return,
        };
        if news.send(said).is_err() || ring.write_all(b".").is_err() {
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
    fn a_guest_that_writes_has_more_time_up_to_a_limit() {
        let mut deadline = Deadline::new(seconds(100), seconds(10));
        assert!(!deadline.extend(seconds(101)), "there is time enough");
        assert!(!deadline.is_extended());
        assert!(deadline.extend(seconds(109)));
        assert!(deadline.is_extended());
        assert_eq!((deadline.until, deadline.note().until_ms), (seconds(112), 112_000));
        for now in 110..1000 {
            deadline.extend(seconds(now));
        }
        assert_eq!(deadline.until, seconds(170));
        let mut none = Deadline::new(seconds(100), Duration::ZERO);
        assert!(!none.extend(seconds(100)) && !none.is_extended());
        assert_eq!(none.until, seconds(100));
    }

    #[test]
    fn a_second_wish_counts_where_it_leaves_less_time() {
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
    fn the_end_says_what_was_killed_and_what_did_not_end() {
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
