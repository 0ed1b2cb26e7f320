//! msb-stop: end a microVM, and tidy up behind one that has ended.

mod args;
mod commit;
mod unmount;
mod vm;

use std::process::ExitCode;

use msb::record::Record;
use msb::{cli, exit, line};

/// The tool's name in its words.
const TOOL: &str = "msb-stop";

fn main() -> ExitCode {
    let args: args::Args = cli::parse(exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &args::Args) -> anyhow::Result<u8> {
    let mut record = Record::take(args.record.as_deref())?;
    let vm = record.vm()?;
    if args.commit {
        commit::check(vm)?;
    }
    let stopped = vm::stop(vm, args.grace, args.commit)?;
    exit::warn(TOOL, &format!("{}: {}", vm.name, stopped.end));
    let committed = commit::outcome(vm, stopped.committed, args.commit);
    record.vm = None;
    if let Ok(Some(upper)) = &committed {
        record.upper = Some(upper.clone());
    }
    // The VM is gone whether or not the mount goes, so the record is passed on in any case.
    let unmounted = match record.mount.take_if(|_| args.unmount) {
        Some(mount) => unmount::unmount(&mount).inspect_err(|_| record.mount = Some(mount)),
        None => Ok(()),
    };
    line::put(&record)?;
    committed?;
    unmounted.map(|()| 0)
}
