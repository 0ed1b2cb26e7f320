//! msb-fork: copies of a running VM. It starts msb-snapshot, an msb-boot for each copy, and msb-store to remove the snapshot.

mod args;
mod page;

use std::io::Write;
use std::process::{Child, ExitCode, Stdio};
use std::thread::available_parallelism;

use msb::record::{Record, RestartPolicy};
use msb::{tool::cli, tool::exit, tool::line, tool::start};

use crate::children::Children;
use crate::plan::Stage;
use crate::stages::{finish, shielded, spawn, stage};
use args::Args;
use page::PAGE;

const TOOL: &str = "msb-fork";

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let record = args.record.take(args.vm.as_deref())?;
    let prefix = args.name.clone().map_or_else(|| Ok(record.vm()?.name.clone()), Ok::<_, anyhow::Error>)?;
    let names: Vec<String> = (1..=args.count).map(|number| format!("{prefix}-{number}")).collect();
    let children = Children::new(TOOL)?;
    let save = Stage::new("msb-snapshot", ["-q", "-r", "-"]);
    let saved = match stage(&save, Stdio::piped(), serde_json::to_vec(&record)?, &children)? {
        Ok(saved) => saved,
        Err(_) => return Ok(children.exit_code(exit::FAILED)),
    };
    let digest = saved.snapshot.as_ref().map(|snapshot| snapshot.digest.clone()).unwrap_or_default();
    let record = serde_json::to_vec(&of_copies(saved))?;
    let mut copies = Vec::new();
    let start = |name: &str| start(args, name, &record, &children);
    let printed = start_all(&names, start, &children, &mut copies).and_then(|is_complete| {
        if !is_complete || children.first_signal().is_some() {
            return Ok(false);
        }
        line::put_bytes(&copies.iter().flat_map(|(_, record)| record.clone()).collect::<Vec<u8>>())?;
        Ok(children.first_signal().is_none())
    });
    let ended = match printed {
        Ok(true) => Ok(()),
        // msb-fork has failed or got a signal, perhaps after it printed the records.
        _ => end_all(&copies),
    };
    shielded(&Stage::new("msb-store", ["rm", "-f", "-t", "snapshot", &digest]))?;
    let is_done = printed?;
    ended?;
    Ok(if is_done { 0 } else { children.exit_code(exit::FAILED) })
}

/// A copy that is up: its name, and its record as a line.
type Booted = (String, Vec<u8>);

/// The record that the copies start from: that of the VM without its hostname, log, ports, restart policy and commit.
fn of_copies(mut record: Record) -> Record {
    if let Some(boot) = &mut record.boot {
        (boot.hostname, boot.kernel_log) = (None, None);
        boot.network.ports.clear();
        (boot.restart, boot.commit_on_stop) = (RestartPolicy::No, false);
    }
    record
}

/// Starts a copy.
fn start(args: &Args, name: &str, record: &[u8], children: &Children) -> anyhow::Result<(Stage, Child)> {
    let flags = ["--new-machine-id"].into_iter().filter(|_| args.new_machine_id);
    let boot = Stage::new("msb-boot", ["-q", "-r", "-", "--name", name]).and(flags);
    let mut child = spawn(&boot, Stdio::piped(), Stdio::piped(), children)?;
    // Written before the next one is started, so that all of them boot at the same time.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(record);
    }
    Ok((boot, child))
}

/// Starts the copies, as many at a time as there are processors. Adds those that are up to `copies`, also if it fails, and returns
/// whether these are all.
fn start_all(
    names: &[String],
    start: impl Fn(&str) -> anyhow::Result<(Stage, Child)>,
    children: &Children,
    copies: &mut Vec<Booted>,
) -> anyhow::Result<bool> {
    for names in names.chunks(available_parallelism()?.get()) {
        if children.first_signal().is_some() {
            return Ok(false);
        }
        let mut booting = Vec::new();
        let mut result: anyhow::Result<()> = names.iter().try_for_each(|name| {
            booting.push((name, start(name)?));
            Ok(())
        });
        let mut is_complete = true;
        for (name, (boot, mut child)) in booting {
            match finish(&boot, &mut child, Vec::new(), children) {
                Ok(Ok(record)) => copies.push((name.clone(), record)),
                Ok(Err(_)) => is_complete = false,
                Err(error) => result = result.and(Err(error)),
            }
        }
        children.forget();
        result?;
        if !is_complete {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ends copies that are up. Their disks have no names. A disk with the name of a copy is that of another VM, which is stopped.
fn end_all(copies: &[Booted]) -> anyhow::Result<()> {
    if !copies.is_empty() {
        shielded(&Stage::new("msb-stop", ["-q", "-t", "0"]).and(copies.iter().map(|(name, _)| name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_copies_that_are_up_are_known_when_another_one_cannot_be_started() {
        let start = |name: &str| {
            anyhow::ensure!(name != "base-2", "no process");
            let child = Command::new("sh").args(["-c", "echo record"]).stdout(Stdio::piped()).spawn()?;
            Ok((Stage::new("sh", [name]), child))
        };
        let names = ["base-1", "base-2"].map(str::to_owned);
        let (children, mut copies) = (Children::new(TOOL).unwrap(), Vec::new());
        assert_eq!(start_all(&names, start, &children, &mut copies).unwrap_err().to_string(), "no process");
        assert_eq!(copies, [("base-1".to_owned(), b"record\n".to_vec())]);
    }
}
