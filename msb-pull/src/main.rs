//! Fetches an image, unpacks its layers into the store, and prints the record that the next stage reads.

mod archive;
mod args;
mod chunks;
mod credentials;
mod digest;
mod disk;
mod docker;
mod gc;
mod image;
mod implied;
mod layer;
mod layout;
mod manifest;
mod pax;
mod place;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod store;
mod tape;
mod unpack;

use std::process::ExitCode;

use anyhow::Context;
use args::{Args, Config};
use msb::erofs::{self, Mkfs};
use msb::record::{Record, Rootfs};
use msb::{cli, exit, line, state};

fn main() -> ExitCode {
    let args: Args = cli::parse(exit::USAGE);
    exit::report("msb-pull", exit::FAILED, run(args))
}

fn run(args: Args) -> anyhow::Result<u8> {
    if args.gc {
        gc::run(args.dry_run)?;
        return Ok(0);
    }
    let config = Config::try_from(args)?;
    msb::overlay::raise_open_files();
    let record = pull::pull(&config)?;
    if config.erofs {
        make_image(&record)?;
    }
    line::put(&record)?;
    Ok(0)
}

/// Makes the image that a VM would, where the record has layers of the store's.
fn make_image(record: &Record) -> anyhow::Result<()> {
    let Some(Rootfs::Layers { lower, .. }) = &record.rootfs else {
        anyhow::bail!("--erofs: only layers have an image that is kept (leave it out)");
    };
    let chain_id = erofs::chain_id(&state::home()?, lower).context("--erofs: the layers are not in the store")?;
    Mkfs::find()?.kept(&chain_id, lower, |_| {}).map(drop)
}
