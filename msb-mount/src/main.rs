//! `msb-mount`: a record's layers as one tree on the host.

mod access;
mod args;
mod attr;
mod background;
mod caller;
mod config;
mod descriptors;
mod fs;
mod inode;
mod leaf;
mod listing;
mod lock;
mod mountpoint;
mod number;
mod page;
mod reopen;
mod reply;
mod serve;
mod tree;

use std::process::ExitCode;

use anyhow::{Context, bail};
use msb::{tool::exit, tool::interrupt, tool::start};

use args::Args;
use config::Config;

fn main() -> ExitCode {
    start::signals();
    let args: Args = msb::tool::cli::parse(&page::PAGE, exit::USAGE);
    exit::report_of_store("msb-mount", exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    if args.unmount {
        let path = args.mountpoint.as_deref().context("no mount point")?;
        mountpoint::unmount(path)?;
        return Ok(0);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root: the layers hold files of many owners (run it with sudo)");
    }
    msb::tool::capability::check_sys_admin().context("cannot mount")?;
    if args.serve {
        start::close_inherited(&[])?;
        let config = Config::received(args)?;
        return background::serve(&config);
    }
    let _guard = if args.foreground { None } else { Some(interrupt::Guard::new("msb-mount")?) };
    let (config, begun) = Config::new(args)?;
    if args.foreground {
        begun.finish();
        let mounted = || config.mounted(rustix::process::getpid());
        serve::run(&config, || Ok(args.output.put(&mounted(), || config.summary())?))?;
        return Ok(0);
    }
    background::start(&config, &args.output, begun)
}
