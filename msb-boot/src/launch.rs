//! The part of msb-boot that a person calls: it starts the supervisor, passes its words on, and prints the record.
//!
//! The two talk over a socket pair that is the supervisor's stdin. Until this side has said that the record is printed,
//! its end of the pair is what keeps the VM: whatever ends this process before that ends the VM too.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::output::Output;
use msb::record::Record;
use msb::rundir::{self, Committed, Ended, Held, Stop};
use msb::{exit, start};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::{TOOL, respawn};

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
                let signal = interrupts.read_signal()?.map_or(Signal::SIGINT as u32, |info| info.ssi_signo);
                exit::warn(TOOL, "interrupted: ending the VM");
                give_up(ours, reports, supervisor)?;
                return Ok(exit::SIGNAL_BASE.saturating_add(u8::try_from(signal)?));
            }
        }
        match next(&mut reports)? {
            Some(Report::Say(words)) => output.say(TOOL, &words),
            Some(Report::Failed(words)) => {
                supervisor.wait()?;
                bail!("{words}");
            }
            Some(Report::Ready(record)) => {
                if let Err(error) = output.put(&record, || summary(&record)) {
                    give_up(ours, reports, supervisor)?;
                    return Err(error);
                }
                ours.write_all(&[PRINTED]).context("supervisor")?;
                return if foreground { stay(config, &interrupts, supervisor) } else { Ok(0) };
            }
            None => {
                let status = supervisor.wait()?;
                if let Ok(Some(held)) = Held::take(&config.vm.dir) {
                    held.await_death()?;
                    held.remove()?;
                }
                bail!("supervisor: {} without a word", crate::supervise::crew::describe(status));
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

/// Waits until the VM has ended, and tidies up behind it, as msb-stop would. A signal is passed on as the wish to stop it, a second
/// one as the wish not to wait.
fn stay(config: &Config, interrupts: &SignalFd, mut supervisor: Child) -> anyhow::Result<u8> {
    let pid = Pid::from_child(&supervisor);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut asked = false;
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
        if asked {
            let commit = rundir::find(&config.vm.dir, rundir::STOP).is_some_and(|stop: Stop| stop.commit);
            rundir::leave(&config.vm.dir, rundir::STOP, &Stop { grace_ms: 0, commit })?;
        }
        asked = true;
        let _ = pidfd_send_signal(&process, rustix::process::Signal::TERM);
    }
    let status = supervisor.wait()?;
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

/// Hangs up, and waits until the supervisor has cleaned up behind the VM.
fn give_up(ours: UnixStream, reports: BufReader<UnixStream>, mut supervisor: Child) -> anyhow::Result<()> {
    drop((ours, reports));
    supervisor.wait()?;
    Ok(())
}
