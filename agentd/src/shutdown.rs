//! The end of the machine. Where this is PID 1: everything gets TERM, then KILL; file systems are written back; the machine
//! resets, which both VMMs take for its end (neither has a way to power off). Beside an init: that is asked to do all this, and
//! it is done here where the init does not, or ends itself.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use msb::wire::Message;
use msb::wire::exec::Failure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use vsock::VsockStream;

use crate::early::{self, Made};
use crate::handoff::Traced;
use crate::reap::Reaper;
use crate::{Agent, LAST_WORDS, poweroff};

/// How long the end may take where nobody says.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end what got KILL: only a process stuck in the kernel needs any.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// What is kept of the grace for ending the machine without its init, at most.
const FORCE_TIME: Duration = Duration::from_secs(2);

/// A shutdown that somebody asked for.
#[derive(Debug, Default)]
pub struct Wish(Mutex<Option<Asked>>);

#[derive(Debug)]
struct Asked {
    grace: Duration,
    /// Who asked.
    host: VsockStream,
}

impl Wish {
    /// Asks the main thread for a shutdown. The first wish counts.
    pub fn ask(&self, grace: Duration, host: VsockStream) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Asked { grace, host });
        // The main thread waits for signals and nothing else.
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }

    /// How long all of it may take, where the host asked.
    pub fn grace(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|asked| asked.grace)
    }

    /// Hangs up on who asked, whose turn it is to wait for the machine's end.
    fn hang_up(&self) {
        if let Some(Asked { host, .. }) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = host.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Tells the host that the machine does not end as it should.
    fn tell(&self, words: &str) {
        if let Some(Asked { host, .. }) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let failure = Failure { code: 1, message: words.to_owned() };
            let _ = Message::Failure(failure).send(host);
        }
    }
}

/// As PID 1: ends everything and then the machine. `agent`'s reaper must be running in another thread.
pub fn as_pid_1(agent: &Agent, made: &Made) -> ! {
    let since = Instant::now();
    // Half for the commands, and the rest for what comes behind them.
    end_processes(&agent.reaper, agent.shutdown.grace().unwrap_or(DEFAULT_GRACE) / 2);
    // Callers hear how their commands ended.
    agent.sessions.wait_until_none(LAST_WORDS);
    agent.shutdown.hang_up();
    end_machine(made, since)
}

/// Beside an init: reaps until the host asks for the end, or the init tells everybody to end.
pub fn beside_init(agent: &Arc<Agent>, made: &Made, signals: &SigSet) -> ! {
    let signals = match SignalFd::new(signals) {
        Ok(signals) => signals,
        Err(error) => {
            crate::say(&format!("signalfd: {error}"));
            end_machine(made, Instant::now())
        }
    };
    loop {
        match signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGCHLD as u32 => drop(agent.reaper.reap()),
            Ok(Some(_)) if agent.shutdown.grace().is_some() => end_by_init(agent, made),
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGTERM as u32 && ends_everybody(signal.ssi_pid) => {
                leave(agent)
            }
            // Nobody else has a say here.
            _ => {}
        }
    }
}

/// Whether a process that sends TERM is the one that ends all others when a machine goes down: the init, or sysvinit's tool.
fn ends_everybody(sender: u32) -> bool {
    sender == 1
        || std::fs::read_to_string(format!("/proc/{sender}/comm")).is_ok_and(|name| name.trim_end() == "killall5")
}

/// Ends this process, as the init wants it. Callers hear how their commands ended, and nobody has to wait for more.
fn leave(agent: &Arc<Agent>) -> ! {
    go_on_reaping(agent);
    agent.sessions.wait_until_none(LAST_WORDS);
    std::process::exit(0)
}

/// Reaps in a thread of its own: sessions wait for it, and so does this one for them.
fn go_on_reaping(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    thread::spawn(move || {
        let signals: SigSet = [Signal::SIGCHLD].into_iter().collect();
        loop {
            agent.reaper.reap();
            let _ = signals.wait();
        }
    });
}

