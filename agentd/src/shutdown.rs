//! The end of the machine. As PID 1, the agent sends TERM and then KILL to every process, writes file systems back, and resets the
//! machine: both VMMs take a reset for the end, and neither can be powered off. Beside an init, the agent asks the init to do this, and
//! does it itself if the init fails to or exits.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::cleanup::Cleanup;
use crate::init::power_off;
use crate::init::trace::Traced;
use crate::process::{self, Stat};
use crate::reap::Reaper;
use crate::shutdown_request::{Killed, ShutdownRequest, WRITING_INTERVAL};
use crate::{channel, console, early};

/// How long sessions may take to send the rest of an output and the exit status when the machine ends.
const SESSIONS_GRACE: Duration = Duration::from_secs(1);

/// How long a shutdown may take if the host has not asked for it.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// How long killed processes may take to end. Only one that is stuck in the kernel takes any time.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// The most of the commands' time that is reserved for TERM, after the image's own stop signal.
const TERM_TIME: Duration = Duration::from_secs(10);
/// The most of the grace that is reserved for ending the machine after its commands, or without its init.
const FORCE_TIME: Duration = Duration::from_secs(2);
/// The most of the grace that is reserved for an init while commands take their time to end.
const INIT_TIME: Duration = Duration::from_secs(4);

/// The part of the grace that is reserved for ending the machine. The commands or the init have the rest.
fn reserve(grace: Duration) -> Duration {
    FORCE_TIME.min(grace / 4)
}

/// What happens after the end of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays off.
    Off,
    /// The guest wants it to boot again. The host decides.
    Reboot,
}

/// Why the agent, as PID 1, ends the machine.
#[derive(Debug)]
pub struct Cause {
    /// The signal that PID 1 received.
    pub signal: &'static str,
    /// What happens next.
    pub next: Next,
}

/// As PID 1: reaps children until the host or a process of the guest asks for the end.
///
/// # Errors
/// Those of `signalfd(2)`.
pub fn await_cause(agent: &Agent, signals: &SigSet) -> nix::Result<Cause> {
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC)?;
    loop {
        let Ok(Some(info)) = signals.read_signal() else { continue };
        match Signal::try_from(info.ssi_signo.cast_signed()) {
            Ok(Signal::SIGCHLD) => drop(agent.reaper.reap()),
            Ok(signal) => {
                let by_host = agent.shutdown.grace().is_some();
                let name = (signal == Signal::SIGTERM).then(|| program(info.ssi_pid)).flatten();
                let next = if by_host { Next::Off } else { next(signal, name.as_deref()) };
                return Ok(Cause { signal: signal.as_str(), next });
            }
            Err(_) => {}
        }
    }
}

/// What a signal to PID 1 means. The kernel sends INT for Ctrl-Alt-Del, and every init takes it for a reboot. TERM is sent by BusyBox's
/// `reboot` and also to stop a container, so the name of the sender decides. A sender that is gone was not a shell, so it was `reboot`.
fn next(signal: Signal, sender: Option<&str>) -> Next {
    match (signal, sender) {
        (Signal::SIGINT, _) | (Signal::SIGTERM, None | Some("reboot")) => Next::Reboot,
        _ => Next::Off,
    }
}

/// The name of the program that a process runs; of BusyBox, the name of the applet.
fn program(pid: u32) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let comm = comm.trim_end();
    if comm != "busybox" {
        return Some(comm.to_owned());
    }
    // It was started as "busybox APPLET".
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let applet = cmdline.split(|&byte| byte == 0).nth(1)?;
    Some(String::from_utf8_lossy(applet).into_owned())
}

/// As PID 1: ends all processes and then the machine. The agent's reaper must run in another thread.
pub fn as_pid_1(agent: &Agent, cleanup: &Cleanup, next: Next) -> ! {
    let since = Instant::now();
    let grace = agent.shutdown.grace().unwrap_or(DEFAULT_GRACE);
    end_processes(agent, grace - reserve(grace));
    finish_sessions(agent);
    end_machine(cleanup, since, Some(&agent.shutdown), next)
}

/// Beside an init: reaps children until the host asks for a shutdown, or the init sends TERM to all processes.
pub fn beside_init(agent: &Arc<Agent>, cleanup: &Cleanup, signals: &SigSet) -> ! {
    let signals = match SignalFd::new(signals) {
        Ok(signals) => signals,
        Err(error) => {
            console::log(&format!("signalfd: {error}"));
            end_machine(cleanup, Instant::now(), None, Next::Off)
        }
    };
    loop {
        match signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGCHLD as u32 => drop(agent.reaper.reap()),
            Ok(Some(_)) if agent.shutdown.grace().is_some() => end_by_init(agent, cleanup),
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGTERM as u32 && kills_all_processes(signal.ssi_pid) => {
                leave(agent)
            }
            // Signals of other processes are ignored.
            _ => {}
        }
    }
}

