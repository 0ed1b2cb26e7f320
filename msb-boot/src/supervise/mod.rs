//! The supervisor: it makes the VM's run directory, starts the VM's processes, waits for the agent, and then looks after
//! the VM until it ends. It reads events from fds and never looks at a thing twice to see whether it has changed.
//!
//! What may not happen here: a VM, a process, a socket or a directory that stays behind a boot that failed.

mod clock;
mod commit;
mod console;
pub(crate) mod crew;
mod front;
mod log;
mod machine;
mod ready;
mod restart;
mod rotated;
mod stopping;
mod verdict;
mod watch;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use msb::vm::rundir::{self, Cause, Committed, Ended, Held, Restarting};
use msb::vm::shared_root;
use msb::{record, tool::interrupt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::{Config, name_in_use, now};
use crate::failed;
use crate::launch::Report;
use front::Front;
use machine::Machine;
use restart::Delay;
use watch::Watch;

/// What of a run directory stays while the VM is started again.
const KEPT: [&str; 9] = [
    record::FILE_NAME,
    rundir::ALIVE,
    rundir::BOOT_SHARE,
    rundir::KERNEL_LOG,
    rundir::OLD_KERNEL_LOG,
    rundir::SUPERVISOR_LOG,
    rundir::OLD_SUPERVISOR_LOG,
    rundir::STOP,
    rundir::READERS,
];
/// What stays when it has ended.
const LEFT: [&str; 7] = [
    record::FILE_NAME,
    rundir::KERNEL_LOG,
    rundir::OLD_KERNEL_LOG,
    rundir::SUPERVISOR_LOG,
    rundir::OLD_SUPERVISOR_LOG,
    rundir::COMMITTED,
    rundir::READERS,
];

/// The role's main.
pub(crate) fn main() -> ExitCode {
    if detach().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(front) = Front::take() else { return ExitCode::FAILURE };
    let mut front = Some(front);
    match boot_and_watch(&mut front) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(front) = &mut front {
                front.tell(&Report::Failed(format!("{error:#}")));
            }
            ExitCode::FAILURE
        }
    }
}

/// Leaves the caller's session, and its open files: a pipe that is held here would never end for its reader.
fn detach() -> anyhow::Result<()> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd > 2)
        .collect();
    for fd in numbers {
        // The number of the directory just read is among them, and closed already.
        let _ = nix::unistd::close(fd);
    }
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

fn boot_and_watch(front: &mut Option<Front>) -> anyhow::Result<()> {
    let talk = front.as_mut().context("nobody to talk to")?;
    let config = talk.config()?;
    let Some(held) = Held::make(&config.vm.dir).with_context(|| format!("run directory {:?}", config.vm.dir))? else {
        bail!(name_in_use(&config.name));
    };
    // What an earlier supervisor was killed over ends by itself, and soon.
    held.await_death()?;
    // One that ended in order is expected to have left its end.
    let was_killed = !held.path().join(rundir::ENDED).exists();
    shared_root::remove_leftovers(held.path());
    let left = held.clear(&[rundir::ALIVE]);
    if left.with_context(|| format!("run directory {:?}", held.path()))? && was_killed {
        talk.tell(&Report::Say(format!("removed what an earlier VM {:?} had left", config.name)));
    }
    log::open(&held.path().join(rundir::SUPERVISOR_LOG));
    log::note(format_args!("supervisor {} of {:?} started", std::process::id(), config.name));
    let guard = talk.guard()?;
    let made = Machine::make(&config, &held, front).and_then(|machine| Ok(interrupt::check().map(|()| machine)?));
    // From here on signals, and the caller's end, are events among others.
    drop(guard);
    let outcome = made.map_err(|error| (error, None)).and_then(|mut machine| {
        // In here everything is started, and, when it returns, has been ended.
        match live(&config, &held, &mut machine) {
            Ok(ended) => Ok((ended, machine)),
            // A caller who has gone wants nothing of it.
            Err(error) if machine.front.is_none() => Err((error, None)),
            Err(error) => Err((error, failed::keep_logs(&config, held.path()))),
        }
    });
    match outcome {
        Ok((ended, machine)) => end(&config, held, &ended, machine),
        Err((error, logs)) => {
            held.remove().with_context(|| format!("run directory of {:?}", config.name))?;
            Err(match logs {
                Some(log) => anyhow!("{error:#}\n  log: {}", log.display()),
                None => error,
            })
        }
    }
}

/// Starts the VM, and starts it again as long as it is to.
fn live(config: &Config, held: &Held, machine: &mut Machine<'_>) -> anyhow::Result<Ended> {
    let mut delay = Delay::default();
    loop {
        let since = now();
        let mut watch = Watch::start(config, held, machine);
        let mut is_stopped = false;
        let outcome = watch.as_mut().map_err(|error| anyhow!("{error:#}")).and_then(|watch| {
            let ended = watch.until_the_end();
            is_stopped = watch.was_asked_to_stop();
            ended
        });
        drop(watch);
        let ended = match outcome {
            Ok(ended) => ended,
            // There never was a VM for the caller.
            Err(error) if !machine.is_printed => return Err(error),
            Err(error) => Ended::failure(format!("{error:#}").replace('\n', ";")),
        };
        log::note(format_args!("ended: {}", ended.reason));
        if is_stopped || !restart::applies(config.restart, ended.cause) {
            return Ok(ended);
        }
        let delay = delay.next(now().saturating_sub(since));
        log::note(format_args!("starting it again in {} s", delay.as_secs_f32()));
        rundir::leave(held.path(), rundir::RESTARTING, &Restarting { reason: ended.reason })?;
        held.clear(&[&KEPT[..], &[rundir::RESTARTING]].concat())?;
        if is_asked_to_stop_within(machine, delay)? {
            return Ok(Ended::by(Cause::Stop));
        }
        machine.restarts += 1;
    }
}

fn is_asked_to_stop_within(machine: &mut Machine<'_>, delay: std::time::Duration) -> anyhow::Result<bool> {
    let until = now() + delay;
    loop {
        if let Some(signal) = machine.read_signal()? {
            log::note(format_args!("{signal}: not starting it again"));
            return Ok(true);
        }
        let left = until.saturating_sub(now());
        if left.is_zero() {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(&machine.signals, PollFlags::IN)], Some(&Timespec::try_from(left)?)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The VM has ended: commits what its guest wrote, where that is wanted, and leaves its end in the run directory.
fn end(config: &Config, held: Held, ended: &Ended, mut machine: Machine<'_>) -> anyhow::Result<()> {
    let disk = machine.scratch_disk();
    drop(machine);
    if let Some(disk) = disk.filter(|_| commit::is_wanted(config, &held)) {
        // Who waits for the end sees by it that this may take long; and it stands where this process is killed.
        let killed = Committed::Failed("its supervisor was killed in the middle of it".into());
        rundir::leave(held.path(), rundir::COMMITTED, &killed)?;
        let committed = match ended.forced {
            true => {
                commit::keep(config, &disk, "it did not stop in order, so what it wrote may be cut off in the middle")
            }
            false => commit::run(config, &held, disk),
        };
        log::note(format_args!("commit: {committed:?}"));
        rundir::leave(held.path(), rundir::COMMITTED, &committed)?;
    }
    // In this order: where the file system is full, it has room then.
    held.clear(&LEFT)?;
    Ok(rundir::leave(held.path(), rundir::ENDED, ended)?)
}
