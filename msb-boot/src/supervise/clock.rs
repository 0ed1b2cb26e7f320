//! The guest's clock. The guest cannot know that the host's clock was set, that the host has slept, or that its VMM was stopped: its own
//! clock goes on from where it was. So the supervisor notices, and tells the agent the time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use msb::record::Endpoint;
use msb::wire::exec::Clock as Time;
use msb::wire::{Message, dial};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// What puts a guest's clock wrong.
pub(super) struct Clock {
    /// A timer that never expires, and is cancelled when this host's clock is set or the host has slept (`TFD_TIMER_CANCEL_ON_SET`,
    /// timerfd_create(2)).
    host: OwnedFd,
    /// SIGCHLD, which also comes when a process of the VM is stopped, and when it goes on.
    children: SignalFd,
    either: OwnedFd,
}

impl Clock {
    /// Watches from now on. SIGCHLD is blocked by it: its default is to be ignored, and processes are waited for by their pidfds.
    ///
    /// # Errors
    /// What the kernel says to a timer, a signalfd or an epoll.
    pub(super) fn watch() -> io::Result<Self> {
        let host = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        timerfd_settime(&host, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
        let signals: SigSet = [Signal::SIGCHLD].into_iter().collect();
        signals.thread_block()?;
        let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let either = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&either, &host, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&either, &children, EventData::new_u64(1), EventFlags::IN)?;
        Ok(Self { host, children, either })
    }

    /// Whether a guest's clock may have become wrong since this was last asked.
    pub(super) fn has_jumped(&self) -> bool {
        let was_set = rustix::io::read(&self.host, &mut [0u8; 8]) == Err(Errno::CANCELED);
        // Which of both it was is not known where they came together, for signals of one kind are merged; to tell a VM that stands
        // still is no mistake, for the time is taken when its agent answers.
        let mut came = false;
        while let Ok(Some(_)) = self.children.read_signal() {
            came = true;
        }
        was_set || came
    }
}

impl AsFd for Clock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

/// Tells the agent the time, in a thread: an agent that does not answer must not keep the supervisor from anything. The time is taken
/// when the agent has answered, so that it is not old where that took long.
pub(super) fn tell(endpoint: Endpoint) {
    thread::spawn(move || {
        let Ok(mut stream) = dial::dial(&endpoint) else { return };
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
        let Ok(now_ms) = u64::try_from(now.as_millis()) else { return };
        if Message::Clock(Time { now_ms }).send(&mut stream).is_ok() {
            // The agent hangs up when it has read it; hanging up first could overtake the message.
            let _ = stream.set_read_timeout(Some(dial::TIMEOUT));
            let _ = Message::receive(&mut stream);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_clock_that_goes_on_has_not_jumped() {
        let clock = Clock::watch().unwrap();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&clock, PollFlags::IN)], Some(&now)), Ok(0));
        assert!(!clock.has_jumped());
    }
}
