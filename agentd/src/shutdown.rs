//! The end of the machine. Where this is PID 1: everything gets TERM, then KILL; file systems are written back; the machine
//! resets, which both VMMs take for its end (neither has a way to power off). Beside an init: that is asked to do all this, and
//! it is done here where the init does not, or ends itself.

use std::fs;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use msb::wire::Message;
use msb::wire::exec::{Failure, Stopping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use vsock::VsockStream;

use crate::early::{self, Made};
use crate::init::handoff::Traced;
use crate::init::power_off;
use crate::reap::Reaper;
use crate::{Agent, LAST_WORDS};

/// How long the end may take where nobody says.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end what got KILL: only a process stuck in the kernel needs any.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// What is kept of the commands' time for those that do not end by the image's own signal, at most.
const TERM_TIME: Duration = Duration::from_secs(1);
/// What is kept of the grace for ending the machine behind its commands, or without its init, at most.
const FORCE_TIME: Duration = Duration::from_secs(2);
/// What is kept of it for an init, where commands take their time, at most.
const INIT_TIME: Duration = Duration::from_secs(4);
/// How often the host is told that data is still being written back.
const NEWS: Duration = Duration::from_millis(500);

/// What a shutdown keeps of its grace for itself; commands, or the init, have the rest.
fn reserve(grace: Duration) -> Duration {
    FORCE_TIME.min(grace / 4)
}

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
        // A host that does not read must not hold up the end.
        let _ = host.set_write_timeout(Some(NEWS));
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
    fn tell_failure(&self, message: &str) {
        self.tell(&Message::Failure(Failure { code: 1, message: message.to_owned() }));
    }

    /// Tells the host what had to be killed.
    fn tell_killed(&self, killed: Killed, after: Duration) {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let Killed { commands, others } = killed;
        if commands + others > 0 {
            self.tell(&Message::Stopping(Stopping {
                killed: commands,
                killed_others: others,
                after_ms,
                writing: false,
            }));
        }
    }

    fn tell(&self, message: &Message) {
        if let Some(Asked { host, .. }) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = message.send(host);
        }
    }
}

/// What becomes of the machine after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays off.
    Off,
    /// It is to start again, as far as the guest has a say in that.
    Again,
}

/// Why PID 1 ends the machine.
#[derive(Debug)]
pub struct Cause {
    /// The signal that asked for it.
    pub signal: &'static str,
    /// What is to become of it.
    pub next: Next,
}

/// As PID 1: reaps until the host, or a process in here, asks for the end.
///
/// # Errors
/// What `signalfd(2)` says.
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

/// What a signal to PID 1 means: INT is the kernel's for Ctrl-Alt-Del, and every init takes it for a reboot. TERM is BusyBox's
/// `reboot`, and also what stops a container, so the name of the sender decides; one that is gone already was no shell.
fn next(signal: Signal, sender: Option<&str>) -> Next {
    match (signal, sender) {
        (Signal::SIGINT, _) | (Signal::SIGTERM, None | Some("reboot")) => Next::Again,
        _ => Next::Off,
    }
}

/// The name of the program that a process runs.
fn program(pid: u32) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let comm = comm.trim_end();
    if comm != "busybox" {
        return Some(comm.to_owned());
    }
    // Called as "busybox APPLET".
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let applet = cmdline.split(|&byte| byte == 0).nth(1)?;
    Some(String::from_utf8_lossy(applet).into_owned())
}

/// As PID 1: ends everything and then the machine. `agent`'s reaper must be running in another thread.
pub fn as_pid_1(agent: &Agent, made: &Made, next: Next) -> ! {
    let since = Instant::now();
    let grace = agent.shutdown.grace().unwrap_or(DEFAULT_GRACE);
    end_processes(agent, grace - reserve(grace));
    // Callers hear how their commands ended.
    agent.sessions.wait_until_none(LAST_WORDS);
    end_machine(made, since, Some(&agent.shutdown), next)
}

