//! The client: the msb-boot that a user calls. It starts the supervisor, forwards the supervisor's messages, and prints the record.
//!
//! The two are connected by a socket pair, which is the supervisor's stdin. Until the client has confirmed that the record is printed,
//! its end keeps the VM alive: whatever ends this process before that also ends the VM.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use msb::record::{FILE_NAME, Record};
use msb::store::notices;
use msb::tool::follow::Follow;
use msb::tool::interrupt::{self, Guard, IMPATIENCE};
use msb::tool::output::Output;
use msb::vm::rundir::{self, Committed, Ended, LockedRunDir};
use msb::vm::shared_root;
use msb::{tool::exit, tool::line, tool::start};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::config::Config;
use crate::notice::{Notice, TOOL};
use crate::supervisor::connection::{PRINTED, Report};
use crate::supervisor::failed_logs;
use crate::{processes, role};

/// The signals with which a user stops a foreground process.
const INTERRUPTS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Boots the VM and prints the record. Returns the exit code.
///
/// # Errors
/// Why there is no VM, or why the record cannot be printed; then there is no VM either.
pub(crate) fn boot(config: &Config, output: &Output, foreground: bool) -> anyhow::Result<u8> {
    make_files(config, output)?;
    let interrupts = block_interrupts()?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let inherited = config.networks.inherited_fds().chain(config.end_with);
    let mut supervisor = role::supervisor(OwnedFd::from(theirs).into(), inherited).spawn().context("supervisor")?;
    let mut text = serde_json::to_vec(config)?;
    text.push(b'\n');
    // If the supervisor died before it read this, the end of its reports says so.
    let _ = ours.write_all(&text);

    let mut reports = BufReader::new(ours.try_clone()?);
    loop {
        if reports.buffer().is_empty() && wait(&interrupts, &ours, PollFlags::IN)?.interrupt {
            return interrupted(config, read_signal(&interrupts)?, ours, reports, supervisor, &interrupts);
        }
        match next_report(&mut reports)? {
            Some(Report::Say(message)) => output.say(TOOL, &message),
            Some(Report::Failed(message)) => {
                supervisor.wait()?;
                bail!("{message}");
            }
            Some(Report::Ready(record)) => {
                match print_record(output, &record, &interrupts) {
                    Ok(None) => {}
                    Ok(Some(signal)) => return interrupted(config, signal, ours, reports, supervisor, &interrupts),
                    Err(error) => {
                        hang_up(config, ours, reports, supervisor, &interrupts)?;
                        return Err(error);
                    }
                }
                ours.write_all(&[PRINTED]).context("supervisor")?;
                if !foreground {
                    return Ok(0);
                }
                let console = show_console(&record, output)?;
                return stay(config, &interrupts, supervisor, console);
            }
            None => {
                let status = supervisor.wait()?;
                let mut message = format!("supervisor: {} without a message", processes::describe(status));
                if let Some(log) = remove_half_made(config)? {
                    message.push_str(&format!("\n  log: {}", log.display()));
                }
                bail!(message);
            }
        }
    }
}

/// Prints the notices about the configuration, and makes the files that the store lacks.
fn make_files(config: &Config, output: &Output) -> anyhow::Result<()> {
    let guard = Guard::new(TOOL)?;
    config.notices.iter().for_each(|notice| notice.print(output));
    let has_said = std::cell::Cell::new(config.notices.iter().any(|notice| matches!(notice, Notice::Info(_))));
    config.make_files(|message| {
        has_said.set(true);
        output.say(TOOL, message);
    })?;
    // A boot prints one line at most, so this message waits for a boot without another.
    let is_silent = output.quiet || has_said.get();
    let fallbacks = [("vmm", &config.vmm_fallback), ("network", &config.network_fallback)];
    let mut fallbacks = fallbacks.into_iter().filter_map(|(subject, message)| Some((subject, message.as_ref()?)));
    if let Some((_, message)) = fallbacks.find(|(subject, message)| !is_silent && notices::is_new(subject, message)) {
        exit::warn(TOOL, message);
    }
    interrupt::check()?;
    drop(guard);
    Ok(())
}

/// A descriptor for the interrupts, which are blocked. Signals that are ignored stay ignored (nohup).
fn block_interrupts() -> anyhow::Result<SignalFd> {
    let ignored = start::ignored().unwrap_or(SigSet::empty());
    let interrupts: SigSet = INTERRUPTS.into_iter().filter(|&signal| !ignored.contains(signal)).collect();
    interrupts.thread_block()?;
    Ok(SignalFd::new(&interrupts)?)
}

/// What has happened when [`wait`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Events {
    /// A signal came.
    interrupt: bool,
    /// The other descriptor is ready.
    ready: bool,
}

