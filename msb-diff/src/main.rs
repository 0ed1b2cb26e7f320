//! msb-diff: shows what an upper changes, or one record against another, and which layer a path is from.

mod args;
mod compare;
mod difference;
mod history;
mod output;
mod page;
mod which;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use msb::overlay::upper::recover;
use msb::overlay::{Merged, raise_open_files};
use msb::record::{Record, Rootfs};
use msb::store::home;
use msb::tool::source::named;
use msb::tool::{cli, exit, interrupt, start, user_namespace};

use args::Args;
use output::Output;

/// The tool's name in messages.
const TOOL: &str = "msb-diff";
/// Differences, or a path that does not exist.
const DIFFERENT: u8 = 1;
/// Trouble, as for diff(1).
const TROUBLE: u8 = 2;

fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report(TOOL, TROUBLE, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    user_namespace::enter_store()?;
    raise_open_files();
    let record = args.record.take(TOOL)?;
    let old = args.old.as_deref().map(named).transpose()?;
    for upper in [Some(&record), old.as_ref()].into_iter().flatten().filter_map(|record| record.upper.as_ref()) {
        recover(&upper.work).with_context(|| format!("upper {:?}", upper.dir))?;
    }
    let lower = lower_of(&record)?;
    let upper = record.upper.as_ref().map(|upper| upper.dir.as_path());
    let now = Merged::open(&lower, upper).context("root")?;
    let has_disk = |record: &Record| record.vm.as_ref().is_some_and(|vm| vm.scratch.is_some());
    if has_disk(&record) || old.as_ref().is_some_and(has_disk) {
        exit::warn(
            TOOL,
            "what the guest has written is on its disk, and not in the upper (msb-stop --commit puts it there)",
        );
    }
    let _guard = interrupt::Guard::new(TOOL)?;
    if !args.which.is_empty() {
        return find(args, &record, &lower, &now);
    }
    let before = match &old {
        Some(old) => Merged::open(&lower_of(old)?, old.upper.as_ref().map(|upper| upper.dir.as_path())),
        None => Merged::open(&lower, None),
    };
    let mut is_different = false;
    let mut output = if args.quiet { None } else { Some(Output::open(args.output.as_deref(), args.json)?) };
    compare::compare(before.context("root to compare with")?, now, &mut |difference| {
        is_different = true;
        let Some(output) = &mut output else { return Ok(false) };
        output.put(&difference, || difference.text())?;
        Ok(true)
    })?;
    if let Some(output) = output {
        output.finish()?;
    }
    Ok(if is_different { DIFFERENT } else { 0 })
}

/// Prints the layer of every path.
fn find(args: &Args, record: &Record, lower: &[PathBuf], root: &Merged) -> anyhow::Result<u8> {
    let history = home::home().map(|home| history::of_layers(&home, record, lower.len())).unwrap_or_default();
    let mut status = 0;
    let mut output = if args.quiet { None } else { Some(Output::open(args.output.as_deref(), args.json)?) };
    for path in &args.which {
        match (which::which(root, record, lower, &history, path)?, &mut output) {
            (None, _) => {
                status = DIFFERENT;
                exit::warn(TOOL, &format!("{path:?}: no such path in the root"));
            }
            (Some(which), Some(output)) => output.put(&which, || which.text())?,
            (Some(_), None) => {}
        }
    }
    if let Some(output) = output {
        output.finish()?;
    }
    Ok(status)
}

/// The lower directories of a record, top first.
fn lower_of(record: &Record) -> anyhow::Result<Vec<PathBuf>> {
    match record.rootfs()? {
        Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => Ok(lower.clone()),
        Rootfs::Disk { format, .. } => {
            bail!("the root is a {format} disk, and only layers and directories are compared")
        }
    }
}
