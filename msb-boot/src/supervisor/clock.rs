//! The guest's clock. The guest does not notice that the host's clock was set, that the host was suspended, or that the VMM was stopped
//! (SIGSTOP): its clock is behind then. The supervisor notices, and sends the time to the agent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use msb::record::Endpoint;
use msb::vm::patience::Patience;
use msb::wire::exec::Clock as Time;
use msb::wire::{Message, dial};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Watches for events after which the guest's clock may be wrong.
pub(super) struct Clock {
    /// A timer that never expires. It is cancelled when the host's clock is set or the host resumes (`TFD_TIMER_CANCEL_ON_SET`,
    /// timerfd_create(2)).
    host: OwnedFd,
    /// SIGCHLD, which is also sent when a child is stopped or continued.
    children: SignalFd,
    /// An epoll descriptor for both.
    either: OwnedFd,
}

impl Clock {
    /// Starts to watch. Blocks SIGCHLD for the signalfd; processes are waited for with their pidfds.
    ///
    /// # Errors
    /// Those of timerfd_create(2), signalfd(2) and epoll_create(2).
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

    /// Whether the guest's clock may have become wrong since the last call.
    pub(super) fn has_jumped(&self) -> bool {
        let was_set = rustix::io::read(&self.host, &mut [0u8; 8]) == Err(Errno::CANCELED);
        // Pending signals of one kind are merged, so a stop cannot be told from a continuation. Sending the time to a stopped VM does no
        // harm: the time is read when the agent answers.
        let mut has_signal = false;
        while let Ok(Some(_)) = self.children.read_signal() {
            has_signal = true;
        }
        was_set || has_signal
    }
}

impl AsFd for Clock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

/// Sends the time to the agent, in a thread: an agent that does not answer must not block the supervisor. The time is read after the agent
/// has answered, so that it is current.
pub(super) fn send_time(endpoint: Endpoint) {
    thread::spawn(move || {
        let Ok(mut stream) = dial::dial(&endpoint) else { return };
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
        let Ok(now_ms) = u64::try_from(now.as_millis()) else { return };
        if Message::Clock(Time { now_ms }).send(&mut stream).is_ok() {
            // The agent closes the connection when it has read the message. Closing it here first could discard the message.
            let patience = Patience::with(&endpoint, dial::TIMEOUT);
            let _ = Message::receive(&mut dial::PatientReader { stream: &stream, patience });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn an_undisturbed_clock_has_not_jumped() {
        let clock = Clock::watch().unwrap();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&clock, PollFlags::IN)], Some(&now)), Ok(0));
        assert!(!clock.has_jumped());
    }
}
