//! The server in the background. The tool starts itself again as the server, and exits when the server has reported that it is ready.
//! fork(2) without exec(2) is not safe in a process with threads.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use msb::store::layout::MOUNT_LOG;
use msb::tool::exit;
use msb::tool::interrupt::{self, DeferExit};
use msb::tool::output::Output;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};

use crate::config::Config;
use crate::fusermount::Mounted;
use crate::mountpoint;
use crate::serve;

/// What the server prints when it is ready, before the type of the mount.
const READY: &str = "ready";

/// Starts the server, prints the record when it is ready, and returns the exit code. A server that fails prints the reason on stderr,
/// which it inherits.
///
/// Without an `output`, nothing is printed.
pub(crate) fn start(
    config: &Config,
    made: Option<Mounted>,
    output: Option<&Output>,
    begun: DeferExit,
) -> anyhow::Result<u8> {
    match spawn(config, made, &[]) {
        Ok(Some((pid, fstype))) => {
            // A signal that arrived before this has ended the server. A later one has no effect.
            let put = match interrupt::check() {
                Ok(()) => output.map_or(Ok(()), |output| {
                    output.put(&config.mounted(pid, &fstype), || config.summary()).map_err(Into::into)
                }),
                Err(error) => Err(error.into()),
            };
            if put.is_ok() {
                begun.finish();
            } else {
                // No record names the mount.
                let _ = mountpoint::unmount(&config.mountpoint);
                // It may have got the signal too and unmount by itself. While it runs it can still make its log.
                let _ = end(&pidfd_open(pid, PidfdFlags::empty())?);
                config.undo();
            }
            put.map(|()| 0)
        }
        failed => {
            config.undo();
            failed.map(|_| exit::FAILED)
        }
    }
}

/// Starts the server, and returns its process ID and the type of the mount once that responds; `None` if it has printed why it does not.
///
/// The server of a mount that was made already inherits it.
pub(crate) fn spawn(config: &Config, made: Option<Mounted>, flags: &[&str]) -> anyhow::Result<Option<(Pid, String)>> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--serve")
        .args(config.access.flags())
        .args(["--type", config.kind.name()])
        .args(config.is_new.then_some("--is-new"));
    if let Some(made) = &made {
        command.args(made.server_flags()?);
    }
    command.args(flags).arg(&config.mountpoint);
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = command.spawn().context("cannot start the server")?;
    // From here on the mount goes with the server.
    drop(made);
    // An interrupt is passed on to the server, which unmounts.
    let _registered = interrupt::register(&server, Signal::TERM)?;
    let mut record = serde_json::to_vec(&config.record)?;
    record.push(b'\n');
    // This fails if the server has ended before it read the record. It prints the reason.
    let _ = server.stdin.take().context("the server has no stdin")?.write_all(&record);
    let mut said = String::new();
    BufReader::new(server.stdout.take().context("the server has no stdout")?).read_line(&mut said)?;
    if let Some(fstype) = said.trim_end().strip_prefix(READY) {
        return Ok(Some((Pid::from_child(&server), fstype.trim_start().to_owned())));
    }
    let status = server.wait()?;
    if status.code().is_none() {
        return Err(anyhow!("the server was killed: {status}"));
    }
    Ok(None)
}

/// Has a server that this process has started end, and waits for that.
///
/// # Errors
/// That of waiting.
pub(crate) fn end(server: &OwnedFd) -> io::Result<()> {
    let _ = pidfd_send_signal(server, Signal::TERM);
    rustix::process::waitid(WaitId::PidFd(server.as_fd()), WaitIdOptions::EXITED)?;
    Ok(())
}

/// Runs the server, detached from the terminal and from the caller's streams.
pub(crate) fn serve(config: &Config, made: Option<Mounted>) -> anyhow::Result<u8> {
    let _ = rustix::process::setsid();
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    serve::run(config, made, |fstype| {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{READY} {fstype}")?;
        stdout.flush()?;
        rustix::stdio::dup2_stdout(&null)?;
        let log = config
            .sandbox()
            .and_then(|dir| File::options().create(true).append(true).mode(0o600).open(dir.join(MOUNT_LOG)).ok());
        rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null))?;
        Ok(())
    })?;
    Ok(0)
}
