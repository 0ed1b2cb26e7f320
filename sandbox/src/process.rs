//! A command that runs in the guest, with its streams.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use crate::error::Error;
use crate::exec::{ExecOptions, Input, Line, Started, TOOL};
use crate::memory_file::MemoryFile;
use crate::output::{ExitStatus, Output, status};
use crate::{exec, tool};

/// A signal for a command in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGHUP
    Hup,
    /// SIGINT
    Int,
    /// SIGQUIT
    Quit,
    /// SIGTERM
    Term,
    /// SIGUSR1
    Usr1,
    /// SIGUSR2
    Usr2,
}

/// A running command. When it is dropped, the command is killed with all that it has started.
///
/// Its streams implement tokio's `AsyncRead` and `AsyncWrite`. The command stalls while its output is not read.
///
/// ```no_run
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut cat = sb.exec_stream("cat", [""; 0]).await?;
/// let mut stdin = cat.stdin.take().unwrap();
/// stdin.write_all(b"bytes in").await?;
/// drop(stdin);
/// let mut text = String::new();
/// cat.stdout.take().unwrap().read_to_string(&mut text).await?;
/// assert_eq!(text, "bytes in");
/// assert!(cat.wait().await?.success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Process {
    /// Its stdin, unless it has none. The command sees end-of-file when this is dropped.
    pub stdin: Option<ChildStdin>,
    /// Its stdout.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, and the messages of msb-exec.
    pub stderr: Option<ChildStderr>,
    child: Child,
    status: MemoryFile,
    _env: Option<MemoryFile>,
    /// The signals that were sent, a bit for the number of each.
    sent: AtomicU32,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// [`Error::NoTool`], [`Error::Io`].
    pub(crate) fn start(vm: &str, line: &Line, options: &ExecOptions) -> Result<Self, Error> {
        let Started { mut child, status, _env } = exec::start(vm, line, options)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok(Self { stdin, stdout, stderr, child, status, _env, sent: AtomicU32::new(0) })
    }

    /// Closes stdin and waits for the command's end.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let mut build = sb.shell_stream("make > build.log 2>&1").await?;
    /// println!("{:?}", build.wait().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotStarted`] for a program that the guest does not have; [`Error::Tool`] if the VM is gone, for example.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        let ended = self.child.wait().await.map_err(failed)?;
        self.status(ended, "msb-exec failed (its message is in the stream stderr)")
    }

    fn status(&self, ended: process::ExitStatus, message: &str) -> Result<ExitStatus, Error> {
        let sent = self.sent.load(Ordering::Relaxed);
        match (status(&self.status, ended, message), ended.signal()) {
            // It ended msb-exec, before that could forward it. The command has ended with it, or was not started.
            (Err(Error::Tool { status: None, .. }), Some(signal)) if sent & bit(signal) != 0 => {
                Ok(ExitStatus::of_signal(signal))
            }
            (result, _) => result,
        }
    }

    /// Sends a signal to the command's process group.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Signal;
    ///
    /// let mut server = sb.exec_stream("nginx", ["-g", "daemon off;"]).await?;
    /// server.signal(Signal::Hup)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if the command has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        let signal = match signal {
            Signal::Hup => rustix::process::Signal::HUP,
            Signal::Int => rustix::process::Signal::INT,
            Signal::Quit => rustix::process::Signal::QUIT,
            Signal::Term => rustix::process::Signal::TERM,
            Signal::Usr1 => rustix::process::Signal::USR1,
            Signal::Usr2 => rustix::process::Signal::USR2,
        };
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        // Until it is waited for, the process ID of msb-exec is not used again.
        let pid = pid.ok_or_else(|| failed(io::Error::other("the command has ended")))?;
        self.sent.fetch_or(bit(signal.as_raw()), Ordering::Relaxed);
        kill_process(pid, signal).map_err(|error| failed(error.into()))
    }

    /// Kills the command and all that it has started, and waits until msb-exec has ended.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let mut sleep = sb.exec_stream("sleep", ["600"]).await?;
    /// sleep.kill().await?;
    /// assert_eq!(sleep.wait().await?.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.sent.fetch_or(bit(rustix::process::Signal::KILL.as_raw()), Ordering::Relaxed);
        self.child.kill().await.map_err(failed)
    }

    /// Closes stdin, waits for the command's end, and returns what it wrote to the streams that were not taken.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let build = sb.exec_stream("make", ["-j2"]).await?;
    /// let output = build.wait_with_output().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Process::wait`], and [`Error::OutputLimit`] after 64 MiB.
    pub async fn wait_with_output(self) -> Result<Output, Error> {
        self.collect(&[], ExecOptions::new(Input::Null).limit).await
    }

    /// Runs the command to its end, and collects at most `limit` bytes of each stream.
    pub(crate) async fn collect(mut self, input: &[u8], limit: usize) -> Result<Output, Error> {
        let (stdin, stdout, stderr) = (self.stdin.take(), self.stdout.take(), self.stderr.take());
        let give = async {
            if let Some(mut stdin) = stdin {
                // A command may end without reading its stdin.
                let _ = stdin.write_all(input).await;
            }
            Ok(())
        };
        let read = tokio::try_join!(give, tool::read(stdout, limit), tool::read(stderr, limit), self.child.wait());
        let ((), stdout, stderr, ended) = read.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Error::OutputLimit { limit },
            _ => failed(error),
        })?;
        let status = self.status(ended, &String::from_utf8_lossy(&stderr))?;
        Ok(Output::new(status, stdout, stderr))
    }
}

/// The bit of a signal with a number below 32, as those have that this sends.
fn bit(signal: i32) -> u32 {
    1u32.checked_shl(signal.unsigned_abs()).unwrap_or(0)
}

fn failed(error: io::Error) -> Error {
    Error::Io { tool: TOOL, error }
}
