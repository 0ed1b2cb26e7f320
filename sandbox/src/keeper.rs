//! Ends a VM together with a value of this process.
//!
//! A shell waits for the end of its stdin, a pipe from this process, and then stops the VM. The kernel closes the pipe when the value is
//! dropped, and also when this process ends in any other way.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use msb::record::Record;

use crate::error::Error;
use crate::tool;

/// The record comes through the pipe, so the VM is the one that it describes and not a later one of the same name.
const SCRIPT: &str = r#"record=$(cat); printf '%s\n' "$record" | "$0" -q -t 0 -r -; [ $# = 0 ] || exec "$@""#;

/// Kills a VM when it is dropped.
#[derive(Debug)]
pub(crate) struct Keeper(Option<Child>);

impl Keeper {
    /// Starts the shell. At the end it also removes the sandboxes of the store with the names of `remove`.
    ///
    /// # Errors
    /// [`Error::NoTool`], and [`Error::Io`] if it cannot be started.
    pub(crate) fn start(record: &Record, remove: &[String]) -> Result<Self, Error> {
        let stop = tool::find("msb-stop")?;
        let rm = if remove.is_empty() { None } else { Some(tool::find("msb-rm")?) };
        let start = || -> io::Result<Child> {
            let mut shell = Command::new("/bin/sh");
            // A signal of the terminal is for the process group of the caller, and must not end this shell.
            shell.args(["-c", SCRIPT]).arg(&stop).current_dir("/").process_group(0).env_remove("MSB_RECORD");
            if let Some(rm) = &rm {
                shell.arg(rm).args(remove);
            }
            let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            if let Some(stdin) = &mut shell.stdin {
                stdin.write_all(&serde_json::to_vec(record)?)?;
            }
            Ok(shell)
        };
        Ok(Self(Some(start().map_err(|error| Error::Io { tool: "msb-stop", error })?)))
    }

    /// Leaves the VM running, or to what has stopped it.
    pub(crate) fn dismiss(mut self) {
        if let Some(mut shell) = self.0.take() {
            let _ = shell.kill();
            let _ = shell.wait();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut shell) = self.0.take() {
            drop(shell.stdin.take());
            thread::spawn(move || shell.wait());
        }
    }
}
