//! `msb-mount`: a record's layers as one tree on the host.

mod access;
mod args;
mod attr;
mod background;
mod caller;
mod command;
mod config;
mod descriptors;
mod fs;
mod inode;
mod leaf;
mod listing;
mod lock;
mod mountpoint;
mod number;
mod options;
mod page;
mod reopen;
mod reply;
mod serve;
mod tree;

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use msb::{tool::exit, tool::interrupt, tool::start};

use args::Args;
use command::InRoot;
use config::Config;
use options::Options;

fn main() -> ExitCode {
    start::signals();
    match Options::of(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(None) => {}
        Ok(Some(options)) => return exit::report_of_store("msb-mount", exit::FAILED, mount(&options)),
        Err(error) => return exit::report("msb-mount", exit::USAGE, Err(error)),
    }
    let args: Args = msb::tool::cli::parse(&page::PAGE, exit::USAGE);
    let failed = if args.command.is_empty() { exit::FAILED } else { exit::TOOL_FAILED };
    exit::report_of_store("msb-mount", failed, run(&args))
}

/// Mounts the layers that mount options name.
fn mount(options: &Options) -> anyhow::Result<u8> {
    require_root()?;
    let line = [OsStr::new("msb-mount")].into_iter().chain(options.flags.iter().map(OsStr::new));
    let args = Args::try_parse_from(line.chain([options.target.as_os_str()]))?;
    let _guard = interrupt::Guard::new("msb-mount")?;
    let (config, begun) = Config::with_record(options.record()?, &args)?;
    background::start(&config, None, begun)
}

fn require_root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root: the layers hold files of many owners (run it with sudo)");
    }
    msb::tool::capability::check_sys_admin().context("cannot mount")
}

fn run(args: &Args) -> anyhow::Result<u8> {
    if args.unmount {
        let path = args.mountpoint.as_deref().context("no mount point")?;
        mountpoint::unmount(path)?;
        return Ok(0);
    }
    require_root()?;
    if args.serve {
        if let Some(parent) = args.with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            // The signal does not come for a parent that has ended before.
            if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
                bail!("the process that wanted the mount has ended");
            }
        }
        start::close_inherited(&[])?;
        let config = Config::received(args)?;
        return background::serve(&config);
    }
    if !args.command.is_empty() {
        let program = InRoot { line: &args.command, is_in_place: args.in_place };
        if args.enter {
            return command::enter(args.mountpoint.as_deref().context("no root")?, &program);
        }
        command::unshare_mounts()?;
        let guard = interrupt::Guard::new("msb-mount")?;
        let (config, begun) = Config::new(args)?;
        return command::run(&config, &program, &args.output, guard, begun);
    }
    let _guard = if args.foreground { None } else { Some(interrupt::Guard::new("msb-mount")?) };
    let (config, begun) = Config::new(args)?;
    if args.foreground {
        begun.finish();
        let mounted = || config.mounted(rustix::process::getpid());
        serve::run(&config, || Ok(args.output.put(&mounted(), || config.summary())?))?;
        return Ok(0);
    }
    background::start(&config, Some(&args.output), begun)
}