/// The host's wish: asks the init to power off, and sees to it.
fn end_by_init(agent: &Arc<Agent>, made: &Made) -> ! {
    let Some(grace) = agent.shutdown.grace() else { unreachable!("somebody asked") };
    let since = Instant::now();
    // Signals first: whatever ends now is not held up by a caller.
    agent.reaper.signal_all(Signal::SIGTERM as i32);
    agent.reaper.signal_all(Signal::SIGCONT as i32);
    // Before it is asked: one that ends at once would take the machine along, with what is not written back. Somebody may
    // trace it already; then its end is the kernel's to tell.
    let traced = Traced::seize();
    let asked = poweroff::ask(grace);
    match &asked {
        Ok(asked) => crate::say(&format!("asked {}", asked.how)),
        Err(error) => crate::say(&format!("ask the init to power off: {error}")),
    }
    let may_try_term = asked.is_ok_and(|asked| asked.may_try_term);
    let deadline = since + grace - FORCE_TIME.min(grace / 4);
    match await_init(agent, traced.ok().as_ref(), since, deadline, may_try_term) {
        Outcome::Told => leave(agent),
        Outcome::Ended(how) => crate::say(&format!("the init ended ({how}); ending the machine")),
        Outcome::Late => {
            let words = format!("the init did not power off within {:.1} s", since.elapsed().as_secs_f32());
            crate::say(&format!("{words}; ending the machine by force"));
            agent.shutdown.tell(&words);
        }
    }
    go_on_reaping(agent);
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    // The init is nobody's child, and it stays where it is.
    agent.reaper.wait_unawaited(KILL_GRACE);
    agent.sessions.wait_until_none(LAST_WORDS);
    agent.shutdown.hang_up();
    end_machine(made, since)
}

/// What came of asking an init.
enum Outcome {
    /// It told everybody to end, this process too.
    Told,
    /// It ended itself, as those for containers do.
    Ended(String),
    /// Nothing, in time.
    Late,
}

fn await_init(
    agent: &Agent,
    traced: Option<&Traced>,
    since: Instant,
    deadline: Instant,
    mut may_try_term: bool,
) -> Outcome {
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect();
    let Ok(signals) = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return Outcome::Late;
    };
    let term_at = since + (deadline - since) / 2;
    loop {
        let now = Instant::now();
        if may_try_term && now >= term_at {
            may_try_term = false;
            poweroff::ask_by_term();
        }
        if now >= deadline {
            return Outcome::Late;
        }
        let until = if may_try_term { term_at } else { deadline };
        let left = until.saturating_duration_since(now) + Duration::from_millis(1);
        let _ = poll(
            &mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)],
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        );
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 && signal.ssi_pid != std::process::id() {
                return Outcome::Told;
            }
        }
        if let (Some(status), Some(traced)) = (agent.reaper.reap(), traced)
            && let Some(how) = traced.ending(status)
        {
            return Outcome::Ended(how);
        }
    }
}

/// Ends every process but this one; `reaper` must be running in another thread.
fn end_processes(reaper: &Reaper, grace: Duration) {
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGTERM);
    let _ = kill(everybody, Signal::SIGCONT);
    if !reaper.wait_childless(grace) {
        crate::say("processes are left after the grace: killing them");
        let _ = kill(everybody, Signal::SIGKILL);
        reaper.wait_childless(KILL_GRACE);
    }
}

/// Writes everything back, takes the mounts down and ends the machine. Says how long the end took, by the guest's own clock.
pub fn end_machine(made: &Made, since: Instant) -> ! {
    nix::unistd::sync();
    early::leave_root(made);
    nix::unistd::sync();
    crate::say(&format!("the machine ends, {} ms after it was asked to", since.elapsed().as_millis()));
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not reached: the kernel resets, or PID 1 may not leave.
    loop {
        nix::unistd::pause();
    }
}
