//! msb-stop: stops a microVM, and cleans up after one that has ended.

mod args;
mod commit;
mod page;
mod unmount;
mod vm;

use std::process::ExitCode;

use anyhow::bail;
use msb::record::Record;
use msb::tool::source::{self, SourceError};
use msb::vm::supervisor::{self, vm_names};
use msb::{tool::cli, tool::exit, tool::start};

/// The tool's name in messages.
const TOOL: &str = "msb-stop";

fn main() -> ExitCode {
    start::signals();
    let args: args::Args = cli::parse(&page::PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &args::Args) -> anyhow::Result<u8> {
    args.output.check()?;
    if args.names.len() > 1 && args.output.output.is_some() {
        return Err(exit::coded(exit::USAGE, "-o is for the record of one VM (leave it out, or name one VM)").into());
    }
    let Some((last, names)) = args.names.split_last() else { return stop_record(args, args.record.take(None)) };
    // A VM that cannot be stopped must not keep the others running.
    let mut code = 0;
    for name in names {
        code = stop_record(args, source::named(name)).map_or_else(
            |error| {
                exit::warn(TOOL, &format!("{error:#}"));
                exit::FAILED
            },
            |done| done.max(code),
        );
    }
    Ok(stop_record(args, source::named(last))?.max(code))
}

/// Stops the VM of a record, or one whose record was removed with its run directory.
fn stop_record(args: &args::Args, record: Result<Record, SourceError>) -> anyhow::Result<u8> {
    let lost = match record {
        Ok(record) => return stop(args, record),
        Err(error) => match error.lost() {
            Some(lost) => lost.clone(),
            None => return Err(error.into()),
        },
    };
    let Some(process) = supervisor::of_dir(&lost.dir)? else { bail!("{}: it has just ended", lost.name) };
    let stopped = vm::stop_lost(&lost.dir, &process, args.grace)?;
    exit::warn(
        TOOL,
        &format!("{}: {}; its record was removed with the directory, so none is printed", lost.name, stopped.end),
    );
    Ok(code(&stopped.end))
}

fn stop(args: &args::Args, mut record: Record) -> anyhow::Result<u8> {
    let vm = record.vm()?;
    if args.commit {
        commit::check(vm, record.upper.as_ref())?;
    }
    let stopped = vm::stop(vm, args.grace, args.commit)?;
    let message = format!("{}: {}", vm.name, stopped.end);
    if stopped.end.is_forced() {
        exit::warn(TOOL, &message);
    } else {
        args.output.say(TOOL, &message);
    }
    let committed = commit::outcome(vm, &stopped, args.commit);
    record.vm = None;
    if let Ok(Some(upper)) = &committed {
        record.upper = Some(upper.clone());
        // What was saved has another root.
        record.snapshot = None;
    }
    // The VM is gone even if unmounting fails, so the record is printed in any case.
    let unmounted = match record.mount.take_if(|_| args.unmount) {
        Some(mount) => match supervisor::sharing(&mount.path) {
            users if !users.is_empty() => {
                args.output.say(TOOL, &format!("mount {:?}: left, because {} has it", mount.path, vm_names(&users)));
                record.mount = Some(mount);
                Ok(())
            }
            _ => unmount::unmount(&mount).inspect_err(|_| record.mount = Some(mount)),
        },
        None => Ok(()),
    };
    args.output.put(&record, String::new)?;
    committed?;
    unmounted?;
    Ok(code(&stopped.end))
}

/// The exit status; a forced end was reported already.
fn code(end: &vm::End) -> u8 {
    if end.is_forced() { exit::FAILED } else { 0 }
}
