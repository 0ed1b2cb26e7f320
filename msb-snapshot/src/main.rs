//! msb-snapshot: saves a running microVM. The VM's supervisor writes the files, which only it can do at one moment of the guest; this
//! tool gives them a place in the store, describes them, and makes them visible.

mod args;
mod check;
mod page;
mod save;
mod stop;

use std::process::ExitCode;

use anyhow::{Context, bail};
use msb::record::Snapshot;
use msb::store::home;
use msb::tool::{cli, exit, interrupt, start, user_namespace};
use msb::vm::supervisor;

/// The tool's name in messages.
const TOOL: &str = "msb-snapshot";

fn main() -> ExitCode {
    start::signals();
    let args: args::Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report_of_store(TOOL, exit::FAILED, run(&args))
}

fn run(args: &args::Args) -> anyhow::Result<u8> {
    args.output.check()?;
    user_namespace::enter()?;
    let mut record = args.record.take(args.name.as_deref())?;
    let vm = record.vm()?.clone();
    let dir = check::run_dir(&vm)?;
    let process = supervisor::find(&vm).context("supervisor")?;
    let process = process.with_context(|| format!("{}: it does not run (boot it again)", vm.name))?;
    check::can_be_saved(&vm, record.boot.as_ref()).with_context(|| vm.name.clone())?;
    if args.stop && record.boot.as_ref().is_some_and(|boot| boot.commit_on_stop) {
        bail!("{0}: --stop commits nothing, and it has --commit-on-stop (save it, then \"msb-stop {0}\")", vm.name);
    }
    let _guard = interrupt::Guard::new(TOOL)?;
    record.vm = None;
    record.snapshot = None;
    let saved = save::save(&home::home()?, &dir, &record, args.stop).with_context(|| vm.name.clone())?;
    if args.stop {
        stop::stop(&dir, &process).with_context(|| format!("{}: saved, and not stopped", vm.name))?;
    }
    let end = if args.stop { ", and stopped".to_owned() } else { format!(", paused for {} ms", saved.paused_ms) };
    args.output.say(TOOL, &format!("{}: saved{end}", vm.name));
    record.snapshot = Some(Snapshot::new(saved.path.clone(), saved.digest));
    args.output.put(&record, || format!("{}: saved in {}", vm.name, saved.path.display()))?;
    Ok(0)
}
