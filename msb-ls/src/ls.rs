//! msb-ls: lists VMs.

use std::process::ExitCode;

use clap::Parser;
use msb::tool::man::{self, Page};
use msb::{tool::cli, tool::exit, tool::line, tool::start, tool::table};

use crate::survey::{self, Vm};

const PAGE: Page = Page {
    operands: "[NAME...]",
    forms: &[],
    notes: &[("Members", members)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_HOME, man::MSB_RUN],
    files: &[
        ("/run/msb/NAME", "The run directory of the VM NAME"),
        ("$MSB_HOME/sandboxes/NAME", "The scratch disk of the VM NAME"),
    ],
    examples: &[
        ("running VMs", "msb-ls"),
        ("the names of all VMs, also of those that are stopped", "msb-ls -a --json | jq -r .name"),
    ],
    see_also: &["msb(1)", "msb-run(1)", "msb-stats(1)", "msb-rm(1)", "msb-boot(1)", "msb-stop(1)"],
};

fn members() -> String {
    "The members of a line of JSON are name, state (starting, running, restarting,
stopping, dead or stopped), reason, image, vmm, root, init, cpus, memory_mib,
age_s, ports, pid and dir. One that is not known is null. A dead VM has ended, and
msb-stop has not cleaned up after it; reason says how it ended. A stopped VM is a
disk that the next VM of that name uses."
        .into()
}

/// List microVMs
///
/// Lists this user's VMs, also those that have ended by themselves, with the reason. On a terminal it prints a table, otherwise a
/// line of JSON for each VM.
#[derive(Debug, Parser)]
#[command(name = "msb-ls", version, after_help = PAGE.help())]
struct Args {
    /// Also list VMs with a name that are stopped and have a disk
    #[arg(short, long)]
    all: bool,

    /// Print JSON on a terminal too
    #[arg(long)]
    json: bool,

    /// List these VMs only
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report("msb-ls", exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let mut vms = survey::vms(args.all || !args.names.is_empty())?;
    if !args.names.is_empty() {
        vms.retain(|vm| args.names.contains(&vm.name));
        if let Some(missing) = args.names.iter().find(|name| vms.iter().all(|vm| vm.name != **name)) {
            anyhow::bail!("{missing:?}: no VM of that name (msb-ls -a lists all)");
        }
    }
    if table::is_wanted(args.json) {
        let rows: Vec<_> = vms.iter().map(row).collect();
        table::print(["NAME", "IMAGE", "VMM", "STATE", "AGE", "MEMORY", "PORTS"], &rows)?;
    } else {
        vms.iter().try_for_each(line::put)?;
    }
    Ok(0)
}

fn row(vm: &Vm) -> [String; 7] {
    let state = match &vm.reason {
        Some(reason) => format!("{}: {reason}", vm.state.name()),
        None => vm.state.name().to_owned(),
    };
    let ports = vm.ports.iter().map(|port| {
        let protocol = if port.protocol == "tcp" { String::new() } else { format!("/{}", port.protocol) };
        format!("{}:{}{protocol}", port.host, port.guest)
    });
    [
        vm.name.clone(),
        table::cell(vm.image.clone()),
        table::cell(vm.vmm.clone()),
        state,
        table::cell(vm.age_s.map(table::duration)),
        table::cell(vm.memory_mib.map(|mib| table::size(u64::from(mib) << 20))),
        table::cell(Some(ports.collect::<Vec<_>>().join(","))),
    ]
}
