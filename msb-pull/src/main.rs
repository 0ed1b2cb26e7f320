//! Fetches an image, unpacks its layers into the store, and prints the record that the next stage reads.

mod archive;
mod args;
mod chunks;
mod credentials;
mod digest;
mod disk;
mod docker;
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

use args::{Args, Config};
use msb::{cli, exit, line};

fn main() -> ExitCode {
    let args: Args = cli::parse(exit::USAGE);
    exit::report("msb-pull", exit::FAILED, run(args))
}

fn run(args: Args) -> anyhow::Result<u8> {
    let config = Config::try_from(args)?;
    msb::overlay::raise_open_files();
    line::put(&pull::pull(&config)?)?;
    Ok(0)
}
