//! msb-run --commit: runs a command as a step of a build. Its stages run one after another, because the record of each decides what
//! the next one does.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, bail};
use msb::record::Record;
use msb::tool::output::Output;
use msb::tool::{exit, source};

use crate::args::Args;
use crate::caretaker::Caretaker;
use crate::children::Children;
use crate::plan::Plan;
use crate::stages::{Made, TOOL, code, command, end, finish, pull, spawn, stage, status};
use crate::step::Step;

/// Runs the step, or takes the result of an earlier run, and prints its record.
///
/// # Errors
/// Those of starting processes, of records, and of the cache.
pub fn run(plan: &Plan, args: &Args) -> anyhow::Result<u8> {
    let output = Output { output: args.output.clone(), json: false, quiet: args.quiet };
    output.check()?;
    let children = Children::new(TOOL)?;
    let record = match input(plan, args, &children)? {
        Ok(record) => record,
        Err(code) => return Ok(children.exit_code(code)),
    };
    let step = args.cache.then(|| Step::new(&record, args)).transpose()?;
    let cached = step.as_ref().and_then(|step| step.result(&record));
    let (made, caretaker) = match cached {
        Some(made) => (made, None),
        None => match execute(plan, args, &record, &children)? {
            Ok((made, caretaker)) => (made, Some(caretaker)),
            Err(code) => return Ok(code),
        },
    };
    let is_new = caretaker.is_some();
    let keep = |step: &Step| {
        // It may have run with something else than what its digest is of.
        if is_new && Step::new(&record, args)? != *step {
            bail!("what it depends on has changed while it ran");
        }
        step.keep(&made)
    };
    let is_kept = match step.as_ref().map(keep) {
        Some(Err(error)) => {
            exit::warn(TOOL, &format!("--cache: the result is not kept: {error:#}"));
            false
        }
        kept => kept.is_some(),
    };
    // From here on the upper may be in a record.
    caretaker.map(Caretaker::dismiss).transpose()?;
    let shown =
        output.put(&made, || made.upper.as_ref().map(|upper| upper.dir.display().to_string()).unwrap_or_default());
    if shown.is_err() && !is_kept {
        // Nothing names the upper.
        end(&plan.end)?;
    }
    shown?;
    Ok(0)
}

/// The record that the step starts from.
fn input(plan: &Plan, args: &Args, children: &Children) -> anyhow::Result<Made> {
    match args.record.as_deref() {
        Some("-") => Ok(Ok(source::stdin()?)),
        Some(name) => Ok(Ok(source::named(name)?)),
        None => pull(plan, args, children),
    }
}

/// Runs the command in a VM, and commits what it has written. Nothing is left of a step that fails, and the caretaker removes the upper
/// of one that succeeds until it is dismissed.
fn execute(
    plan: &Plan,
    args: &Args,
    record: &Record,
    children: &Children,
) -> anyhow::Result<Result<(Record, Caretaker), u8>> {
    let mut caretaker = Caretaker::start()?;
    caretaker.order(&[&plan.end])?;
    caretaker.share(true)?;
    let made = in_vm(plan, args, record, children);
    caretaker.share(false)?;
    let failed = match made {
        Ok(Ok(made)) => return Ok(Ok((made, caretaker))),
        Ok(Err(code)) => Ok(code),
        Err(error) => Err(error),
    };
    end(&plan.end)?;
    caretaker.dismiss()?;
    Ok(Err(children.exit_code(failed?)))
}

fn in_vm(plan: &Plan, args: &Args, record: &Record, children: &Children) -> anyhow::Result<Made> {
    let (Some(patch), Some(exec), Some(commit)) = (&plan.patch, &plan.exec, &plan.commit) else {
        unreachable!("a plan with --commit has them")
    };
    let patched = match stage(patch, Stdio::piped(), serde_json::to_vec(record)?, children)? {
        Ok(patched) => patched,
        failed => return Ok(failed),
    };
    let mut boot = spawn(&plan.boot, Stdio::piped(), Stdio::null(), children)?;
    if let Err(code) = finish(&plan.boot, &mut boot, serde_json::to_vec(&patched)?, children)? {
        return Ok(Err(code));
    }
    children.forget();
    let mut exec = command(exec)?;
    // stdout is for the record.
    exec.stdout(io::stderr().as_fd().try_clone_to_owned()?);
    // A result that is kept must not depend on it.
    if args.cache || args.record.as_deref() == Some("-") {
        exec.stdin(Stdio::null());
    }
    let ended = status(&mut exec, children)?;
    if !ended.success() || children.first_signal().is_some() {
        return Ok(Err(code(ended)));
    }
    let mut stop = command(commit)?;
    let stop = stop.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let stopped = stop.output().context(commit.tool)?;
    if !stopped.status.success() {
        return Ok(Err(exit::TOOL_FAILED));
    }
    let stopped = Record::parse(stopped.stdout.trim_ascii_end()).context(commit.tool)?;
    // What the step was asked for is not a part of its result.
    let mut made = patched;
    made.upper = stopped.upper;
    made.mount = None;
    Ok(Ok(made))
}
