//! The command of a container, or a further one: msb-exec, with the container's streams or a terminal.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::{inherited, role, tool};

pub(crate) const ROLE: &str = "--as-command";

/// What the process does before it executes msb-exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Whether stdin is a terminal that becomes the controlling one.
    pub has_terminal: bool,
    /// Whether it leaves the caller's session.
    pub is_detached: bool,
    /// What it waits for first.
    pub start: Option<Start>,
    /// The cgroup that it joins.
    pub cgroup: Option<Cgroup>,
}

/// The start of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The FIFO that is opened by `start`.
    pub fifo: PathBuf,
    /// What ends with the container.
    pub alive: RawFd,
}

/// Starts the process. The words of `exec` follow its description on the command line.
///
/// # Errors
/// Those of starting.
pub(crate) fn spawn(description: &Description, exec: &Command, terminal: Option<OwnedFd>) -> anyhow::Result<Child> {
    let mut command = role::in_role(ROLE, description)?;
    command.arg(exec.get_program()).args(exec.get_args());
    for (key, value) in exec.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    if let Some(terminal) = terminal {
        command.stdin(Stdio::from(terminal.try_clone()?));
        command.stdout(Stdio::from(terminal.try_clone()?)).stderr(Stdio::from(terminal));
    }
    Ok(command.spawn()?)
}

pub(crate) fn run(description: Description) -> ExitCode {
    let Err(error) = prepare(&description).and_then(|is_started| match is_started {
        true => Ok(()),
        false => Err(anyhow::anyhow!("the container has ended before its start")),
    }) else {
        let words: Vec<OsString> = std::env::args_os().skip(3).collect();
        let Some((program, args)) = words.split_first() else { return ExitCode::FAILURE };
        let error = Command::new(program).args(args).exec();
        eprintln!("msb-oci: {}: {error}", Path::new(program).display());
        return msb::tool::exit::TOOL_FAILED.into();
    };
    eprintln!("msb-oci: {error:#}");
    msb::tool::exit::TOOL_FAILED.into()
}

/// Returns whether the command is to run.
fn prepare(description: &Description) -> anyhow::Result<bool> {
    if description.is_detached || description.has_terminal {
        let _ = rustix::process::setsid();
    }
    if description.has_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    if let Some(cgroup) = &description.cgroup {
        cgroup.enter()?;
    }
    match &description.start {
        Some(start) => wait_for_start(start),
        None => Ok(true),
    }
}

/// Waits until the FIFO is opened. Returns false if the container ends before.
fn wait_for_start(start: &Start) -> anyhow::Result<bool> {
    let alive = inherited::take(start.alive)?;
    let fifo = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&start.fifo)?;
    loop {
        let mut fds = [PollFd::new(&fifo, PollFlags::IN), PollFd::new(&alive, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        if !fds[1].revents().is_empty() {
            return Ok(false);
        }
    }
}

/// The call of msb-exec that runs a process in the VM of a record, and writes to the file `status` how it has ended.
///
/// # Errors
/// msb-exec is not installed.
pub(crate) fn exec(record: &Path, process: &Process, status: Option<&Path>) -> anyhow::Result<Command> {
    let mut exec = tool::command("msb-exec")?;
    let has_terminal = process.terminal().unwrap_or(false);
    exec.arg("-q").arg("-r").arg(record).arg(if has_terminal { "-t" } else { "-T" }).args(["--detach-keys", ""]);
    exec.arg("-w").arg(process.cwd());
    exec.arg("-u").arg(format!("{}:{}", process.user().uid(), process.user().gid()));
    for variable in process.env().iter().flatten() {
        exec.arg("-e").arg(variable);
    }
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let name = name.strip_prefix("RLIMIT_").unwrap_or(&name).to_ascii_lowercase();
        exec.arg("--rlimit").arg(format!("{name}={}:{}", limit.soft(), limit.hard()));
    }
    if let Some(umask) = process.user().umask() {
        exec.arg("--umask").arg(format!("{umask:o}"));
    }
    if let Some(status) = status {
        exec.arg("--json-status").arg(status);
    }
    exec.arg("--").args(process.args().iter().flatten());
    Ok(exec)
}
