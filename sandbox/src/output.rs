//! How a command ended, and what it wrote.

use std::process;

use serde::Deserialize;

use crate::error::Error;
use crate::memory_file::MemoryFile;
use crate::tool;

/// How a command in the guest ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitStatus {
    code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
}

impl ExitStatus {
    /// Whether it exited with 0.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let is_installed = sb.shell("command -v git").await?.status().success();
    /// # Ok(())
    /// # }
    /// ```
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// Its exit status; `None` if a signal ended it.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// assert_eq!(sb.shell("exit 7").await?.status().code(), Some(7));
    /// # Ok(())
    /// # }
    /// ```
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The number of the signal that ended it.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// assert_eq!(sb.shell("kill -9 $$").await?.status().signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// Whether it was ended because its time was over.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// use std::time::Duration;
    ///
    /// let output = sb.exec_with("sleep", |o| o.args(["60"]).timeout(Duration::from_secs(1))).await?;
    /// assert!(output.status().timed_out());
    /// # Ok(())
    /// # }
    /// ```
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// How a command ended whose msb-exec was ended by a signal.
    pub(crate) fn of_signal(signal: i32) -> Self {
        Self { code: None, signal: Some(signal), timed_out: false }
    }
}

/// What `msb-exec --json-status` writes.
#[derive(Debug, Deserialize)]
struct Status {
    status: i32,
    error: Option<String>,
    exit: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    timed_out: bool,
}

/// The exit statuses of msb-exec for a command that was not started.
const NOT_STARTED: [i32; 2] = [126, 127];

/// Reads how a command ended from the status file and the end of msb-exec, which said `message` if it failed before it could write
/// the file.
///
/// # Errors
/// [`Error::NotStarted`]; [`Error::Tool`] for a VM that is gone, for example.
pub(crate) fn status(file: &MemoryFile, ended: process::ExitStatus, message: &str) -> Result<ExitStatus, Error> {
    const TOOL: &str = "msb-exec";
    let text = file.read().map_err(|error| Error::Io { tool: TOOL, error })?;
    if text.is_empty() {
        return Err(tool::failure(TOOL, ended, message.trim()));
    }
    let status: Status = serde_json::from_slice(&text)
        .map_err(|error| Error::NotUnderstood { tool: TOOL, reason: format!("its status: {error}") })?;
    match status.error {
        Some(message) if NOT_STARTED.contains(&status.status) => {
            Err(Error::NotStarted { code: status.status, message: format!("{TOOL}: {message}") })
        }
        Some(message) => {
            Err(Error::Tool { tool: TOOL, status: Some(status.status), message: format!("{TOOL}: {message}") })
        }
        None => Ok(ExitStatus { code: status.exit, signal: status.signal, timed_out: status.timed_out }),
    }
}

/// The result of a command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    pub(crate) fn new(status: ExitStatus, stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        Self { status, stdout, stderr }
    }

    /// How the command ended. A command that fails is not an error of [`Sandbox::exec`](crate::Sandbox::exec).
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let output = sb.exec("grep", ["root", "/etc/passwd"]).await?;
    /// assert!(output.status().success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// What it wrote to stdout.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let kernel = sb.exec("uname", ["-r"]).await?.stdout()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotUtf8`].
    pub fn stdout(&self) -> Result<String, Error> {
        Ok(String::from_utf8(self.stdout.clone())?)
    }

    /// What it wrote to stderr.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let complaint = sb.exec("ls", ["/no/such/file"]).await?.stderr()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotUtf8`].
    pub fn stderr(&self) -> Result<String, Error> {
        Ok(String::from_utf8(self.stderr.clone())?)
    }

    /// What it wrote to stdout, as bytes.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let archive = sb.exec("tar", ["-C", "/srv", "-c", "."]).await?;
    /// std::fs::write("srv.tar", archive.stdout_bytes())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// What it wrote to stderr, as bytes.
    ///
    /// ```no_run
    /// # async fn example(sb: msb_sandbox::Sandbox) -> Result<(), msb_sandbox::Error> {
    /// let output = sb.shell("make 2>&1 >/dev/null").await?;
    /// eprintln!("{}", String::from_utf8_lossy(output.stderr_bytes()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn read(text: &str, message: &str) -> Result<ExitStatus, Error> {
        let file = MemoryFile::new(text.as_bytes()).unwrap();
        status(&file, process::ExitStatus::from_raw(125 << 8), message)
    }

    #[test]
    fn the_status_is_that_of_the_command() {
        let exit = read(r#"{"status":7,"exit":7,"signal":null,"timed_out":false,"wall_ms":1.5}"#, "").unwrap();
        assert_eq!((exit.code(), exit.success()), (Some(7), false));
        let exit = read(r#"{"status":0,"exit":0,"signal":null,"timed_out":false}"#, "").unwrap();
        assert!(exit.success());
        let exit = read(r#"{"status":137,"exit":null,"signal":9,"timed_out":false}"#, "").unwrap();
        assert_eq!((exit.code(), exit.signal()), (None, Some(9)));
        let exit = read(r#"{"status":124,"exit":0,"signal":null,"timed_out":true}"#, "").unwrap();
        assert!(exit.timed_out() && !exit.success());
    }

    #[test]
    fn a_failure_of_msb_exec_is_an_error_with_its_message() {
        let error = read(r#"{"status":127,"error":"\"no\": not found"}"#, "").unwrap_err();
        assert!(matches!(&error, Error::NotStarted { code: 127, .. }), "{error:?}");
        assert_eq!(error.to_string(), r#"msb-exec: "no": not found"#);
        let error = read(r#"{"status":125,"error":"vm \"worker\": it is gone"}"#, "").unwrap_err();
        assert!(matches!(&error, Error::Tool { status: Some(125), .. }), "{error:?}");
        assert_eq!(read("", "msb-exec: no record\n").unwrap_err().to_string(), "msb-exec: no record");
        assert!(matches!(read("{", ""), Err(Error::NotUnderstood { .. })));
    }
}
