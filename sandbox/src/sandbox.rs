//! A handle to a running sandbox.

use std::ffi::OsStr;
use std::future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::error::Error;
use crate::exec::{ExecOptions, Input, Line, TOOL};
use crate::keeper::Keeper;
use crate::output::Output;
use crate::process::Process;
use crate::tool::{self, Finished, Running};

/// A running sandbox: a microVM, by its name. See the [crate] for what dropping it does.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    /// The record of the VM that this program has created; empty for one that it has found.
    record: Vec<u8>,
    warnings: Vec<String>,
    /// The names in the store of what only this sandbox has.
    made: Vec<String>,
    /// For an ephemeral sandbox.
    keeper: Mutex<Option<Keeper>>,
}

impl Sandbox {
    pub(crate) fn new(
        name: String,
        record: Vec<u8>,
        warnings: Vec<String>,
        made: Vec<String>,
        keeper: Option<Keeper>,
    ) -> Self {
        Self { name, record, warnings, made, keeper: Mutex::new(keeper) }
    }

    /// Finds a running sandbox by its name, also one that another program or msb-boot has started. Its agent must answer.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Sandbox;
    ///
    /// let sb = Sandbox::get("worker").await?;
    /// sb.shell("uptime").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tool`] with the reason if there is no such sandbox.
    pub async fn get(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        tool::run(TOOL, ["-q", "-r", &name, "--list"], &[]).await?;
        Ok(Self::new(name, Vec::new(), Vec::new(), Vec::new(), None))
    }

    /// Its name.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// println!("msb-exec {} -- sh", sb.name());
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the tools warned about while the sandbox was created, such as a boot without KVM.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// for warning in sb.warnings() {
    ///     eprintln!("{warning}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Runs a command to its end, and returns its status and output. Its stdin is empty.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let output = sb.exec("python3", ["-c", "print(6 * 7)"]).await?;
    /// assert_eq!(output.stdout()?, "42\n");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotStarted`] for a program that the guest does not have; [`Error::OutputLimit`]; [`Error::Tool`] if the VM is gone, for
    /// example. A command that fails is not an error: see [`Output::status`].
    pub async fn exec(
        &self,
        command: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Output, Error> {
        self.exec_with(command, |options| options.args(args)).await
    }

    /// As [`Sandbox::exec`], with options.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// use std::time::Duration;
    ///
    /// let output = sb
    ///     .exec_with("make", |o| o.args(["check"]).workdir("/src").env("CI", "1").timeout(Duration::from_secs(600)))
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn exec_with(
        &self,
        command: impl AsRef<OsStr>,
        options: impl FnOnce(ExecOptions) -> ExecOptions,
    ) -> Result<Output, Error> {
        self.run(Line::Program(command.as_ref().to_owned()), options(ExecOptions::new(Input::Null))).await
    }

    /// Starts a command and returns its streams.
    ///
    /// ```no_run
    /// use tokio::io::{AsyncBufReadExt, BufReader};
    ///
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut process = sb.exec_stream("apt-get", ["update"]).await?;
    /// let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{line}");
    /// }
    /// process.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoTool`], [`Error::Io`]. Whether the command could be started is said by [`Process::wait`].
    pub async fn exec_stream(
        &self,
        command: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Process, Error> {
        self.exec_stream_with(command, |options| options.args(args)).await
    }

    /// As [`Sandbox::exec_stream`], with options.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let process = sb.exec_stream_with("cat", |o| o.user("nobody").stdin_bytes("text")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec_stream`].
    pub async fn exec_stream_with(
        &self,
        command: impl AsRef<OsStr>,
        options: impl FnOnce(ExecOptions) -> ExecOptions,
    ) -> Result<Process, Error> {
        self.stream(Line::Program(command.as_ref().to_owned()), options(ExecOptions::new(Input::Pipe)))
    }

    /// Runs a line with the guest's `/bin/sh`, such as the name of a script.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.shell("setup").await?;
    /// let count = sb.shell("ls /etc | wc -l").await?.stdout()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell(&self, script: impl AsRef<OsStr>) -> Result<Output, Error> {
        self.shell_with(script, |options| options).await
    }

    /// As [`Sandbox::shell`], with options. Arguments are the shell's `$0`, `$1` and so on.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.shell_with("git clone \"$1\"", |o| o.args(["sh", "https://example.org/x.git"]).workdir("/src")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell_with(
        &self,
        script: impl AsRef<OsStr>,
        options: impl FnOnce(ExecOptions) -> ExecOptions,
    ) -> Result<Output, Error> {
        self.run(Line::Shell(script.as_ref().to_owned()), options(ExecOptions::new(Input::Null))).await
    }

