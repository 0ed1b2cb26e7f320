//! The caretaker: a second process of msb-run, which cleans up if msb-run is killed. It waits for the end of a pipe whose other end
//! msb-run holds, and with it the tools that make the VM, so that none of them is at work any more when the caretaker begins. msb-boot
//! writes its record into this pipe, and is done once it is written: there is no moment at which the VM runs and the caretaker does not
//! know.

use std::io::{self, BufRead, PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use msb::record::Record;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};

use crate::plan::Stage;
use crate::programs;

/// The argument that starts this program as a caretaker.
pub const ROLE: &str = "--as-caretaker";

/// What to run at the end: tools, each with its arguments. It replaces what was ordered before.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    run: Vec<Vec<String>>,
    /// The order holds once there is a record of the VM.
    with_record: bool,
}

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
        let mut command = Command::new(msb::program::OWN_EXECUTABLE);
        // A terminal's signals go to a process group, and this process is in another one.
        command.arg0("msb-run").arg(ROLE).process_group(0);
        let process = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("caretaker")?;
        Ok(Self { orders, process })
    }

    /// Tells it what to run at the end, in place of what it was told before.
    ///
    /// # Errors
    /// Those of the pipe. A caretaker that is gone is not an error: this process cleans up by itself, too.
    pub fn order(&mut self, stages: &[&Stage]) -> io::Result<()> {
        self.send(stages, false)
    }

    /// Tells it what to run at the end if [`Self::record`] has got the record of a VM.
    ///
    /// # Errors
    /// As for [`Self::order`].
    pub fn order_with_record(&mut self, stages: &[&Stage]) -> io::Result<()> {
        self.send(stages, true)
    }

    /// Where msb-boot writes the VM's record.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn record(&self) -> io::Result<Stdio> {
        Ok(self.orders.try_clone()?.into())
    }

    fn send(&mut self, stages: &[&Stage], with_record: bool) -> io::Result<()> {
        let words = |stage: &&Stage| {
            let args = stage.args.iter().map(|arg| arg.to_string_lossy().into_owned());
            [stage.tool.to_owned()].into_iter().chain(args).collect::<Vec<_>>()
        };
        let order = Order { run: stages.iter().map(words).collect(), with_record };
        // An msb-boot that was killed may have left the beginning of a record.
        let line = format!("\n{}\n", serde_json::to_string(&order)?);
        match self.orders.write_all(line.as_bytes()) {
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
    for stage in last_order(io::stdin().lock()) {
        let Some((tool, args)) = stage.split_first() else { continue };
        let Ok(mut command) = programs::command(tool) else { continue };
        let _ = command.args(args).stdin(Stdio::null()).status();
    }
    ExitCode::SUCCESS
}

/// Reads orders and records until no process holds the pipe. What the last order that holds says to run.
fn last_order(lines: impl BufRead) -> Vec<Vec<String>> {
    let (mut order, mut with_record) = (Order::default(), None);
    // A record may be cut in the middle of a character, so lines are bytes.
    for line in lines.split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice::<Order>(&line) {
            Ok(new) if new.with_record => with_record = Some(new),
            Ok(new) => (order, with_record) = (new, None),
            Err(_) if Record::parse(&line).is_ok_and(|record| record.vm.is_some()) => {
                order = with_record.take().unwrap_or(order);
            }
            Err(_) => {}
        }
    }
    order.run
}

#[cfg(test)]
mod tests {
    use msb::record::{Endpoint, RootKind, Vm, Vmm};

    use super::*;

    #[test]
    fn a_vm_of_a_chosen_name_is_ended_once_its_record_is_there() {
        let order = |run: &str, with_record| {
            let run = run.split_whitespace().map(|tool| vec![tool.to_owned()]).collect();
            format!("\n{}\n", serde_json::to_string(&Order { run, with_record }).unwrap())
        };
        let endpoint = Endpoint::new("/run/agent.sock".into(), 1024, false);
        let vm = Vm::new("web".into(), 7, Vmm::Qemu, RootKind::Share, endpoint, "/run/kernel.log".into());
        let mut with_vm = Record::new();
        with_vm.vm = Some(vm);
        let record = format!("{}\n", serde_json::to_string(&with_vm).unwrap());
        let half = &record[..record.len() / 2];
        let (early, armed, none) = (order("a", false), order("b", true), order("", false));
        for (lines, expected) in [
            (vec![], vec![]),
            (vec![&*early], vec!["a"]),
            (vec![&early, &record], vec!["a"]),
            (vec![&armed], vec![]),
            (vec![&armed, half], vec![]),
            (vec![&armed, "{}\n"], vec![]),
            (vec![&armed, &record], vec!["b"]),
            (vec![&armed, half, &none], vec![]),
            (vec![&armed, &record, &none], vec![]),
            (vec![&armed, &none, &record], vec![]),
            (vec![&armed, &record, &order("c d", false)], vec!["c", "d"]),
        ] {
            assert_eq!(last_order(lines.concat().as_bytes()).concat(), expected, "{lines:?}");
        }
        let cut = [early.as_bytes(), &b"{\"\xc3"[..], none.as_bytes()].concat();
        assert!(last_order(&*cut).is_empty());
    }
}
