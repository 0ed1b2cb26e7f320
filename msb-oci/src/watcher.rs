//! The process that ends a container's VM when the process that stands for the container has ended, whatever ended it.

use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::{inherited, tool};

pub(crate) const ROLE: &str = "--as-watcher";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    /// What ends when the process does.
    pub alive: RawFd,
    /// The VM's record.
    pub record: PathBuf,
}

pub(crate) fn run(description: Description) -> ExitCode {
    let _ = rustix::process::setsid();
    let Ok(alive) = inherited::take(description.alive) else { return ExitCode::FAILURE };
    let _ = File::from(alive).read(&mut [0]);
    let Ok(mut stop) = tool::command("msb-stop") else { return ExitCode::FAILURE };
    stop.arg("-t").arg("1").arg("-r").arg(&description.record);
    let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ExitCode::SUCCESS
}
