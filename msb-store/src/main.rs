//! Shows and cleans the store: images, layers, EROFS images, sandboxes, disks, snapshots and volumes.
//!
//! Imports run one way: from the actions ([`ls`], [`rm`], [`gc`], [`check`], [`du`]) to [`collect`], to [`inventory`], to what is
//! in the store.

mod args;
mod check;
mod collect;
mod document;
mod du;
mod gc;
mod image;
mod inventory;
mod ls;
mod page;
mod rm;
mod sandbox;
mod size;
mod vm;

use std::process::ExitCode;

use msb::{tool::cli, tool::exit, tool::start, tool::user_namespace};

use args::{Action, Args, Config};

fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report_of_store("msb-store", exit::FAILED, run(args))
}

fn run(args: Args) -> anyhow::Result<u8> {
    user_namespace::enter_store()?;
    let config = Config::try_from(args)?;
    msb::overlay::raise_open_files();
    match &config.action {
        Action::Ls => ls::run(&config).map(|()| 0),
        Action::Rm => rm::run(&config),
        Action::Gc => gc::run(&config).map(|()| 0),
        Action::Check => check::run(&config),
        Action::Du => du::run(&config).map(|()| 0),
    }
}
