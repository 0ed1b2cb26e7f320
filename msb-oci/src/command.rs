//! The command of a container, or a further one: msb-exec, with the caller's streams or a terminal.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use msb::tool::exit::{NOT_EXECUTABLE, NOT_FOUND, TOOL_FAILED};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::{inherited, role, tool};

pub(crate) const ROLE: &str = "--as-command";

/// The longest report of msb-exec, in bytes.
const MAX_REPORT: u64 = 64 << 10;

/// What is run, and how.
#[derive(Debug)]
pub(crate) struct Invocation<'a> {
    /// The VM's record.
    pub record: &'a Path,
    pub what: What<'a>,
    /// What becomes stdin, stdout and stderr; `None` for the caller's.
    pub terminal: Option<OwnedFd>,
    /// Whether it leaves the caller's session.
    pub is_detached: bool,
    /// The cgroup that it joins; `None` for this process's.
    pub cgroup: Option<Cgroup>,
    /// Where it waits until the container is started.
    pub start: Option<&'a OwnedFd>,
    /// Where it writes how it has ended.
    pub end: Option<&'a OwnedFd>,
}

/// What a file describes.
#[derive(Debug)]
pub(crate) enum What<'a> {
    /// A container, by a config.json with paths of the guest.
    Container(&'a Path),
    /// A process, which runs in the container of the command with this id.
    Process(&'a Path, u32),
}

/// A command that the guest has prepared or started.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process that stands for it, msb-exec.
    pub child: Child,
    /// Its id in the guest.
    pub id: u32,
}

/// What the process does before it executes msb-exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    has_terminal: bool,
    is_detached: bool,
    cgroup: Option<Cgroup>,
    /// msb-exec and its arguments.
    program: PathBuf,
    args: Vec<String>,
}

/// A line of `msb-exec --started-fd`.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Report {
    Prepared { id: u32 },
    Started { id: u32 },
    Failed { status: u8, error: String },
}

/// Starts a command, and waits until the guest has prepared it, if it has something to wait for, or has started it.
///
/// # Errors
/// Why it cannot run, in a message in which engines find the status 127 or 126.
pub(crate) fn start(invocation: Invocation<'_>) -> anyhow::Result<Running> {
    let (report, reporter) = inherited::pipe()?;
    let mut args = vec!["-q".to_owned(), "--stand-in".into()];
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("-r", invocation.record.display().to_string());
    match invocation.what {
        What::Container(file) => add("--container", file.display().to_string()),
        What::Process(file, id) => {
            add("--process", file.display().to_string());
            add("--inside", id.to_string());
        }
    }
    add("--started-fd", inherited::number(&reporter).to_string());
    let mut fds = vec![&reporter];
    if let Some(start) = invocation.start {
        add("--prepare-fd", inherited::number(start).to_string());
        fds.push(start);
    }
    if let Some(end) = invocation.end {
        add("--json-status", format!("/proc/self/fd/{}", inherited::number(end)));
        fds.push(end);
    }
    let exec = tool::command("msb-exec")?;
    let description = Description {
        has_terminal: invocation.terminal.is_some(),
        is_detached: invocation.is_detached,
        cgroup: invocation.cgroup,
        program: exec.get_program().into(),
        args,
    };
    let mut command = role::in_role(ROLE, &description)?;
    for (key, value) in exec.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    if let Some(terminal) = invocation.terminal {
        command.stdin(Stdio::from(terminal.try_clone()?));
        command.stdout(Stdio::from(terminal.try_clone()?)).stderr(Stdio::from(terminal));
    }
    let mut child = inherited::with(&fds, || command.spawn().context("msb-exec"))?;
    // The terminal is not to be held here.
    drop(command);
    drop(reporter);
    match read_report(report) {
        Ok(id) => Ok(Running { child, id }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Reads the first report. Returns the id of the command.
fn read_report(report: OwnedFd) -> anyhow::Result<u32> {
    let mut line = String::new();
    BufReader::new(File::from(report).take(MAX_REPORT)).read_line(&mut line)?;
    if line.is_empty() {
        bail!("msb-exec has ended without a report");
    }
    match serde_json::from_str(&line).context("report of msb-exec")? {
        Report::Prepared { id } | Report::Started { id } => Ok(id),
        Report::Failed { status: NOT_FOUND, error } => bail!("{error}: No such file or directory"),
        Report::Failed { status: NOT_EXECUTABLE, error } => bail!("{error}: permission denied"),
        Report::Failed { error, .. } => bail!("{error}"),
    }
}

/// The role: becomes msb-exec.
pub(crate) fn run(description: Description) -> ExitCode {
    let error = match prepare(&description) {
        Ok(()) => {
            let args = description.args.iter().map(OsString::from);
            anyhow::Error::new(Command::new(&description.program).args(args).exec()).context("msb-exec")
        }
        Err(error) => error,
    };
    eprintln!("msb-oci: {error:#}");
    TOOL_FAILED.into()
}

fn prepare(description: &Description) -> anyhow::Result<()> {
    if description.is_detached || description.has_terminal {
        let _ = rustix::process::setsid();
    }
    if description.has_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).context("terminal")?;
    }
    match &description.cgroup {
        Some(cgroup) => cgroup.enter(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_report_has_the_id_or_the_message_that_engines_look_for() {
        let read = |line: &str| {
            let (report, reporter) = inherited::pipe().unwrap();
            File::from(reporter).write_all(line.as_bytes()).unwrap();
            read_report(report).map_err(|error| error.to_string())
        };
        assert_eq!(read("{\"event\":\"prepared\",\"id\":3,\"pid\":4}\n"), Ok(3));
        assert_eq!(read("{\"event\":\"started\",\"id\":5,\"pid\":4}\n"), Ok(5));
        for (status, message) in [(127, "x: No such file or directory"), (126, "x: permission denied"), (125, "x")] {
            let line = format!("{{\"event\":\"failed\",\"status\":{status},\"error\":\"x\"}}\n");
            assert_eq!(read(&line), Err(message.to_owned()));
        }
        assert!(read("").unwrap_err().contains("without a report"));
        assert!(read("{}\n").is_err());
    }
}
