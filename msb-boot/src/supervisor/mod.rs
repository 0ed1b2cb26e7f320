//! The supervisor: it makes the VM's run directory, starts the VM's processes, waits for the agent, and watches the VM until it ends.
//! It waits for events on descriptors and polls nothing at intervals.
//!
//! A boot that failed must leave no process, socket or directory.

mod boot_limit;
mod clock;
mod commit;
pub(crate) mod connection;
mod console;
pub(crate) mod failed_logs;
mod halt;
mod machine;
mod rate_limit;
mod ready;
mod recording;
mod restart;
mod running;
mod saving;
mod stopping;
mod timings;
mod verdict;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use msb::jail::user_of;
use msb::vm::rundir::{self, Cause, Committed, Ended, LockedRunDir, Restarting};
use msb::vm::shared_root;
use msb::{record, tool::interrupt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::{Config, name_in_use, now};
use crate::inherited_fd::InheritedFd;
use crate::krun::ffi::join_new_session_keyring;
use crate::log;
use crate::root::Root;
use connection::{Client, Report};
use machine::Machine;
use restart::{Delay, KernelFault};
use watch::Watch;

/// The files of a run directory that stay while the VM is started again.
const KEPT_FOR_RESTART: [&str; 12] = [
    record::FILE_NAME,
    rundir::EXECS,
    rundir::ALIVE,
    rundir::VOLUMES,
    rundir::SHARED_ROOT,
    rundir::KERNEL_LOG,
    rundir::OLD_KERNEL_LOG,
    rundir::SUPERVISOR_LOG,
    rundir::OLD_SUPERVISOR_LOG,
    rundir::STOP,
    rundir::READERS,
    rundir::RESTARTING,
];
/// The files that stay when the VM has ended.
const KEPT_AT_END: [&str; 8] = [
    record::FILE_NAME,
    rundir::EXECS,
    rundir::KERNEL_LOG,
    rundir::OLD_KERNEL_LOG,
    rundir::SUPERVISOR_LOG,
    rundir::OLD_SUPERVISOR_LOG,
    rundir::COMMITTED,
    rundir::READERS,
];

/// The role's main. The VM uses the descriptors `fds` of the client.
pub(crate) fn main(fds: &[InheritedFd]) -> ExitCode {
    if detach(fds).is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(client) = Client::from_stdin() else { return ExitCode::FAILURE };
    let mut client = Some(client);
    match boot_and_watch(&mut client) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(client) = &mut client {
                client.send(&Report::Failed(format!("{error:#}")));
            }
            ExitCode::FAILURE
        }
    }
}