    /// Starts a line with the guest's `/bin/sh` and returns its streams.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let mut shell = sb.shell_stream("while read line; do echo \"got $line\"; done").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec_stream`].
    pub async fn shell_stream(&self, script: impl AsRef<OsStr>) -> Result<Process, Error> {
        self.shell_stream_with(script, |options| options).await
    }

    /// As [`Sandbox::shell_stream`], with options.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let mut shell = sb.shell_stream_with("make 2>&1", |o| o.workdir("/src")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::exec_stream`].
    pub async fn shell_stream_with(
        &self,
        script: impl AsRef<OsStr>,
        options: impl FnOnce(ExecOptions) -> ExecOptions,
    ) -> Result<Process, Error> {
        self.stream(Line::Shell(script.as_ref().to_owned()), options(ExecOptions::new(Input::Pipe)))
    }

    async fn run(&self, line: Line, options: ExecOptions) -> Result<Output, Error> {
        let process = Process::start(&self.name, &line, &options)?;
        let input = if let Input::Bytes(bytes) = &options.input { bytes.as_slice() } else { &[] };
        process.collect(input, options.limit).await
    }

    fn stream(&self, line: Line, options: ExecOptions) -> Result<Process, Error> {
        let mut process = Process::start(&self.name, &line, &options)?;
        if let Input::Bytes(bytes) = options.input
            && let Some(mut stdin) = process.stdin.take()
        {
            // A command may end without reading its stdin.
            tokio::spawn(async move { stdin.write_all(&bytes).await });
        }
        Ok(process)
    }

    /// Asks the guest to stop, and waits until the VM is gone. What the guest has written stays on the disk of that name, and the next
    /// sandbox of the name has it.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.stop().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tool`] if there is no such VM, or if it had not stopped after ten seconds and was killed.
    pub async fn stop(&self) -> Result<(), Error> {
        self.end(None).await?.answer().map(drop)
    }

    /// As [`Sandbox::stop`], with the time that the guest may take.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// use std::time::Duration;
    ///
    /// sb.stop_within(Duration::from_secs(60)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn stop_within(&self, time: Duration) -> Result<(), Error> {
        self.end(Some(time)).await?.answer().map(drop)
    }

    /// Kills the VM. What the guest has not written back is lost.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.kill().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tool`] if there is no such VM.
    pub async fn kill(&self) -> Result<(), Error> {
        let ended = self.end(Some(Duration::ZERO)).await?;
        // msb-stop fails if it had to kill a VM, which is what was asked for. It prints the record of a VM that is gone.
        if ended.stdout.is_empty() { ended.answer().map(drop) } else { Ok(()) }
    }

    /// Runs msb-stop, which goes on if this future is dropped.
    async fn end(&self, time: Option<Duration>) -> Result<Finished, Error> {
        const TOOL: &str = "msb-stop";
        let mut command = tool::command(TOOL)?;
        command.kill_on_drop(false).arg("-q");
        if let Some(time) = time {
            command.arg(format!("--time={}ms", time.as_millis()));
        }
        command.args(["-r", if self.record.is_empty() { &self.name } else { "-" }]);
        // A task goes on, so msb-stop gets its whole record.
        let record = self.record.clone();
        let run = async move { Running::start(TOOL, command, &record)?.finish(future::pending()).await };
        let ended = tokio::spawn(run).await.map_err(|_| Error::ShuttingDown)??;
        if !ended.stdout.is_empty() && self.dismiss_keeper() {
            tool::remove(&[], &self.made).await?;
        }
        Ok(ended)
    }

    /// Kills the VM, and removes what is kept of it: its disk and its patches.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// sb.remove().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::kill`], and [`Error::Tool`] with the reason of msb-rm.
    pub async fn remove(self) -> Result<(), Error> {
        self.kill().await?;
        let mut names = self.made.clone();
        names.push(self.name.clone());
        names.dedup();
        tool::remove(&["--ignore"], &names).await
    }

    /// Leaves an ephemeral sandbox running when this handle is dropped.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// if !sb.shell("./test").await?.status().success() {
    ///     sb.detach();
    ///     println!("look into it: msb-exec {} -- sh", sb.name());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn detach(&self) {
        self.dismiss_keeper();
    }

    /// Whether there was one.
    fn dismiss_keeper(&self) -> bool {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        keeper.map(Keeper::dismiss).is_some()
    }
}
