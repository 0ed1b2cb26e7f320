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
    let children = Children::new()?;
    let save = Stage::new("msb-snapshot", ["-q", "-r", "-"]);
    let saved = match stage(&save, Stdio::piped(), serde_json::to_vec(&record)?, &children)? {
        Ok(saved) => saved,
        Err(_) => return Ok(failed(&children)),
    };
    let digest = saved.snapshot.as_ref().map(|snapshot| snapshot.digest.clone()).unwrap_or_default();
    let copies = start_all(args, &names, &serde_json::to_vec(&of_copies(saved))?, &children);
    let code = copies.and_then(|(copies, is_complete)| {
        let printed = match is_complete && children.first_signal().is_none() {
            true => line::put_bytes(&copies.iter().flat_map(|(_, record)| record.clone()).collect::<Vec<u8>>()),
            false => Ok(()),
        };
        if is_complete && printed.is_ok() && children.first_signal().is_none() {
            return Ok(0);
        }
        // Nobody would know of them.
        end_all(&copies)?;
        printed?;
        Ok(failed(&children))
    });
    shielded(&Stage::new("msb-store", ["rm", "-f", "-t", "snapshot", &digest]))?;
    code
}

/// A copy that is up: its name, and its record as a line.
type Booted = (String, Vec<u8>);

/// The record that copies start from: that of the VM, without what only one VM can have.
fn of_copies(mut record: Record) -> Record {
    if let Some(boot) = &mut record.boot {
        (boot.hostname, boot.kernel_log) = (None, None);
        boot.network.ports.clear();
        (boot.restart, boot.commit_on_stop) = (RestartPolicy::No, false);
    }
    record
}

/// Starts the copies, as many at a time as there are processors. Returns those that are up, and whether these are all.
fn start_all(args: &Args, names: &[String], record: &[u8], children: &Children) -> anyhow::Result<(Vec<Booted>, bool)> {
    let (mut copies, mut is_complete) = (Vec::new(), true);
    for names in names.chunks(available_parallelism()?.get()) {
        if children.first_signal().is_some() {
            return Ok((copies, false));
        }
        let mut booting: Vec<(String, Stage, Child)> = Vec::new();
        for name in names {
            let flags = ["--new-machine-id"].into_iter().filter(|_| args.new_machine_id);
            let boot = Stage::new("msb-boot", ["-q", "-r", "-", "--name", name]).and(flags);
            let mut child = spawn(&boot, Stdio::piped(), Stdio::piped(), children)?;
            // All of them read at the same time.
            if let Some(mut stdin) = child.stdin.take() {
                let _ = stdin.write_all(record);
            }
            booting.push((name.clone(), boot, child));
        }
        for (name, boot, mut child) in booting {
            match finish(&boot, &mut child, Vec::new())? {
                Ok(record) => copies.push((name, record)),
                Err(_) => is_complete = false,
            }
        }
        children.forget();
        if !is_complete {
            return Ok((copies, false));
        }
    }
    Ok((copies, true))
}

/// Ends copies that are up. Their disks have no names. A disk with the name of a copy is that of another VM, which is stopped.
fn end_all(copies: &[Booted]) -> anyhow::Result<()> {
    if !copies.is_empty() {
        shielded(&Stage::new("msb-stop", ["-q", "-t", "0"]).and(copies.iter().map(|(name, _)| name)))?;
    }
    Ok(())
}

/// The exit code after a tool that has failed and has said why.
fn failed(children: &Children) -> u8 {
    children.first_signal().map_or(exit::FAILED, |signal| exit::SIGNAL_BASE.saturating_add(signal))
}