/// Waits for a signal or for another descriptor.
fn wait(interrupts: &SignalFd, other: &impl AsFd, flags: PollFlags) -> anyhow::Result<Events> {
    loop {
        let mut fds = [PollFd::new(interrupts, PollFlags::IN), PollFd::new(other, flags)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        return Ok(Events { interrupt: !fds[0].revents().is_empty(), ready: !fds[1].revents().is_empty() });
    }
}

/// Reads the number of the signal that came.
fn read_signal(interrupts: &SignalFd) -> anyhow::Result<u8> {
    let signal = interrupts.read_signal()?.map_or(Signal::SIGINT as u32, |info| info.ssi_signo);
    Ok(u8::try_from(signal)?)
}

/// The one-line summary that a terminal shows in place of the record.
fn summary(record: &Record) -> String {
    let Some(vm) = &record.vm else { return String::new() };
    let seconds = Duration::from_millis(vm.timings_ms.ready).as_secs_f64();
    format!("{0}: up in {seconds:.1} s; try: msb-exec {0}", vm.name)
}

/// Shows the guest's console: on stdout if that is a terminal, else on stderr, since the record is on stdout.
fn show_console(record: &Record, output: &Output) -> anyhow::Result<Option<Follow>> {
    let Some(vm) = record.vm.as_ref().filter(|_| !output.quiet) else { return Ok(None) };
    let follow = if std::io::stdout().is_terminal() {
        Follow::start(&vm.kernel_log, std::io::stdout())
    } else {
        Follow::start(&vm.kernel_log, std::io::stderr())
    };
    follow.map(Some).with_context(|| format!("console {:?}", vm.kernel_log))
}

/// Waits until the VM has ended, and removes its run directory as msb-stop would. The first signal asks the VM to stop; a later one
/// leaves it no grace.
fn stay(config: &Config, interrupts: &SignalFd, mut supervisor: Child, console: Option<Follow>) -> anyhow::Result<u8> {
    let process = pidfd_open(Pid::from_child(&supervisor), PidfdFlags::empty())?;
    let mut first_signal: Option<Instant> = None;
    while !wait(interrupts, &process, PollFlags::IN)?.ready {
        interrupts.read_signal()?;
        match first_signal {
            // The same request, sent twice.
            Some(since) if since.elapsed() < IMPATIENCE => continue,
            Some(_) => rundir::request_stop(&config.vm.dir, 0, false)?,
            None => first_signal = Some(Instant::now()),
        }
        let _ = pidfd_send_signal(&process, rustix::process::Signal::TERM);
    }
    let status = supervisor.wait()?;
    drop(console);
    let Some(held) =
        LockedRunDir::lock(&config.vm.dir).with_context(|| format!("run directory {:?}", config.vm.dir))?
    else {
        return Ok(0);
    };
    held.await_processes()?;
    let ended = rundir::read::<Ended>(held.path(), rundir::ENDED);
    let committed = rundir::read::<Committed>(held.path(), rundir::COMMITTED);
    if committed.is_some() && !config.commit_on_stop {
        // The msb-stop --commit that asked for the commit reads its result and removes the directory.
        drop(held);
    } else {
        held.await_readers()?;
        shared_root::remove_leftovers(held.path());
        held.remove()?;
    }
    let Some(ended) = ended else { bail!("supervisor: {}", processes::describe(status)) };
    let mut errors = Vec::new();
    if ended.is_orderly() {
        exit::warn(TOOL, &format!("{}: {}", config.name, ended.reason));
    } else {
        errors.push(ended.reason);
    }
    match committed {
        Some(Committed::Into { dir, .. }) => {
            exit::warn(TOOL, &format!("{}: committed into upper {dir:?}", config.name));
        }
        Some(Committed::Failed(why)) => errors.push(format!("not committed: {why}")),
        None => {}
    }
    match errors.is_empty() {
        true => Ok(0),
        false => bail!("{}: {}", config.name, errors.join("; ")),
    }
}

fn next_report(reports: &mut impl BufRead) -> anyhow::Result<Option<Report>> {
    let mut line = String::new();
    match reports.read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => serde_json::from_str(&line).map(Some).map_err(|error| anyhow!("supervisor: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).context("supervisor"),
    }
}

/// Prints the record. A signal ends the wait for a reader that does not read; its number is returned then.
fn print_record(output: &Output, record: &Record, interrupts: &SignalFd) -> anyhow::Result<Option<u8>> {
    let stdout = std::io::stdout();
    if output.output.is_some() || (stdout.is_terminal() && !output.json) {
        output.put(record, || summary(record))?;
        return Ok(None);
    }
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    // A pipe that is ready has room for at least PIPE_BUF bytes, so each write returns at once.
    for portion in line.chunks(rustix::pipe::PIPE_BUF) {
        if wait(interrupts, &stdout, PollFlags::OUT)?.interrupt {
            return read_signal(interrupts).map(Some);
        }
        line::put_bytes(portion)?;
    }
    Ok(None)
}

/// Ends the VM after a signal, and returns the exit code.
fn interrupted(
    config: &Config,
    signal: u8,
    ours: UnixStream,
    reports: BufReader<UnixStream>,
    supervisor: Child,
    interrupts: &SignalFd,
) -> anyhow::Result<u8> {
    exit::warn(TOOL, "interrupted: ending the VM");
    hang_up(config, ours, reports, supervisor, interrupts)?;
    Ok(exit::SIGNAL_BASE.saturating_add(signal))
}

/// Closes the connection and waits until the supervisor has removed everything of the VM. After a second signal the supervisor does that
/// alone.
fn hang_up(
    config: &Config,
    ours: UnixStream,
    reports: BufReader<UnixStream>,
    mut supervisor: Child,
    interrupts: &SignalFd,
) -> anyhow::Result<()> {
    drop((ours, reports));
    let (process, since) = (pidfd_open(Pid::from_child(&supervisor), PidfdFlags::empty())?, Instant::now());
    while !wait(interrupts, &process, PollFlags::IN)?.ready {
        interrupts.read_signal()?;
        if since.elapsed() >= IMPATIENCE {
            return Ok(());
        }
    }
    supervisor.wait()?;
    // A supervisor that was killed has removed nothing. If there is a record, the VM was up, and msb-stop cleans up after it.
    if !config.vm.dir.join(FILE_NAME).exists() {
        remove_half_made(config)?;
    }
    Ok(())
}

/// Removes the leftovers of a supervisor that was killed, once no process of the VM is left. Returns where its logs are.
fn remove_half_made(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    let Ok(Some(held)) = LockedRunDir::lock(&config.vm.dir) else { return Ok(None) };
    held.await_processes()?;
    let log = failed_logs::keep(config, held.path());
    shared_root::remove_leftovers(held.path());
    held.remove()?;
    Ok(log)
}
