//! msb-cp: copies files and trees between the host and a running microVM.
//!
//! The rules are in [`msb::transfer`], which agentd uses too. This program has the command line, the connection, and tar archives.

mod args;
mod guest;
mod page;
mod tar_in;
mod tar_out;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use msb::overlay::beneath::Dir;
use msb::overlay::raise_open_files;
use msb::tool::source::VmRecord;
use msb::tool::{cli, exit, start};
use msb::transfer::receive::{self, Received, Rules};
use msb::transfer::send;
use msb::wire::Message;
use msb::wire::copy::{Get, Put};
use msb::wire::exec::Text;

use args::{Args, Place};
use guest::Guest;

/// The tool's name in messages.
const TOOL: &str = "msb-cp";

fn main() -> ExitCode {
    start::signals();
    // Each level of a tree takes descriptors.
    raise_open_files();
    let args: Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    match (&args.source, &args.target) {
        (Place::Guest { vm, path }, Place::Guest { vm: other, path: to }) => {
            let why =
                format!("both sides are in VMs (use \"{TOOL} {vm}:{} - | {TOOL} - {other}:{}\")", show(path), show(to));
            Err(exit::coded(exit::USAGE, why).into())
        }
        (Place::Guest { vm, path }, target) => get(args, vm, path, target),
        (source, Place::Guest { vm, path }) => put(args, source, vm, path),
        _ => Err(exit::coded(exit::USAGE, "no side is in a VM (one of them is VM:PATH)").into()),
    }
}

fn show(path: &OsString) -> String {
    path.to_string_lossy().into_owned()
}

/// Copies out of the guest.
fn get(args: &Args, vm: &str, path: &OsString, target: &Place) -> anyhow::Result<u8> {
    if matches!(target, Place::Stream) && io::IsTerminal::is_terminal(&io::stdout()) {
        return Err(exit::coded(exit::USAGE, "stdout is a terminal (redirect the archive)").into());
    }
    let record = VmRecord::default().take(Some(vm))?;
    let request = Message::Get(Get { path: Text::from(path.as_os_str()), follow: args.follow_link });
    let mut guest = Guest::connect(record.vm()?, &request)?;
    guest.grant();
    // The guest does not choose the name.
    let (name, contents) = send::name_of(Path::new(path));
    match target {
        Place::Local(to) => {
            // A guest must not decide about privileges on the host.
            let rules = Rules { archive: args.archive, devices: false, privileges: args.archive };
            let received = receive::receive(&mut guest, &root()?, &absolute(to)?, Some(&name), contents, rules)?;
            warn_of_devices(args, received);
        }
        _ => tar_out::write(&mut guest, &name, contents, io::stdout().lock())?,
    }
    Ok(0)
}

fn warn_of_devices(args: &Args, received: Received) {
    if received.devices_left_out > 0 && !args.quiet {
        exit::warn(TOOL, &format!("{} device nodes of the guest were left out", received.devices_left_out));
    }
}

/// Copies into the guest.
fn put(args: &Args, source: &Place, vm: &str, path: &OsString) -> anyhow::Result<u8> {
    let source = match source {
        Place::Local(from) => {
            let opened = root().and_then(|root| Ok(send::open(&root, &absolute(from)?, args.follow_link)?));
            Some(opened.with_context(|| format!("{from:?}"))?)
        }
        _ if io::IsTerminal::is_terminal(&io::stdin()) => {
            return Err(exit::coded(exit::USAGE, "stdin is a terminal (an archive is expected)").into());
        }
        _ => None,
    };
    let record = VmRecord::default().take(Some(vm))?;
    let request = Put {
        path: Text::from(path.as_os_str()),
        contents: source.as_ref().is_none_or(|source| source.contents),
        archive: args.archive,
    };
    let mut guest = Guest::connect(record.vm()?, &Message::Put(request))?;
    let sent = match source {
        Some(source) => send::send(&mut guest, source).map_err(Into::into),
        None => tar_in::send(&mut guest, io::stdin().lock()),
    };
    // The reason that the guest gives explains a broken connection.
    match (sent, guest.failure()) {
        (_, Some(failure)) => Err(anyhow!(failure)),
        (Err(error), None) => Err(error),
        (Ok(()), None) => Ok(guest.finish().map(|()| 0)?),
    }
}

fn root() -> anyhow::Result<Dir> {
    Ok(Dir::open(Path::new("/"))?)
}

/// The absolute form of a path, with a `/.` at its end kept.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let mut absolute = std::env::current_dir()?.into_os_string();
    absolute.push("/");
    absolute.push(path);
    Ok(absolute.into())
}
