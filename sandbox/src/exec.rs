//! Commands in the guest: what is requested, and the msb-exec that runs one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::error::Error;
use crate::memory_file::MemoryFile;
use crate::tool;

pub(crate) const TOOL: &str = "msb-exec";
/// The default of [`ExecOptions::output_limit`].
const OUTPUT_LIMIT: usize = 64 << 20;

/// What stdin of a command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// `/dev/null`.
    Null,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A pipe from the caller.
    Pipe,
}

/// How a command is run. What is not set is that of the sandbox.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    args: Vec<OsString>,
    workdir: Option<OsString>,
    user: Option<OsString>,
    env: Vec<(OsString, OsString)>,
    timeout: Option<Duration>,
    rlimits: Vec<String>,
    tty: bool,
    pub(crate) input: Input,
    pub(crate) limit: usize,
}

impl ExecOptions {
    pub(crate) fn new(input: Input) -> Self {
        Self {
            args: Vec::new(),
            workdir: None,
            user: None,
            env: Vec::new(),
            timeout: None,
            rlimits: Vec::new(),
            tty: false,
            input,
            limit: OUTPUT_LIMIT,
        }
    }

    /// Adds arguments.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("cc", |o| o.args(["-O2", "-o", "app"]).args(["main.c"])).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("make", |o| o.workdir("/src")).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn workdir(mut self, dir: impl AsRef<OsStr>) -> Self {
        self.workdir = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets the user, as `USER[:GROUP]`, by names or numbers.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("id", |o| o.user("nobody")).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn user(mut self, user: impl AsRef<OsStr>) -> Self {
        self.user = Some(user.as_ref().to_owned());
        self
    }

    /// Sets a variable. The value reaches the guest without being on a command line.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox, token: String) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("deploy", |o| o.env("TOKEN", token)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Ends the command after this time, with all that it has started: SIGTERM first, SIGKILL five seconds later.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// use std::time::Duration;
    ///
    /// sb.exec_with("make", |o| o.timeout(Duration::from_secs(60))).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets a resource limit, `NAME=SOFT[:HARD]`, as prlimit(1) names them.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("make", |o| o.rlimit("nofile=1024").rlimit("nproc=64:128")).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn rlimit(mut self, limit: impl Into<String>) -> Self {
        self.rlimits.push(limit.into());
        self
    }

    /// Gives the command a terminal. It has one stream of output then, which is stdout here.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let process = sb.exec_stream_with("bash", |o| o.tty(true)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Gives the command these bytes as its stdin, and then end-of-file. The default is no stdin, and a pipe for a streamed command.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let output = sb.exec_with("tr", |o| o.args(["a-z", "A-Z"]).stdin_bytes("bytes in")).await?;
    /// assert_eq!(output.stdout()?, "BYTES IN");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives the command `/dev/null` as its stdin.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let process = sb.exec_stream_with("tail", |o| o.args(["-f", "/var/log/app"]).stdin_null()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stdin_null(mut self) -> Self {
        self.input = Input::Null;
        self
    }

    /// Sets how many bytes of stdout, and of stderr, are collected: 64 MiB by default. A command that writes more is killed, and
    /// [`Error::OutputLimit`] is returned. A streamed command has no limit.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.exec_with("dmesg", |o| o.output_limit(1 << 20)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }
}

/// A command: a program with arguments, or a line for the guest's `/bin/sh`.
pub(crate) enum Line {
    Program(OsString),
    Shell(OsString),
}

/// An msb-exec that was started, and the file into which it writes how the command ended.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) status: MemoryFile,
    /// Read by msb-exec when it starts, so it lives as long as this.
    pub(crate) _env: Option<MemoryFile>,
}

/// Starts msb-exec.
///
/// # Errors
/// [`Error::NoTool`], [`Error::Io`].
pub(crate) fn start(vm: &str, line: &Line, options: &ExecOptions) -> Result<Started, Error> {
    let failed = |error| Error::Io { tool: TOOL, error };
    let status = MemoryFile::new(b"").map_err(failed)?;
    let mut command = tool::command(TOOL)?;
    command.args(["-q", "-r", vm, "--json-status"]).arg(status.path());
    command.arg(if options.tty { "-t" } else { "-T" });
    let env = set_variables(&mut command, &options.env).map_err(failed)?;
    if let Some(dir) = &options.workdir {
        command.arg(flag("--workdir=", dir));
    }
    if let Some(user) = &options.user {
        command.arg(flag("--user=", user));
    }
    if let Some(timeout) = options.timeout {
        command.arg(format!("--timeout={}ms", timeout.as_millis()));
    }
    command.args(options.rlimits.iter().map(|limit| format!("--rlimit={limit}")));
    if options.input == Input::Null {
        command.arg("-n").stdin(Stdio::null());
    } else {
        command.stdin(Stdio::piped());
    }
    match line {
        Line::Program(program) => command.arg("--").arg(program),
        Line::Shell(script) => command.arg(flag("--shell=", script)).arg("--"),
    };
    command.args(&options.args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(failed)?;
    Ok(Started { child, status, _env: env })
}

fn flag(name: &str, value: &OsStr) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(value);
    flag
}

/// Passes variables to msb-exec in a file. A line of it cannot hold a newline or end in CR, so such a value goes through
/// the environment of msb-exec.
fn set_variables(command: &mut Command, env: &[(OsString, OsString)]) -> io::Result<Option<MemoryFile>> {
    let mut lines = Vec::new();
    for (name, value) in env {
        // Another name could define more than one variable, or take a value from the host.
        let bytes = name.as_bytes();
        if bytes.is_empty()
            || bytes.trim_ascii() != bytes
            || bytes[0] == b'#'
            || bytes.iter().any(|byte| b"=\n\0".contains(byte))
        {
            return Err(io::Error::other(format!("env: {name:?} is not the name of a variable")));
        }
        if value.as_bytes().contains(&b'\n') || value.as_bytes().ends_with(b"\r") {
            command.env(name, value).arg(flag("--env=", name));
        } else {
            lines.extend([name.as_bytes(), b"=", value.as_bytes(), b"\n"].concat());
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let file = MemoryFile::new(&lines)?;
    command.arg("--env-file").arg(file.path());
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_variables_are_not_on_the_command_line() {
        let mut command = Command::new("msb-exec");
        let env = [("A", "secret=1"), ("KEY", "-----BEGIN\nsecret\n"), ("B", "")]
            .map(|(name, value)| (name.into(), value.into()));
        let file = set_variables(&mut command, &env).unwrap().unwrap();
        let args: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert_eq!(args, ["--env=KEY", "--env-file", file.path().to_str().unwrap()]);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"A=secret=1\nB=\n");
        assert!(set_variables(&mut command, &[]).unwrap().is_none());
        for name in ["", "A=B", "A\nHOME", "#A", " A", "A\0"] {
            assert!(set_variables(&mut command, &[(name.into(), "".into())]).is_err(), "{name:?}");
        }
    }
}
