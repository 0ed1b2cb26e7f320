//! msb-oci: an OCI runtime whose containers are microVMs.

mod args;
mod cgroup;
mod command;
mod console;
mod create;
mod delete;
mod exec;
mod freeze;
mod hooks;
mod inherited;
mod iproute;
mod kill;
mod log;
mod macvtap;
mod namespaces;
mod neighbour;
mod net;
mod page;
mod plan;
mod pod;
mod process;
mod role;
mod run;
mod scope;
mod show;
mod spec;
mod stand_in;
mod start;
mod state;
mod time;
mod tool;
mod tree;
mod update;

use std::process::ExitCode;

use anyhow::bail;
use args::Verb;
use msb::tool::{cli, exit};

/// The tool's name in messages.
const TOOL: &str = "msb-oci";

/// The status of a command whose process was killed.
const KILLED: u8 = exit::SIGNAL_BASE + 9;

fn main() -> ExitCode {
    match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(stand_in::ROLE) => return role::run(stand_in::run),
        Some(command::ROLE) => return role::run(command::run),
        _ => {}
    }
    msb::tool::start::signals();
    let args: args::Args = cli::parse(&page::PAGE, exit::USAGE);
    let result = run(&args);
    if let Err(error) = &result {
        log::write(&args.global, "error", &format!("{error:#}"));
    }
    exit::report(TOOL, exit::FAILED, result)
}

fn run(args: &args::Args) -> anyhow::Result<u8> {
    let global = &args.global;
    match &args.verb {
        Verb::Create(create) => create::create(global, create).map(drop)?,
        Verb::Start(start) => start::start(global, &start.id)?,
        Verb::Run(create) => return run::run(global, create),
        Verb::State(state) => show::state(global, &state.id)?,
        Verb::Kill(kill) => kill::kill(global, kill)?,
        Verb::Delete(delete) => delete::delete(global, delete)?,
        Verb::Exec(exec) => return exec::exec(global, exec),
        Verb::Ps(ps) => show::ps(global, ps)?,
        Verb::Pause(pause) => freeze::pause(global, &pause.id)?,
        Verb::Resume(resume) => freeze::resume(global, &resume.id)?,
        Verb::Update(update) => update::update(global, update)?,
        Verb::List(list) => show::list(global, list)?,
        Verb::Spec(spec) => spec::spec(spec)?,
        Verb::Features => spec::features()?,
        Verb::Checkpoint(_) | Verb::Restore(_) => {
            bail!(
                "checkpoint: the state of a VM cannot be written to files that another runtime reads (stop the container)"
            )
        }
        Verb::Events(_) => bail!("events: this runtime has none (read the files of the container's cgroup)"),
    }
    Ok(0)
}
