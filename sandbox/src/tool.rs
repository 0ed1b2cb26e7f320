//! The tools of msb: where they are, and how one runs to its end.

use std::ffi::OsStr;
use std::future::{self, Future};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::Error;

/// The variable that names the directory of the tools.
const VARIABLE: &str = "MSB_BIN";
/// The longest record, in bytes.
const MAX_STDOUT: usize = 16 << 20;
/// How much is kept of a tool's messages, in bytes.
const MAX_STDERR: usize = 16 << 10;

/// Finds a tool: in `$MSB_BIN` if that is set, else beside the running program, else on PATH. Relative directories on PATH are skipped.
///
/// # Errors
/// [`Error::NoTool`].
pub(crate) fn find(tool: &'static str) -> Result<PathBuf, Error> {
    let (dirs, place) = match std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
        Some(dir) => (vec![PathBuf::from(&dir)], format!("in ${VARIABLE}, {dir:?}")),
        None => {
            let program = std::env::current_exe().ok();
            let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
            (beside.into_iter().chain(on_path).collect(), "beside this program or on PATH".to_owned())
        }
    };
    let found = dirs.iter().map(|dir| dir.join(tool)).find(|file| is_executable(file));
    let found = found.and_then(|file| std::path::absolute(file).ok());
    found.ok_or(Error::NoTool { tool, place })
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A tool to start, which is killed when it is dropped. `$MSB_RECORD` is of no use to it: its record is named.
///
/// # Errors
/// [`Error::NoTool`].
pub(crate) fn command(tool: &'static str) -> Result<Command, Error> {
    let mut command = Command::new(find(tool)?);
    command.env_remove("MSB_RECORD").kill_on_drop(true);
    Ok(command)
}

/// What a tool that succeeded has printed.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its stdout.
    pub(crate) stdout: Vec<u8>,
    /// The lines of its stderr: warnings.
    pub(crate) warnings: Vec<String>,
}

/// A tool that runs, with its record.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    tool: &'static str,
    child: Child,
    input: &'a [u8],
}

impl<'a> Running<'a> {
    /// Starts a tool that reads `input` from its stdin.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn start(tool: &'static str, mut command: Command, input: &'a [u8]) -> Result<Self, Error> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| Error::Io { tool, error })?;
        Ok(Self { tool, child, input })
    }

    /// Waits for its end. When `cancelled` is ready, the tool is killed; what it had printed is returned all the same.
    ///
    /// # Errors
    /// [`Error::Io`] if its output cannot be read.
    pub(crate) async fn finish(mut self, cancelled: impl Future<Output = ()>) -> Result<Finished, Error> {
        let (stdin, stdout, stderr) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let wait = async {
            tokio::select! {
                status = self.child.wait() => status,
                () = cancelled => {
                    self.child.start_kill()?;
                    self.child.wait().await
                }
            }
        };
        let give = async {
            if let Some(mut stdin) = stdin {
                // A tool that does not read its input says why on stderr.
                let _ = stdin.write_all(self.input).await;
            }
            Ok(())
        };
        let ((), stdout, stderr, status) =
            tokio::try_join!(give, read(stdout, MAX_STDOUT), read_tail(stderr, MAX_STDERR), wait)
                .map_err(|error| Error::Io { tool: self.tool, error })?;
        Ok(Finished { tool: self.tool, status, stdout, stderr })
    }
}

/// A tool that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    tool: &'static str,
    /// How it ended.
    status: ExitStatus,
    /// What it printed.
    pub(crate) stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Finished {
    /// What it printed, if it succeeded.
    ///
    /// # Errors
    /// [`Error::Tool`].
    pub(crate) fn answer(self) -> Result<Answer, Error> {
        let text = String::from_utf8_lossy(&self.stderr);
        if !self.status.success() {
            return Err(failure(self.tool, self.status, text.trim()));
        }
        let warnings = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Ok(Answer { stdout: self.stdout, warnings })
    }
}

/// The error of a tool that has failed with this message.
pub(crate) fn failure(tool: &'static str, status: ExitStatus, message: &str) -> Error {
    let message = match (message.is_empty(), status.code(), status.signal()) {
        (false, ..) => message.to_owned(),
        (true, Some(code), _) => format!("{tool}: exit status {code}, and no message"),
        (true, None, Some(signal)) => format!("{tool}: signal {signal} ended it"),
        (true, None, None) => format!("{tool}: it failed without a message"),
    };
    Error::Tool { tool, status: status.code(), message }
}

/// Runs a tool to its end with `input` on its stdin. It is killed if the future is dropped.
///
/// # Errors
/// See [`Error`].
pub(crate) async fn run(
    tool: &'static str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &[u8],
) -> Result<Answer, Error> {
    let mut command = command(tool)?;
    command.args(args);
    Running::start(tool, command, input)?.finish(future::pending()).await?.answer()
}

/// Removes sandboxes from the store: disks and uppers.
///
/// # Errors
/// See [`Error`].
pub(crate) async fn remove(flags: &[&str], names: &[String]) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let args = flags.iter().copied().chain(names.iter().map(String::as_str));
    run("msb-rm", args, &[]).await.map(drop)
}

/// Reads a stream to its end.
///
/// # Errors
/// Those of the stream, and `FileTooLarge` for a longer one.
pub(crate) async fn read(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let Some(stream) = stream else { return Ok(text) };
    let limit = limit as u64;
    let got = stream.take(limit.saturating_add(1)).read_to_end(&mut text).await?;
    if got as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it printed more than {limit} bytes")));
    }
    Ok(text)
}

/// Reads a stream to its end, and returns the last `limit` bytes.
async fn read_tail(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let mut tail = Vec::new();
    let Some(mut stream) = stream else { return Ok(tail) };
    while stream.read_buf(&mut tail).await? > 0 {
        if tail.len() > 2 * limit {
            tail.drain(..tail.len() - limit);
        }
    }
    tail.drain(..tail.len().saturating_sub(limit));
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_bounded() {
        assert_eq!(read(Some(&b"abcd"[..]), 4).await.unwrap(), b"abcd");
        assert_eq!(read(Some(&b"abcde"[..]), 4).await.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let long: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        assert_eq!(read_tail(Some(&long[..]), 1000).await.unwrap(), long[99_000..]);
        assert_eq!(read_tail(Some(&b"short"[..]), 1000).await.unwrap(), b"short");
    }

    #[test]
    fn an_error_has_the_tools_message_or_its_status() {
        let text = |status, message| failure("msb-boot", ExitStatus::from_raw(status), message).to_string();
        assert_eq!(text(1 << 8, "msb-boot: no"), "msb-boot: no");
        assert_eq!(text(3 << 8, ""), "msb-boot: exit status 3, and no message");
        assert_eq!(text(9, ""), "msb-boot: signal 9 ended it");
    }
}
