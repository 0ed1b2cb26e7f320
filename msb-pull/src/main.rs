//! Fetches an image, unpacks its layers into the store, and prints the record that the next stage reads.

mod archive;
mod args;
mod budget;
mod chunks;
mod compression;
mod decompressor;
mod directories;
mod disk;
mod docker;
mod endpoints;
mod fetch;
mod foreign;
mod frames;
mod image;
mod implied;
mod layer;
mod layout;
mod lower_link;
mod manifest;
mod names;
mod page;
mod platform;
mod progress;
mod pull;
mod registry;
mod root;
mod source;
mod stack;
mod store;
mod tree;
mod unpack;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use args::{Args, Config};
use msb::jail;
use msb::record::{Record, Rootfs};
use msb::store::erofs::Mkfs;
use msb::{store::home, tool::cli, tool::exit, tool::interrupt, tool::start, tool::user_namespace};

fn main() -> ExitCode {
    if decompressor::is_role() {
        return decompressor::run();
    }
    if let Some(failure) = jail::process::enter_if_jailed() {
        return failure;
    }
    start::signals();
    let args: Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report("msb-pull", exit::FAILED, run(args))
}

fn run(args: Args) -> anyhow::Result<u8> {
    let output = args.output.clone();
    let config = Config::try_from(args)?;
    output.check()?;
    if !matches!(config.source, source::Source::Path(_)) {
        user_namespace::enter()?;
        user_namespace::keep_map()?;
    }
    let _guard = interrupt::Guard::with_message(
        "msb-pull",
        "interrupted (the layers that are complete are kept; run it again to fetch the rest)",
    )?;
    msb::overlay::raise_open_files();
    let record = pull::pull(&config)?;
    if config.erofs {
        make_image(&record)?;
    }
    output.put(&record, || summary(&record))?;
    Ok(0)
}

/// The line that a terminal gets instead of the record.
fn summary(record: &Record) -> String {
    let name = record.image.as_ref().map_or("", |image| &image.reference);
    match &record.rootfs {
        Some(Rootfs::Layers { lower, .. }) if lower.len() == 1 => format!("{name}: 1 layer"),
        Some(Rootfs::Layers { lower, .. }) => format!("{name}: {} layers", lower.len()),
        Some(Rootfs::Dir { lower, .. }) => format!("{}: a directory", lower[0].display()),
        Some(Rootfs::Disk { path, format, .. }) => format!("{}: a {format} disk", path.display()),
        None => String::new(),
    }
}

/// Makes the EROFS images that the first boot would make, if the record has layers of the store.
fn make_image(record: &Record) -> anyhow::Result<()> {
    let Some(Rootfs::Layers { lower, .. }) = &record.rootfs else {
        anyhow::bail!("--erofs: only layers have an image that is kept (leave it out)");
    };
    let mkfs = Mkfs::find()?;
    // As many as a VM under QEMU has room for, with patches, a scratch disk and a network.
    let parts = mkfs.parts(&home::home()?, lower, 2).context("--erofs: the layers are not in the store")?;
    parts.iter().try_for_each(|part| mkfs.kept(part, |_| {}).map(drop))?;
    Ok(())
}
