//! The caretaker: a second process of msb-run, which cleans up if msb-run is killed. It waits for the end of a pipe whose other end
//! msb-run holds, and with it the tools that make the VM, so that none of them is at work any more when the caretaker begins.

use std::io::{self, BufRead, PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::plan::Stage;
use crate::programs;

/// The argument that starts this program as a caretaker.
pub const ROLE: &str = "--as-caretaker";

/// A running caretaker. It does what it was told last when this process ends, however it ends.
#[derive(Debug)]
pub struct Caretaker {
    orders: PipeWriter,
    process: Child,
}

impl Caretaker {
    /// Starts a caretaker without orders.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start() -> anyhow::Result<Self> {
        let (reader, orders) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        // A terminal's signals go to a process group, and this process is in another one.
        command.arg0("msb-run").arg(ROLE).process_group(0);
        let process = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("caretaker")?;
        Ok(Self { orders, process })
    }

    /// Tells it what to run at the end, in place of what it was told before.
    ///
    /// # Errors
    /// None if the caretaker is gone: this process cleans up by itself, too.
    pub fn order(&mut self, stages: &[&Stage]) -> io::Result<()> {
        let words = |stage: &&Stage| {
            let args = stage.args.iter().map(|arg| arg.to_string_lossy().into_owned());
            [stage.tool.to_owned()].into_iter().chain(args).collect::<Vec<_>>()
        };
        let mut line = serde_json::to_vec(&stages.iter().map(words).collect::<Vec<_>>())?;
        line.push(b'\n');
        match self.orders.write_all(&line) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether processes that are started from now on hold the pipe: the caretaker then also waits for their end.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn share(&self, shared: bool) -> io::Result<()> {
        Ok(fcntl_setfd(&self.orders, if shared { FdFlags::empty() } else { FdFlags::CLOEXEC })?)
    }

    /// Ends it without doing anything.
    ///
    /// # Errors
    /// As for [`Self::order`].
    pub fn dismiss(mut self) -> io::Result<()> {
        self.order(&[])?;
        drop(self.orders);
        self.process.wait().map(drop)
    }
}

/// The role's main.
pub fn main() -> ExitCode {
    let blocked: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    let _ = blocked.thread_block();
    let mut orders: Vec<Vec<String>> = Vec::new();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        orders = serde_json::from_str(&line).unwrap_or_default();
    }
    for order in orders {
        let Some((tool, args)) = order.split_first() else { continue };
        let Ok(mut command) = programs::command(tool) else { continue };
        let _ = command.args(args).stdin(Stdio::null()).status();
    }
    ExitCode::SUCCESS
}
