//! msb-boot: boot a microVM from a record.
//!
//! One program in several roles. When a user calls it, it is the client: it checks everything, starts the supervisor, prints the record
//! when the agent has reported, and exits. The supervisor runs as long as the VM. It starts the VM's processes through this program, so
//! that the kernel kills them when it dies.
//!
//! Imports run one way: from the client and the roles to the supervisor, the configuration, the VMMs and their helper processes, the parts
//! of a VM, and the jail.

mod agent;
mod args;
mod block;
mod cgroup;
mod channel;
mod client;
mod config;
mod defaults;
mod disk;
mod granted;
mod guest_files;
mod guest_memory;
mod helper_process;
mod inherited_fd;
mod initramfs;
mod jail;
mod kernel;
mod krun;
mod limit_args;
mod log;
mod network;
mod network_args;
mod notice;
mod page;
mod probe;
mod processes;
mod program;
mod qemu;
mod request;
mod resolv_conf;
mod role;
mod root;
mod root_choice;
mod rotated;
mod saved;
mod supervisor;
mod tsc;
mod unusable;
mod vm;
mod vmm;
mod volume;
mod volume_args;

use std::process::ExitCode;

use msb::{tool::cli, tool::exit, tool::line, tool::start, tool::user_namespace};

use notice::TOOL;
use role::Role;

fn main() -> ExitCode {
    if let Some(failure) = msb::jail::process::enter_if_jailed() {
        return failure;
    }
    match role::role() {
        Some(Role::Supervisor(fds)) => supervisor::main(&fds),
        Some(Role::Vmm(description)) => vmm::any::run(&description),
        Some(Role::Channel(description)) => channel::run(&description),
        Some(Role::Gate(description)) => network::gate::run(&description),
        Some(Role::Relay(description)) => network::relay::run(&description),
        Some(Role::Resolver(description)) => network::resolver::run(&description),
        None => {
            start::signals();
            let args: args::Args = cli::parse(&page::PAGE, exit::USAGE);
            exit::report_of_store(TOOL, exit::FAILED, run(&args))
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
    user_namespace::enter()?;
    let record = args.record.take(TOOL)?;
    let config = config::Config::check(args, record)?;
    if args.dry_run {
        return Ok(0);
    }
    user_namespace::keep_map()?;
    client::boot(&config, &args.output, args.foreground)
}