/// Leaves the client's session, and closes the other descriptors that were inherited.
fn detach(fds: &[InheritedFd]) -> anyhow::Result<()> {
    msb::inherited::close(&fds.iter().map(|fd| fd.number()).collect::<Vec<_>>())?;
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

fn boot_and_watch(client: &mut Option<Client>) -> anyhow::Result<()> {
    let connection = client.as_mut().context("no client")?;
    let mut config = connection.config()?;
    config.vm.user = user_of(std::process::id());
    // Keyrings are in no namespace, and the caller's may hold keys. The processes of the VM inherit this one.
    join_new_session_keyring().context("a session keyring (raise kernel.keys.maxkeys with sysctl)")?;
    let Some(held) =
        LockedRunDir::create(&config.vm.dir).with_context(|| format!("run directory {:?}", config.vm.dir))?
    else {
        bail!(name_in_use(&config.name));
    };
    // The processes of an earlier VM whose supervisor was killed are dying.
    held.await_processes()?;
    // A supervisor that was not killed has left this file.
    let was_killed = !held.path().join(rundir::ENDED).exists();
    shared_root::remove_leftovers(held.path());
    let left = held.clear(&[rundir::ALIVE]);
    if left.with_context(|| format!("run directory {:?}", held.path()))? && was_killed {
        connection.send(&Report::Say(format!("removed what an earlier VM {:?} had left", config.name)));
    }
    log::open(&held.path().join(rundir::SUPERVISOR_LOG));
    log::note(format_args!("supervisor {} of {:?} started", std::process::id(), config.name));
    let guard = connection.guard()?;
    let made = Machine::make(&config, &held, client).and_then(|machine| Ok(interrupt::check().map(|()| machine)?));
    // From here on signals and the client's exit are events like others.
    drop(guard);
    let outcome = made.map_err(|error| (error, None)).and_then(|mut machine| {
        // This starts all processes, and has killed them when it returns.
        match run(&config, &held, &mut machine) {
            Ok(ended) => Ok((ended, machine)),
            // The client has exited, so nobody would read the logs.
            Err(error) if machine.client.is_none() => Err((error, None)),
            Err(error) => Err((error, failed_logs::keep(&config, held.path()))),
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

/// Starts the VM, and starts it again as its restart policy says. Returns the last end.
fn run(config: &Config, held: &LockedRunDir, machine: &mut Machine<'_>) -> anyhow::Result<Ended> {
    let mut delays = Delay::default();
    let mut repeats = if config.vmm.is_emulator() { restart::REPEATS } else { 0 };
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
        let delay = match outcome {
            Err(error) if !machine.is_printed && repeats > 0 && error.is::<KernelFault>() => {
                repeats -= 1;
                log::note(format_args!("{error:#}: starting it again"));
                None
            }
            // The client has not printed a record, so the boot has failed.
            Err(error) if !machine.is_printed => {
                return Err(match machine.lack_of_memory() {
                    Some(why) => anyhow!("{error:#}\n  {why}"),
                    None => error,
                });
            }
            outcome => {
                let failed = |error: anyhow::Error| Ended::failure(format!("{error:#}").replace('\n', ";"));
                let mut ended = outcome.unwrap_or_else(failed);
                if let Some(why) = machine.lack_of_memory().filter(|_| ended.cause == Cause::Failure) {
                    ended.reason = format!("{}; {why}", ended.reason);
                }
                log::note(format_args!("ended: {}", ended.reason));
                if is_stopped || !restart::applies(config.restart, ended.cause) {
                    return Ok(ended);
                }
                let delay = delays.next(now().saturating_sub(since));
                log::note(format_args!("starting it again in {} s", delay.as_secs_f32()));
                rundir::write(held.path(), rundir::RESTARTING, &Restarting { reason: ended.reason })?;
                Some(delay)
            }
        };
        held.clear(&KEPT_FOR_RESTART)?;
        if let Some(delay) = delay {
            if is_asked_to_stop_within(machine, delay)? {
                return Ok(Ended::by(Cause::Stop));
            }
            machine.restarts += 1;
        }
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
        let mut fds = vec![PollFd::new(&machine.signals, PollFlags::IN)];
        fds.extend(machine.end_with.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Ok(_) if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) => {
                log::note("--end-with: not starting it again");
                return Ok(true);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// After the VM has ended: commits the scratch disk if that was asked for, and writes the end to the run directory.
fn end(config: &Config, held: LockedRunDir, ended: &Ended, machine: Machine<'_>) -> anyhow::Result<()> {
    let (disk, initramfs, cgroup) = machine.into_parts();
    if let (Root::Block(block), Some(disk)) = (&config.root, disk)
        && commit::is_wanted(config, &held)
    {
        // This tells msb-stop that a commit has begun, which may take long. It stays there if this process is killed.
        let killed = Committed::Failed("its supervisor was killed in the middle of it".into());
        rundir::write(held.path(), rundir::COMMITTED, &killed)?;
        let committed = match ended.forced {
            true => commit::keep(config, block, &disk, "it did not stop in order, so what it wrote may be incomplete"),
            false => commit::run(config, &held, block, disk, &initramfs),
        };
        log::note(format_args!("commit: {committed:?}"));
        rundir::write(held.path(), rundir::COMMITTED, &committed)?;
    }
    drop(cgroup);
    // Clearing first makes room if the file system is full.
    held.clear(&KEPT_AT_END)?;
    Ok(rundir::write(held.path(), rundir::ENDED, ended)?)
}
