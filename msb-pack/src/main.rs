//! msb-pack: writes a record's root as an image, an archive, a directory or a disk.

mod args;
mod base;
mod compression;
mod digest;
mod directory;
mod disk;
mod docker;
mod document;
mod gzip;
mod hardlinks;
mod inode_times;
mod layer;
mod layout;
mod pack;
mod page;
mod pax;
mod push;
mod registry;
mod root;
mod scripts;
mod staged;
mod tar_out;
mod target;
mod walk;

use std::process::ExitCode;

use msb::jail;
use msb::overlay::raise_open_files;
use msb::record::{Record, ScratchKind};
use msb::tool::{cli, exit, interrupt, start, user_namespace};
use msb::vm::supervisor;

use args::{Args, Config};
use page::TOOL;

fn main() -> ExitCode {
    if let Some(failure) = jail::process::enter_if_jailed() {
        return failure;
    }
    start::signals();
    let args: Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args).map(|()| 0))
}

fn run(args: &Args) -> anyhow::Result<()> {
    raise_open_files();
    let config = args.config()?;
    args.output.check()?;
    if config.targets.iter().any(target::Target::is_disk) {
        user_namespace::enter()?;
    } else {
        user_namespace::enter_store()?;
    }
    let mut record = args.record.take(TOOL)?;
    let scratch = record.vm.as_ref().and_then(|vm| vm.scratch.as_ref());
    let had_disk = scratch.is_some_and(|scratch| scratch.kind == ScratchKind::Disk);
    supervisor::require_ended(&mut record)?;
    if had_disk {
        exit::warn(
            TOOL,
            "what the guest has written is on its disk, and not in the upper (msb-stop --commit puts it there)",
        );
    }
    let _guard = interrupt::Guard::with_message(TOOL, "interrupted (complete targets are kept)")?;
    user_namespace::keep_map()?;
    let packed = pack::pack(&config, record)?;
    if config.targets.iter().any(target::Target::is_stdout) && args.output.output.is_none() {
        return Ok(());
    }
    Ok(args.output.put(&packed, || summary(&config, &packed))?)
}

/// The message for a terminal, instead of the record.
fn summary(config: &Config, record: &Record) -> String {
    let digest = record.image.as_ref().and_then(|image| image.digest.clone());
    match (digest, config.targets.iter().any(target::Target::is_image)) {
        (Some(digest), true) => digest,
        _ => "packed".into(),
    }
}
