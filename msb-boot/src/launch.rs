//! The part of msb-boot that a person calls: it starts the supervisor, passes its words on, and prints the record.
//!
//! The two talk over a socket pair that is the supervisor's stdin. Until this side has said that the record is printed,
//! its end of the pair is what keeps the VM: whatever ends this process before that ends the VM too.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use msb::record::Record;
use msb::tool::interrupt::IMPATIENCE;
use msb::tool::output::Output;
use msb::vm::rundir::{self, Committed, Ended, Held};
use msb::vm::shared_root;
use msb::{tool::exit, tool::line, tool::start};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::follow::Follow;
use crate::{TOOL, failed, respawn};

/// What the supervisor tells, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Report {
    /// Words for stderr.
    Say(String),
    /// The VM is up: the record to print.
    Ready(Box<Record>),
    /// There is no VM, in words. Nothing of it is left.
    Failed(String),
}

/// What this side says when the record is printed.
pub(crate) const PRINTED: u8 = b'\n';

/// The signals of a person who does not want to wait.
const INTERRUPTS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Boots, and prints the record.
///
/// # Errors
/// The supervisor's words, or those of a record that cannot be printed; then there is no VM.
pub(crate) fn launch(config: &Config, output: &Output, foreground: bool) -> anyhow::Result<u8> {
    let ignored = start::ignored().unwrap_or(SigSet::empty());
    let interrupts: SigSet = INTERRUPTS.into_iter().filter(|&signal| !ignored.contains(signal)).collect();
    interrupts.thread_block()?;
    let interrupts = SignalFd::new(&interrupts)?;

    let (mut ours, theirs) = UnixStream::pair()?;
    let mut supervisor = respawn::supervisor(OwnedFd::from(theirs).into()).spawn().context("supervisor")?;
    let mut order = serde_json::to_vec(config)?;
    order.push(b'\n');
    // Where it died instead of reading, its silence below says more.
    let _ = ours.write_all(&order);

    let mut reports = BufReader::new(ours.try_clone()?);
    loop {
        if reports.buffer().is_empty() {
            let mut fds = [PollFd::new(&interrupts, PollFlags::IN), PollFd::new(&ours, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[0].revents().is_empty() {
                let signal = read(&interrupts)?;
                exit::warn(TOOL, "interrupted: ending the VM");
                give_up(ours, reports, supervisor, &interrupts)?;
                return Ok(exit::SIGNAL_BASE.saturating_add(signal));
            }
        }
        match next(&mut reports)? {
            Some(Report::Say(words)) => output.say(TOOL, &words),
            Some(Report::Failed(words)) => {
                supervisor.wait()?;
                bail!("{words}");
            }
            Some(Report::Ready(record)) => {
                match put(output, &record, &interrupts) {
                    Ok(None) => {}
                    Ok(Some(signal)) => {
                        exit::warn(TOOL, "interrupted: ending the VM");
                        give_up(ours, reports, supervisor, &interrupts)?;
                        return Ok(exit::SIGNAL_BASE.saturating_add(signal));
                    }
                    Err(error) => {
                        give_up(ours, reports, supervisor, &interrupts)?;
                        return Err(error);
                    }
                }
                ours.write_all(&[PRINTED]).context("supervisor")?;
                if !foreground {
                    return Ok(0);
                }
                let console = console(&record, output)?;
                return stay(config, &interrupts, supervisor, console);
            }
            None => {
                let status = supervisor.wait()?;
                let mut message = format!("supervisor: {} without a word", crate::supervise::crew::describe(status));
                if let Ok(Some(held)) = Held::take(&config.vm.dir) {
                    held.await_death()?;
                    if let Some(log) = failed::keep_logs(config, held.path()) {
                        message.push_str(&format!("\n  log: {}", log.display()));
                    }
                    shared_root::remove_leftovers(held.path());
                    held.remove()?;
                }
                bail!(message);
            }
        }
    }
}

/// What a person is told instead of the record.
fn summary(record: &Record) -> String {
    let Some(vm) = &record.vm else { return String::new() };
    let seconds = Duration::from_millis(vm.timings_ms.ready).as_secs_f64();
    format!("{0}: up in {seconds:.1} s; try: msb-exec {0}", vm.name)
}

/// Shows the guest's console: on stdout if that is a terminal, else on stderr, since the record is on stdout.
fn console(record: &Record, output: &Output) -> anyhow::Result<Option<Follow>> {
    let Some(vm) = record.vm.as_ref().filter(|_| !output.quiet) else { return Ok(None) };
    let follow = if std::io::stdout().is_terminal() {
        Follow::start(&vm.kernel_log, std::io::stdout())
    } else {
        Follow::start(&vm.kernel_log, std::io::stderr())
    };
    follow.map(Some).with_context(|| format!("console {:?}", vm.kernel_log))
}

/// Waits until the VM has ended, and tidies up behind it, as msb-stop would. A signal is passed on as the wish to stop it, a second
/// one as the wish not to wait.
fn stay(config: &Config, interrupts: &SignalFd, mut supervisor: Child, console: Option<Follow>) -> anyhow::Result<u8> {
    let pid = Pid::from_child(&supervisor);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut asked: Option<Instant> = None;
    loop {
        let mut fds = [PollFd::new(interrupts, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[1].revents().is_empty() {
            break;
        }
        interrupts.read_signal()?;
        match asked {
            // The same one, sent twice.
            Some(since) if since.elapsed() < IMPATIENCE => continue,
            Some(_) => rundir::ask_to_stop(&config.vm.dir, 0, false)?,
            None => asked = Some(Instant::now()),
        }
        let _ = pidfd_send_signal(&process, rustix::process::Signal::TERM);
    }
    let status = supervisor.wait()?;
    drop(console);
    let Some(held) = Held::take(&config.vm.dir).with_context(|| format!("run directory {:?}", config.vm.dir))? else {
        return Ok(0);
    };
    held.await_death()?;
    let ended = rundir::find::<Ended>(held.path(), rundir::ENDED);
    let committed = rundir::find::<Committed>(held.path(), rundir::COMMITTED);
    if committed.is_some() && !config.commit_on_stop {
        // Who asked for it takes the answer, and tidies up.
        drop(held);
    } else {
        held.await_readers()?;
        shared_root::remove_leftovers(held.path());
        held.remove()?;
    }
    let Some(ended) = ended else { bail!("supervisor: {}", crate::supervise::crew::describe(status)) };
    let mut wrong = Vec::new();
    if ended.is_orderly() {
        exit::warn(TOOL, &format!("{}: {}", config.name, ended.reason));
    } else {
        wrong.push(ended.reason);
    }
    match committed {
        Some(Committed::Into { dir, .. }) => {
            exit::warn(TOOL, &format!("{}: committed into upper {dir:?}", config.name));
        }
        Some(Committed::Failed(words)) => wrong.push(format!("not committed: {words}")),
        None => {}
    }
    match wrong.is_empty() {
        true => Ok(0),
        false => bail!("{}: {}", config.name, wrong.join("; ")),
    }
}

fn next(reports: &mut impl BufRead) -> anyhow::Result<Option<Report>> {
    let mut line = String::new();
    match reports.read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => serde_json::from_str(&line).map(Some).map_err(|error| anyhow!("supervisor: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).context("supervisor"),
    }
}

/// The signal that came, by its number.
fn read(interrupts: &SignalFd) -> anyhow::Result<u8> {
    let signal = interrupts.read_signal()?.map_or(Signal::SIGINT as u32, |info| info.ssi_signo);
    Ok(u8::try_from(signal)?)
}

/// Hands the record on, and waits for its reader no longer than until a signal comes, whose number it returns then.
fn put(output: &Output, record: &Record, interrupts: &SignalFd) -> anyhow::Result<Option<u8>> {
    let stdout = std::io::stdout();
    if output.output.is_some() || (stdout.is_terminal() && !output.json) {
        output.put(record, || summary(record))?;
        return Ok(None);
    }
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    // A pipe that has room has it for so much at least, so that a write does not wait.
    for portion in line.chunks(rustix::pipe::PIPE_BUF) {
        loop {
            let mut fds = [PollFd::new(interrupts, PollFlags::IN), PollFd::new(&stdout, PollFlags::OUT)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[0].revents().is_empty() {
                return read(interrupts).map(Some);
            }
            break;
        }
        line::put_bytes(portion)?;
    }
    Ok(None)
}

/// Hangs up, and waits until the supervisor has cleaned up behind the VM; it goes on with that alone where a signal comes once more.
fn give_up(
    ours: UnixStream,
    reports: BufReader<UnixStream>,
    mut supervisor: Child,
    interrupts: &SignalFd,
) -> anyhow::Result<()> {
    drop((ours, reports));
    let (process, since) = (pidfd_open(Pid::from_child(&supervisor), PidfdFlags::empty())?, Instant::now());
    loop {
        let mut fds = [PollFd::new(interrupts, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[1].revents().is_empty() {
            supervisor.wait()?;
            return Ok(());
        }
        interrupts.read_signal()?;
        if since.elapsed() >= IMPATIENCE {
            return Ok(());
        }
    }
}