/// Beside an init: reaps until the host asks for the end, or the init tells everybody to end.
pub fn beside_init(agent: &Arc<Agent>, made: &Made, signals: &SigSet) -> ! {
    let signals = match SignalFd::new(signals) {
        Ok(signals) => signals,
        Err(error) => {
            crate::say(&format!("signalfd: {error}"));
            end_machine(made, Instant::now(), None, Next::Off)
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

/// The kernel messages that the console shows, by `kernel.printk` of sysctl(8): up to notices, one of which says that the machine
/// reboots; and emergencies alone.
pub const REBOOTS: u8 = 6;
const EMERGENCIES: u8 = 1;

/// Has the console show the kernel's messages of a level below this one.
pub fn show_kernel_messages(level: u8) {
    if let Err(error) = fs::write("/proc/sys/kernel/printk", level.to_string()) {
        crate::say(&format!("kernel.printk: {error}"));
    }
}

/// Ends this process, as the init wants it. Callers hear how their commands ended, and nobody has to wait for more.
fn leave(agent: &Arc<Agent>) -> ! {
    // An image's sysctl.conf may have had other wishes.
    show_kernel_messages(REBOOTS);
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
    agent.reaper.signal_all(agent.defaults.stop_signal);
    agent.reaper.signal_all(Signal::SIGCONT as i32);
    hang_up_shells(&agent.reaper);
    let deadline = since + grace - reserve(grace);
    // An init may end them at once: commands that need time to end come first.
    reap_until_unawaited(&agent.reaper, deadline - INIT_TIME.min(grace / 2));
    // Before it is asked: one that ends at once would take the machine along, with what is not written back. Somebody may
    // trace it already; then its end is the kernel's to tell.
    let traced = Traced::seize();
    let asked = power_off::ask(grace, agent.init_stop_signal);
    match &asked {
        Ok(asked) => crate::say(&format!("asked {} to power off", asked.how)),
        Err(error) => crate::say(&format!("ask the init to power off: {error}")),
    }
    let may_try_term = asked.is_ok_and(|asked| asked.may_try_term);
    match await_init(agent, traced.ok().as_ref(), since, deadline, may_try_term) {
        Outcome::Told => leave(agent),
        Outcome::Ended(how) => crate::say(&format!("the init ended ({how}); ending the machine")),
        Outcome::Late => {
            let words = format!("the init did not power off within {:.1} s", since.elapsed().as_secs_f32());
            crate::say(&format!("{words}; ending the machine by force"));
            agent.shutdown.tell_failure(&words);
        }
    }
    go_on_reaping(agent);
    // The init's own services are its affair, and it was told to end them.
    agent.shutdown.tell_killed(Killed { commands: agent.reaper.awaited(), others: 0 }, since.elapsed());
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    // The init is nobody's child, and it stays where it is.
    agent.reaper.wait_unawaited(KILL_GRACE);
    agent.sessions.wait_until_none(LAST_WORDS);
    end_machine(made, since, Some(&agent.shutdown), Next::Off)
}

/// Reaps until no command is left, or it is `until`. For where no other thread reaps.
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

/// Interactive shells ignore TERM. What ends them, and in order, is the loss of their terminal.
fn hang_up_shells(reaper: &Reaper) {
    reaper.signal_those(Signal::SIGHUP as i32, |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        power_off::ignores(&status, Signal::SIGTERM as i32) && has_terminal(&stat)
    });
}

/// Whether a process has a controlling terminal, by its `/proc/PID/stat`.
fn has_terminal(stat: &str) -> bool {
    stat_field(stat, 4).is_some_and(|terminal| terminal != "0")
}

/// A field of a `/proc/PID/stat`, counted from the one behind the name, which may have anything in it.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(number)
}

/// What is killed at the end of the grace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Killed {
    commands: u32,
    /// Processes of no command.
    others: u32,
}

impl Killed {
    /// What there is now.
    fn count(reaper: &Reaper) -> Self {
        match reaper.awaited() {
            0 => Self { commands: 0, others: user_processes() },
            commands => Self { commands, others: 0 },
        }
    }
}

/// How many processes there are that are neither the kernel's own nor this one.
fn user_processes() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let stats = pids.filter(|&pid| pid > 2).filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    u32::try_from(stats.filter(|stat| is_alive_and_of_users(stat)).count()).unwrap_or(u32::MAX)
}