/// Whether the sender of a TERM is a program that ends all processes when the machine goes down: the init, or sysvinit's killall5.
fn kills_all_processes(sender: u32) -> bool {
    sender == 1
        || std::fs::read_to_string(format!("/proc/{sender}/comm")).is_ok_and(|name| name.trim_end() == "killall5")
}

/// Levels for `kernel.printk` (`syslog(2)`). The first shows messages up to notices, such as the one about a reboot; the second shows
/// only emergencies.
pub const NOTICES: u8 = 6;
const EMERGENCIES: u8 = 1;

/// Makes the console show the kernel's messages below a level.
pub fn show_kernel_messages(level: u8) {
    if let Err(error) = fs::write("/proc/sys/kernel/printk", level.to_string()) {
        console::log(&format!("kernel.printk: {error}"));
    }
}

/// Ends this process, as the init has asked.
fn leave(agent: &Arc<Agent>) -> ! {
    // The image's sysctl.conf may have changed it.
    show_kernel_messages(NOTICES);
    reap_in_thread(agent);
    finish_sessions(agent);
    std::process::exit(0)
}

/// Waits until callers know how their commands ended, and everything is written that the agent has for them.
fn finish_sessions(agent: &Agent) {
    agent.sessions.wait_until_none(SESSIONS_GRACE);
    agent.recorder.finish();
    channel::drain(SESSIONS_GRACE);
}

/// Starts a thread that reaps children: sessions wait for the exit of their commands, and the caller waits for the sessions.
fn reap_in_thread(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    thread::spawn(move || {
        let signals: SigSet = [Signal::SIGCHLD].into_iter().collect();
        loop {
            agent.reaper.reap();
            let _ = signals.wait();
        }
    });
}

/// Asks the init to power off, because the host wants it, and ends the machine if the init does not.
fn end_by_init(agent: &Arc<Agent>, cleanup: &Cleanup) -> ! {
    let grace = agent.shutdown.grace().unwrap_or(DEFAULT_GRACE);
    let since = Instant::now();
    // Commands get their signal first, so that they can end while callers are still connected.
    agent.reaper.signal_all(agent.defaults().stop_signal);
    agent.reaper.signal_all(Signal::SIGCONT as i32);
    hang_up_shells(&agent.reaper);
    let deadline = since + grace - reserve(grace);
    // The init may kill all processes at once, so commands get their time before the init is asked.
    reap_until_unawaited(&agent.reaper, deadline - INIT_TIME.min(grace / 2));
    // The init is traced before it is asked: if it exited at once, the kernel would end the machine before data is written back.
    // Tracing fails if another process traces the init.
    let traced = Traced::seize();
    let asked = power_off::ask(grace, agent.init_stop_signal);
    match &asked {
        Ok(asked) => console::log(&format!("asked {} to power off", asked.how)),
        Err(error) => console::log(&format!("ask the init to power off: {error}")),
    }
    let may_try_term = asked.is_ok_and(|asked| asked.may_try_term);
    match await_init(agent, traced.ok().as_ref(), since, deadline, may_try_term) {
        Outcome::Signalled => leave(agent),
        Outcome::Exited(how) => console::log(&format!("the init ended ({how}); ending the machine")),
        Outcome::TimedOut => {
            let message = format!("the init did not power off within {:.1} s", since.elapsed().as_secs_f32());
            console::log(&format!("{message}; ending the machine by force"));
            agent.shutdown.tell_failure(&message);
        }
    }
    reap_in_thread(agent);
    // Only commands are counted: the init was asked to end its services.
    agent.shutdown.tell_killed(Killed { commands: agent.reaper.awaited(), others: 0 }, since.elapsed());
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    // The init is not killed: the kernel protects PID 1.
    agent.reaper.wait_unawaited(KILL_GRACE);
    finish_sessions(agent);
    end_machine(cleanup, since, Some(&agent.shutdown), Next::Off)
}

/// Reaps children until no command is left, but not longer than `until`. No other thread may take SIGCHLD.
fn reap_until_unawaited(reaper: &Reaper, until: Instant) {
    let signals: SigSet = [Signal::SIGCHLD].into_iter().collect();
    let Ok(signals) = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else { return };
    loop {
        while let Ok(Some(_)) = signals.read_signal() {}
        reaper.reap();
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || reaper.awaited() == 0 {
            return;
        }
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], left);
    }
}

/// Sends HUP to interactive shells, which ignore TERM.
fn hang_up_shells(reaper: &Reaper) {
    reaper.signal_if(Signal::SIGHUP as i32, |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        process::ignores(&status, Signal::SIGTERM as i32) && Stat::read(pid).is_some_and(|stat| stat.has_terminal)
    });
}

/// What is left to kill now: commands, or, if there is none, other processes.
fn remaining(reaper: &Reaper) -> Killed {
    match reaper.awaited() {
        0 => Killed { commands: 0, others: user_processes() },
        commands => Killed { commands, others: 0 },
    }
}

/// How many processes there are besides this one and the kernel's threads, whose parent is kthreadd, process 2.
fn user_processes() -> u32 {
    let stats = process::pids().filter(|&pid| pid > 2).filter_map(Stat::read);
    u32::try_from(stats.filter(|stat| !stat.has_ended() && stat.parent != 2).count()).unwrap_or(u32::MAX)
}

