//! The supervisor: it makes the VM's run directory, starts the VM's processes, waits for the agent, and then looks after
//! the VM until it ends. It reads events from fds and never looks at a thing twice to see whether it has changed.
//!
//! What may not happen here: a VM, a process, a socket or a directory that stays behind a boot that failed.

mod commit;
mod console;
pub(crate) mod crew;
mod front;
mod ready;
mod stopping;
mod watch;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, bail};
use msb::record;
use msb::rundir::{self, Committed, Held};

use crate::launch::Report;
use front::Front;
use watch::Watch;

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
        bail!(
            "name {0:?}: a VM of that name is running (take another --name, or run \"msb-stop -r {0}\")",
            config.name
        );
    };
    // What an earlier supervisor was killed over ends by itself, and soon.
    held.await_death()?;
    let left = held.clear(&[rundir::ALIVE]);
    if left.with_context(|| format!("run directory {:?}", held.path()))? {
        talk.tell(&Report::Say(format!("removed what an earlier VM {:?} had left", config.name)));
    }
    // In here everything is started, and, when it returns, has been ended.
    let outcome = Watch::start(&config, &held, front).and_then(|mut watch| {
        let ended = watch.until_the_end()?;
        Ok((ended, watch.into_top()))
    });
    match outcome {
        Ok((ended, top)) => {
            if let Some(disk) = top.filter(|_| commit::wanted(&config, &held)) {
                // Who waits for the end sees by it that this may take long; and it stands where this process is killed.
                let killed = Committed::Failed("its supervisor was killed in the middle of it".into());
                rundir::leave(held.path(), rundir::COMMITTED, &killed)?;
                let committed = commit::run(&config, &held, disk);
                rundir::leave(held.path(), rundir::COMMITTED, &committed)?;
            }
            // In this order: where the file system is full, it has room then.
            held.clear(&[record::FILE_NAME, rundir::KERNEL_LOG, rundir::OLD_KERNEL_LOG, rundir::COMMITTED])?;
            Ok(rundir::leave(held.path(), rundir::ENDED, &ended)?)
        }
        Err(error) => {
            held.remove().with_context(|| format!("run directory of {:?}", config.name))?;
            Err(error)
        }
    }
}