/// Whether a `/proc/PID/stat` is that of a process that has not ended, and no child of kthreadd, which is process 2.
fn is_alive_and_of_users(stat: &str) -> bool {
    let is_dead = stat_field(stat, 0).is_none_or(|state| matches!(state, "Z" | "X"));
    !is_dead && stat_field(stat, 1) != Some("2")
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
            power_off::ask_with_term();
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

/// Ends every process but this one; the agent's reaper must be running in another thread.
fn end_processes(agent: &Agent, grace: Duration) {
    let (reaper, everybody, since) = (&agent.reaper, Pid::from_raw(-1), Instant::now());
    let mut grace = grace;
    if agent.defaults.stop_signal != Signal::SIGTERM as i32 {
        // The image wants its command to be stopped by a signal of its own. TERM may mean something else to it, so it comes when the
        // commands have ended, or shortly before the end of the grace.
        reaper.signal_all(agent.defaults.stop_signal);
        reaper.signal_all(Signal::SIGCONT as i32);
        hang_up_shells(reaper);
        reaper.wait_unawaited(grace - TERM_TIME.min(grace / 4));
        grace = grace.saturating_sub(since.elapsed());
    }
    let _ = kill(everybody, Signal::SIGTERM);
    let _ = kill(everybody, Signal::SIGCONT);
    hang_up_shells(reaper);
    if !reaper.wait_childless(grace) {
        crate::say("processes are left after the grace: killing them");
        agent.shutdown.tell_killed(Killed::count(reaper), since.elapsed());
        let _ = kill(everybody, Signal::SIGKILL);
        reaper.wait_childless(KILL_GRACE);
    }
}

/// Writes everything back, takes the mounts down and ends the machine. Says how long the end took, by the guest's own clock. A host
/// that asked for the end hears that this goes on, as long as it does.
pub fn end_machine(made: &Made, since: Instant, wish: Option<&Wish>, next: Next) -> ! {
    // No VMM has a way to power off, so a reset is the end of the machine in any case. What the kernel says of a reset is for the host
    // the sign of a reboot. Now, as /proc goes with the mounts.
    show_kernel_messages(if next == Next::Again { REBOOTS } else { EMERGENCIES });
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        if let Some(wish) = wish.filter(|wish| wish.grace().is_some()) {
            let tell = move || loop {
                wish.tell(&Message::Stopping(Stopping { writing: true, ..Stopping::default() }));
                if wait.recv_timeout(NEWS) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            };
            // Without it there is no more time than the grace.
            let _ = thread::Builder::new().spawn_scoped(scope, tell);
        }
        nix::unistd::sync();
        early::leave_root(made);
        nix::unistd::sync();
        drop(done);
    });
    if let Some(wish) = wish {
        wish.hang_up();
    }
    crate::say(&format!("the machine ends, {} ms after it was asked to", since.elapsed().as_millis()));
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not reached: the kernel resets, or PID 1 may not leave.
    loop {
        nix::unistd::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_grace_but_for_two_seconds_or_a_quarter() {
        for (grace, left) in [(10_000, 8_000), (60_000, 58_000), (8_000, 6_000), (4_000, 3_000), (1_000, 750), (0, 0)] {
            let grace = Duration::from_millis(grace);
            assert_eq!(grace - reserve(grace), Duration::from_millis(left), "{grace:?}");
        }
    }

    #[test]
    fn a_reboot_is_told_from_a_power_off_by_the_signal_and_its_sender() {
        for (signal, sender, expected) in [
            (Signal::SIGTERM, Some("reboot"), Next::Again),
            (Signal::SIGTERM, None, Next::Again),
            (Signal::SIGTERM, Some("sh"), Next::Off),
            (Signal::SIGTERM, Some("kill"), Next::Off),
            (Signal::SIGINT, None, Next::Again),
            (Signal::SIGUSR1, Some("reboot"), Next::Off),
            (Signal::SIGUSR2, None, Next::Off),
            (Signal::SIGPWR, None, Next::Off),
        ] {
            assert_eq!(next(signal, sender), expected, "{signal} by {sender:?}");
        }
    }

    #[test]
    fn the_programs_name_is_that_of_the_process() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(program(std::process::id()).as_deref(), Some(own.trim_end()));
        assert_eq!(program(u32::MAX), None);
    }

    #[test]
    fn a_stat_is_read_behind_a_name_with_anything_in_it() {
        for (stat, terminal, counts) in [
            ("7 (sh) S 1 7 7 34816 7", true, true),
            ("7 (a) S 2) S 1 7 7 0 -1", false, true),
            ("7 (kworker/0:1) I 2 0 0 0 -1", false, false),
            ("7 (sh) Z 1 7 7 34816 7", true, false),
            ("", false, false),
        ] {
            assert_eq!((has_terminal(stat), is_alive_and_of_users(stat)), (terminal, counts), "{stat:?}");
        }
    }
}
