//! The background: the tool starts itself again as the server, waits for its one line, and leaves. A fork would do, but
//! not in a safe language with threads about.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use msb::store::layout::MOUNT_LOG;
use msb::tool::exit;
use msb::tool::interrupt::{self, DeferExit};
use msb::tool::output::Output;
use rustix::process::Pid;

use crate::config::Config;
use crate::mountpoint;
use crate::serve;

/// What the server says when the mount answers.
const READY: &str = "ready";

/// Starts the server, prints the record when it is ready, and returns the tool's exit code: a server that fails has
/// said why on the stderr it shares.
pub(crate) fn start(config: &Config, output: &Output, begun: DeferExit) -> anyhow::Result<u8> {
    match spawn(config) {
        Ok(Some(pid)) => {
            // A signal that came meanwhile has ended the server, or comes too late.
            let put = match interrupt::check() {
                Ok(()) => output.put(&config.mounted(pid), || config.summary()).map_err(Into::into),
                Err(error) => Err(error.into()),
            };
            if put.is_ok() {
                begun.finish();
            }
            if put.is_err() {
                // Nobody knows of the mount.
                let _ = mountpoint::unmount(&config.mountpoint);
                config.take_back();
            }
            put.map(|()| 0)
        }
        failed => {
            config.take_back();
            failed.map(|_| exit::FAILED)
        }
    }
}

fn spawn(config: &Config) -> anyhow::Result<Option<Pid>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--serve").args(config.is_read_only.then_some("--ro")).args(config.is_new.then_some("--is-new"));
    command.arg("--").arg(&config.mountpoint);
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = command.spawn().context("cannot start the server")?;
    // An interrupted start ends the server, which unmounts.
    let _registered = interrupt::register(&server, rustix::process::Signal::TERM)?;
    let mut record = serde_json::to_vec(&config.record)?;
    record.push(b'\n');
    // A server that ends before it reads has its own words for it.
    let _ = server.stdin.take().context("the server has no stdin")?.write_all(&record);
    let mut said = String::new();
    BufReader::new(server.stdout.take().context("the server has no stdout")?).read_line(&mut said)?;
    if said.trim_end() == READY {
        return Ok(Some(Pid::from_child(&server)));
    }
    let status = server.wait()?;
    if status.code().is_none() {
        return Err(anyhow!("the server ended by itself: {status}"));
    }
    Ok(None)
}

/// The server's side: away from the terminal and the caller's streams.
pub(crate) fn serve(config: &Config) -> anyhow::Result<u8> {
    let _ = rustix::process::setsid();
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    serve::run(config, || {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{READY}")?;
        stdout.flush()?;
        rustix::stdio::dup2_stdout(&null)?;
        let log =
            config.sandbox().and_then(|dir| File::options().create(true).append(true).open(dir.join(MOUNT_LOG)).ok());
        rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null))?;
        Ok(())
    })?;
    Ok(0)
}
