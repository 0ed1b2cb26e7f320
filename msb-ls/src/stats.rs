//! msb-stats: shows what running VMs use.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use clap::Parser;
use msb::tool::man::{self, Page};
use msb::vm::rundir::Traffic;
use msb::{tool::cli, tool::exit, tool::line, tool::start, tool::table};
use serde::Serialize;

use crate::processes::{self, Usage};
use crate::survey::{self, Vm};

const PAGE: Page = Page {
    operands: "[NAME...]",
    forms: &[],
    notes: &[("Members", members)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_RUN],
    files: &[],
    examples: &[
        ("what the running VMs use", "msb-stats"),
        ("the memory of one VM, in bytes", "msb-stats --json worker | jq .memory"),
    ],
    see_also: &["msb(1)", "msb-ls(1)", "msb-exec(1)"],
};

fn members() -> String {
    "The members of a line of JSON are name, age_s, cpus, cpu_s (seconds on processors),
cpu_percent (the average since the boot, 100 for one processor), memory (bytes of
the host's memory; pages that processes share are divided among them),
memory_limit (bytes that the guest has), disk_read and disk_written (bytes that the
VM's processes moved from and to the host's disks), disk (bytes that the scratch
disk takes, or null), and net_received and net_sent (bytes of the frames that passed to
the guest and from it, or null)."
        .into()
}

/// Show what running microVMs use
///
/// Adds up what all processes of a VM use on the host: the VMM, the servers of its devices and its supervisor. On a terminal it
/// prints a table, otherwise a line of JSON for each VM.
#[derive(Debug, Parser)]
#[command(name = "msb-stats", version, after_help = PAGE.help())]
struct Args {
    /// Print JSON on a terminal too
    #[arg(long)]
    json: bool,

    /// The VMs [default: all that run]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Stats {
    name: String,
    age_s: Option<u64>,
    cpus: Option<u8>,
    cpu_s: f64,
    cpu_percent: Option<f64>,
    memory: u64,
    memory_limit: Option<u64>,
    disk_read: u64,
    disk_written: u64,
    disk: Option<u64>,
    net_received: Option<u64>,
    net_sent: Option<u64>,
}

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report("msb-stats", exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let mut vms = survey::vms(false)?;
    vms.retain(|vm| vm.pid.is_some() && (args.names.is_empty() || args.names.contains(&vm.name)));
    if let Some(missing) = args.names.iter().find(|name| vms.iter().all(|vm| vm.name != **name)) {
        anyhow::bail!("{missing:?}: no VM of that name is running (msb-ls lists those that are)");
    }
    let stats = vms.iter().map(stats);
    if table::is_wanted(args.json) {
        let rows: Vec<_> = stats.map(|stats| row(&stats)).collect();
        table::print(
            ["NAME", "AGE", "CPU", "CPU TIME", "MEMORY", "OF", "DISK READ", "WRITTEN", "SCRATCH DISK", "NET IN", "OUT"],
            &rows,
        )?;
    } else {
        for stats in stats {
            line::put(&stats)?;
        }
    }
    Ok(0)
}

fn stats(vm: &Vm) -> Stats {
    let Usage { cpu_s, memory, disk_read, disk_written } = vm.pid.map(processes::usage).unwrap_or_default();
    let traffic = Traffic::read(&vm.dir);
    let scratch = vm.record.as_ref().and_then(|record| record.vm.as_ref()?.scratch.as_ref()?.path.clone());
    Stats {
        name: vm.name.clone(),
        age_s: vm.age_s,
        cpus: vm.cpus,
        cpu_s,
        cpu_percent: vm.age_s.filter(|&age| age > 0).map(|age| (cpu_s / age as f64 * 1000.0).round() / 10.0),
        memory,
        memory_limit: vm.memory_mib.map(|mib| u64::from(mib) << 20),
        disk_read,
        disk_written,
        disk: scratch.and_then(|path| fs::metadata(path).ok()).map(|meta| meta.blocks() * 512),
        net_received: traffic.map(|traffic| traffic.received_bytes),
        net_sent: traffic.map(|traffic| traffic.sent_bytes),
    }
}

fn row(stats: &Stats) -> [String; 11] {
    [
        stats.name.clone(),
        table::cell(stats.age_s.map(table::duration)),
        table::cell(stats.cpu_percent.map(|percent| format!("{percent:.0}%"))),
        format!("{:.1}s", stats.cpu_s),
        table::size(stats.memory),
        table::cell(stats.memory_limit.map(table::size)),
        table::size(stats.disk_read),
        table::size(stats.disk_written),
        table::cell(stats.disk.map(table::size)),
        table::cell(stats.net_received.map(table::size)),
        table::cell(stats.net_sent.map(table::size)),
    ]
}
