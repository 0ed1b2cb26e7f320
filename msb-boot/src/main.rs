//! msb-boot: boot a microVM from a record.
//!
//! One program in three roles. Called by a person it checks everything, starts the supervisor, prints the record when
//! the agent is ready, and ends. The supervisor stays as long as the VM. What it starts, it starts through this program
//! again, so that nothing outlives it.

mod args;
mod block;
mod bootshare;
mod cell;
mod config;
mod defaults;
mod disk;
mod elf;
mod failed;
mod follow;
mod kernel;
mod krun;
mod launch;
mod page;
mod probe;
mod programs;
mod qemu;
mod request;
mod respawn;
mod supervise;
mod vmm;

use std::process::ExitCode;

use msb::{tool::cli, tool::exit, tool::interrupt, tool::line, tool::start};

use respawn::Role;

/// The tool's name in its words.
const TOOL: &str = "msb-boot";

fn main() -> ExitCode {
    match respawn::role() {
        Some(Role::Supervise) => supervise::main(),
        Some(Role::Tied(cell, words)) => respawn::become_program(&cell, &words),
        Some(Role::Enter(vm)) => vmm::enter(&vm),
        None => {
            start::signals();
            let args: args::Args = cli::parse(&page::PAGE, exit::USAGE);
            exit::report(TOOL, exit::FAILED, run(&args))
        }
    }
}

fn run(args: &args::Args) -> anyhow::Result<u8> {
    if args.probe {
        let probe = probe::Probe::run(config::vmm_choice(args.vmm)?);
        line::put(&probe)?;
        return Ok(if probe.is_good() { 0 } else { exit::FAILED });
    }
    args.output.check()?;
    let record = args.record.take(TOOL)?;
    let guard = interrupt::Guard::new(TOOL)?;
    let config = config::Config::check(args, record)?;
    interrupt::check()?;
    drop(guard);
    launch::launch(&config, &args.output, args.foreground)
}
