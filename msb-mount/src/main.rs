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
mod fusermount;
mod holder;
mod host_ids;
mod kernel;
mod kind;
mod leaf;
mod listing;
mod lock;
mod mountpoint;
mod node;
mod number;
mod options;
mod page;
mod readers;
mod reopen;
mod reply;
mod serve;
mod table;
mod tree;

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use msb::{tool::exit, tool::interrupt, tool::start, tool::user_namespace};

use access::Access;
use args::Args;
use command::InRoot;
use config::Config;
use fusermount::{Fusermount, Mounted};
use kind::Kind;
use options::Options;

fn main() -> ExitCode {
    start::signals();
    match Options::of(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(None) => {}
        Ok(Some(options)) => return exit::report_of_store("msb-mount", exit::FAILED, mount(&options)),
        Err(error) => return exit::report("msb-mount", exit::USAGE, Err(error)),
    }
    let args: Args = msb::tool::cli::parse(&page::PAGE, exit::USAGE);
    if args.command.is_empty() && std::env::args_os().last().is_some_and(|last| last == "--") {
        let message = "no CMD after \"--\" (leave \"--\" out to mount for all processes)";
        return exit::report("msb-mount", exit::USAGE, Err(anyhow::anyhow!(message)));
    }
    let failed = if args.command.is_empty() { exit::FAILED } else { exit::TOOL_FAILED };
    exit::report_of_store("msb-mount", failed, run(&args))
}

/// Mounts the layers that mount options name.
fn mount(options: &Options) -> anyhow::Result<u8> {
    let _ = become_root(None)?;
    let line = [OsStr::new("msb-mount")].into_iter().chain(options.flags.iter().map(OsStr::new));
    let args = Args::try_parse_from(line.chain([options.target.as_os_str()]))?;
    let _guard = interrupt::Guard::new("msb-mount")?;
    let (config, begun) = Config::with_record(options.record()?, &args)?;
    background::start(&config, None, None, begun)
}

/// Makes this process root, of a user namespace if it has to be. A user's mount is then for fusermount3, if `access` says how to mount.
fn become_root(access: Option<&Access>) -> anyhow::Result<Option<Fusermount>> {
    let is_user = !rustix::process::geteuid().is_root();
    let fusermount = access.filter(|_| is_user).map(Fusermount::start).transpose()?;
    user_namespace::enter()?;
    msb::tool::capability::check_sys_admin().context("cannot mount")?;
    Ok(fusermount)
}

fn run(args: &Args) -> anyhow::Result<u8> {
    if args.unmount {
        let path = args.mountpoint.as_deref().context("no mount point")?;
        mountpoint::unmount(path)?;
        return Ok(0);
    }
    if args.serve {
        if let Some(parent) = args.with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            // The signal does not come for a parent that has ended before.
            if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
                bail!("the process that wanted the mount has ended");
            }
        }
        let made = match (args.fuse_device, args.fuse_watcher) {
            (Some(device), Some(watcher)) => Some(Mounted::inherited(device, watcher)?),
            _ => None,
        };
        msb::inherited::close(&made.as_ref().map(Mounted::numbers).unwrap_or_default())?;
        let config = Config::received(args)?;
        return background::serve(&config, made);
    }
    if args.kind == Kind::Overlay && args.command.is_empty() && !rustix::process::geteuid().is_root() {
        let message = "--type overlay takes root, or a CMD (leave it out: msb-mount then mounts through fusermount3)";
        return Err(exit::coded(exit::USAGE, message).into());
    }
    let fusermount = become_root(if args.command.is_empty() { Some(&args.access) } else { None })?;
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
    let (mut config, begun) = Config::new(args)?;
    let made = fusermount.map(|fusermount| {
        config.is_new = mountpoint::make(&config.mountpoint)?;
        fusermount.mount(&config.mountpoint)
    });
    let made = made.transpose().inspect_err(|_| config.undo())?;
    if args.foreground {
        begun.finish();
        let mounted = |fstype: &str| config.mounted(rustix::process::getpid(), fstype);
        serve::run(&config, made, |fstype| Ok(args.output.put(&mounted(fstype), || config.summary())?))?;
        return Ok(0);
    }
    background::start(&config, made, Some(&args.output), begun)
}
