//! The processes of a run: how a stage is started, and how it ended.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use msb::record::Record;
use msb::tool::exit;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::args::Args;
use crate::children::Children;
use crate::plan::{Plan, Stage};
use crate::programs;

/// The name of msb-run in messages.
pub const TOOL: &str = "msb-run";

/// A record, or the exit status of a tool that has failed and reported why.
pub type Made = Result<Record, u8>;

/// Gives a stage its record and takes what it prints, if that does not go elsewhere. A stage that failed has said why, and leaves the
/// exit status.
///
/// # Errors
/// Those of the pipes, and of wait(2).
pub fn finish(
    stage: &Stage,
    child: &mut Child,
    record: Vec<u8>,
    children: &Children,
) -> anyhow::Result<Result<Vec<u8>, u8>> {
    finish_unless(stage, child, record, children, &AtomicBool::new(false))
}

/// As [`finish`], for a stage that this process may end because another one has failed. It sets `is_ended` then.
///
/// # Errors
/// As [`finish`].
pub fn finish_unless(
    stage: &Stage,
    child: &mut Child,
    record: Vec<u8>,
    children: &Children,
    is_ended: &AtomicBool,
) -> anyhow::Result<Result<Vec<u8>, u8>> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has failed.
        let _ = stdin.write_all(&record);
    }
    let mut printed = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut printed).context(stage.tool)?;
    }
    let status = child.wait().context(stage.tool)?;
    if let Some(signal) = status.signal()
        && !is_ended.load(Ordering::Acquire)
    {
        exit::warn(children.tool, &format!("{} was ended by signal {signal}", stage.tool));
    }
    Ok(if status.success() { Ok(printed) } else { Err(exit::TOOL_FAILED) })
}

/// Runs a stage that a terminal's signals do not reach.
///
/// # Errors
/// As [`command`], and those of starting it.
pub fn shielded(stage: &Stage) -> anyhow::Result<ExitStatus> {
    let mut command = command(stage)?;
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    command.status().context(stage.tool)
}

/// Ends the VM. A tool that was killed meanwhile is started once more.
///
/// # Errors
/// As [`shielded`].
pub fn end(stage: &Stage) -> anyhow::Result<()> {
    if shielded(stage)?.signal().is_some() {
        shielded(stage)?;
    }
    Ok(())
}

/// The command that starts a stage.
///
/// # Errors
/// A tool that is not installed.
pub fn command(stage: &Stage) -> anyhow::Result<Command> {
    let mut command = programs::command(stage.tool)?;
    command.args(&stage.args);
    Ok(command)
}

/// Starts a stage, which gets the signals of this process.
///
/// # Errors
/// As [`command`], and those of starting it.
pub fn spawn(stage: &Stage, stdin: Stdio, stdout: Stdio, children: &Children) -> anyhow::Result<Child> {
    let child = command(stage)?.stdin(stdin).stdout(stdout).spawn().context(stage.tool)?;
    children.add(&child)?;
    Ok(child)
}

/// Runs msb-exec. Returns how it ended.
///
/// # Errors
/// Those of starting it.
pub fn status(command: &mut Command, children: &Children) -> anyhow::Result<ExitStatus> {
    let mut child = command.spawn().map_err(|error| anyhow!(error).context("msb-exec"))?;
    children.add(&child)?;
    let status = child.wait()?;
    children.forget();
    Ok(status)
}

/// Runs a stage that prints a record.
///
/// # Errors
/// Those of starting it, and output that is not a record.
pub fn stage(stage: &Stage, stdin: Stdio, record: Vec<u8>, children: &Children) -> anyhow::Result<Made> {
    let mut child = spawn(stage, stdin, Stdio::piped(), children)?;
    let printed = finish(stage, &mut child, record, children)?;
    children.forget();
    match printed {
        Ok(text) => Ok(Ok(Record::parse(text.trim_ascii_end()).context(stage.tool)?)),
        Err(code) => Ok(Err(code)),
    }
}

/// Runs msb-pull, which gets the stdin of this process if the record comes from there.
///
/// # Errors
/// As [`stage`].
pub fn pull(plan: &Plan, args: &Args, children: &Children) -> anyhow::Result<Made> {
    stage(&plan.pull, pull_stdin(args), Vec::new(), children)
}

/// The stdin of msb-pull.
pub fn pull_stdin(args: &Args) -> Stdio {
    if args.image.as_encoded_bytes().starts_with(b"-") { Stdio::inherit() } else { Stdio::null() }
}

/// A descriptor of a child.
///
/// # Errors
/// Those of pidfd_open(2).
pub fn process(child: &Child) -> anyhow::Result<std::os::fd::OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// The exit status for that of a child.
pub fn code(status: ExitStatus) -> u8 {
    let killed = status.signal().map(|signal| i32::from(exit::SIGNAL_BASE) + signal);
    status.code().or(killed).and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::TOOL_FAILED)
}