/// What an init did after it was asked to power off.
enum Outcome {
    /// It sent TERM to all processes, this one included.
    Signalled,
    /// It exited, as inits of containers do. How, in a few words.
    Exited(String),
    /// Nothing happened in time.
    TimedOut,
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
        return Outcome::TimedOut;
    };
    let term_at = since + (deadline - since) / 2;
    loop {
        let now = Instant::now();
        if may_try_term && now >= term_at {
            may_try_term = false;
            power_off::ask_with_term();
        }
        if now >= deadline {
            return Outcome::TimedOut;
        }
        let until = if may_try_term { term_at } else { deadline };
        let left = until.saturating_duration_since(now) + Duration::from_millis(1);
        let _ = poll(
            &mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)],
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        );
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 && signal.ssi_pid != std::process::id() {
                return Outcome::Signalled;
            }
        }
        if let (Some(status), Some(traced)) = (agent.reaper.reap(), traced)
            && let Some(how) = traced.exiting(status)
        {
            return Outcome::Exited(how);
        }
    }
}

/// Ends every process but this one. The agent's reaper must run in another thread.
fn end_processes(agent: &Agent, grace: Duration) {
    let (reaper, all_processes, since) = (&agent.reaper, Pid::from_raw(-1), Instant::now());
    let mut grace = grace;
    let stop_signal = agent.defaults().stop_signal;
    if stop_signal != Signal::SIGTERM as i32 {
        // The image has a stop signal of its own. TERM may mean something else to its command, so TERM is sent when the commands have
        // ended, or shortly before the end of the grace.
        reaper.signal_all(stop_signal);
        reaper.signal_all(Signal::SIGCONT as i32);
        hang_up_shells(reaper);
        reaper.wait_unawaited(grace - TERM_TIME.min(grace / 4));
        grace = grace.saturating_sub(since.elapsed());
    }
    let _ = kill(all_processes, Signal::SIGTERM);
    let _ = kill(all_processes, Signal::SIGCONT);
    hang_up_shells(reaper);
    if !reaper.wait_childless(grace) {
        console::log("some processes are left after the grace: killing them");
        agent.shutdown.tell_killed(remaining(reaper), since.elapsed());
        let _ = kill(all_processes, Signal::SIGKILL);
        reaper.wait_childless(KILL_GRACE);
    }
}

/// Writes all data back, unmounts, and resets the machine. While data is written back, the host is told so if `request` is its own.
/// The console shows how long it took since `since`.
pub fn end_machine(cleanup: &Cleanup, since: Instant, request: Option<&ShutdownRequest>, next: Next) -> ! {
    // Neither VMM can be powered off, so the machine ends with a reset in any case. The host takes the kernel's message about the reset
    // for a reboot. The level is set now because /proc will be unmounted.
    show_kernel_messages(if next == Next::Reboot { NOTICES } else { EMERGENCIES });
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        if let Some(request) = request.filter(|request| request.grace().is_some()) {
            let tell = move || loop {
                request.tell_writing();
                if wait.recv_timeout(WRITING_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            };
            // Without the thread, the host does not wait longer than the grace.
            let _ = thread::Builder::new().spawn_scoped(scope, tell);
        }
        nix::unistd::sync();
        early::leave_root(cleanup);
        nix::unistd::sync();
        drop(done);
    });
    if let Some(request) = request {
        request.hang_up();
    }
    console::log(&format!("the machine ends, {} ms after it was asked to", since.elapsed().as_millis()));
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // If reboot(2) fails, PID 1 still must not exit.
    loop {
        nix::unistd::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seconds_or_a_quarter_of_the_grace_are_reserved() {
        for (grace, left) in [(10_000, 8_000), (60_000, 58_000), (8_000, 6_000), (4_000, 3_000), (1_000, 750), (0, 0)] {
            let grace = Duration::from_millis(grace);
            assert_eq!(grace - reserve(grace), Duration::from_millis(left), "{grace:?}");
        }
    }

    #[test]
    fn a_reboot_is_told_from_a_power_off_by_the_signal_and_its_sender() {
        for (signal, sender, expected) in [
            (Signal::SIGTERM, Some("reboot"), Next::Reboot),
            (Signal::SIGTERM, None, Next::Reboot),
            (Signal::SIGTERM, Some("sh"), Next::Off),
            (Signal::SIGTERM, Some("kill"), Next::Off),
            (Signal::SIGINT, None, Next::Reboot),
            (Signal::SIGUSR1, Some("reboot"), Next::Off),
            (Signal::SIGUSR2, None, Next::Off),
            (Signal::SIGPWR, None, Next::Off),
        ] {
            assert_eq!(next(signal, sender), expected, "{signal} by {sender:?}");
        }
    }

    #[test]
    fn the_name_of_a_program_is_that_of_its_process() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(program(std::process::id()).as_deref(), Some(own.trim_end()));
        assert_eq!(program(u32::MAX), None);
    }
}
