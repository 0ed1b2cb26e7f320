//! msb-run: runs a command in a new VM.

use std::io::Read;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use msb::{tool::cli, tool::exit, tool::line, tool::start};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::args::Args;
use crate::caretaker::{self, Caretaker};
use crate::children::Children;
use crate::commit;
use crate::page::PAGE;
use crate::passed;
use crate::plan::{Plan, Stage};
use crate::snapshot::{self, Held};
use crate::stages::{TOOL, code, command, end, finish, finish_unless, process, pull_stdin, shielded, spawn, status};
use crate::step;

/// The tool's main.
pub fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(role) if role == caretaker::ROLE => return caretaker::main(),
        Some(role) if role == snapshot::ROLE => return snapshot::main(),
        Some(role) if role == step::ROLE => return step::main(),
        _ => {}
    }
    start::signals();
    // A missing tool is reported once the arguments are known.
    let asked = passed::ask_all();
    let args: Args = cli::parse_by(&PAGE, exit::TOOL_FAILED, Args::read);
    exit::report(TOOL, exit::TOOL_FAILED, asked.and_then(|()| run(&args)))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let plan = Plan::new(args)?;
    if args.commit {
        return commit::run(&plan, args);
    }
    if args.print {
        line::put_bytes(plan.script(args).as_bytes())?;
        return Ok(0);
    }
    let children = Children::new(TOOL)?;
    let snapshot = match plan.saving.as_ref().map(|saving| snapshot::get(&plan, saving, args, &children)).transpose()? {
        Some(Ok(held)) => Some(held),
        Some(Err(code)) => return Ok(code),
        None => None,
    };
    let mut caretaker = Caretaker::start()?;
    let is_named = args.name.is_some();
    if is_named {
        // The name may be that of another VM until this one has booted.
        caretaker.order_with_record(&[&plan.end])?;
    } else {
        caretaker.order(&[&plan.end])?;
    }
    let booted = match snapshot {
        Some(held) => resume(&plan, &held, &children, &caretaker)?,
        None => boot(&plan, args, &children, &caretaker)?,
    };
    if let Err(code) = booted {
        if !is_named {
            end(&plan.end)?;
        }
        caretaker.dismiss()?;
        return Ok(code);
    }
    let code = match (children.first_signal(), &plan.exec) {
        (Some(signal), _) => Ok(exit::SIGNAL_BASE.saturating_add(signal)),
        (None, None) => return leave(&plan, args, caretaker, None),
        (None, Some(exec)) if args.detach => match detach(exec, &children)? {
            Ok(id) => return leave(&plan, args, caretaker, id),
            Err(code) => Ok(code),
        },
        (None, Some(exec)) => command(exec).and_then(|mut command| status(&mut command, &children)).map(code),
    };
    end(&plan.end)?;
    caretaker.dismiss()?;
    code
}

/// Boots the VM, or returns an exit status if a tool has failed, which has said why.
fn boot(plan: &Plan, args: &Args, children: &Children, caretaker: &Caretaker) -> anyhow::Result<Result<(), u8>> {
    caretaker.share(true)?;
    // msb-boot checks its flags before it reads the record. What is wrong there ends a pull that may take minutes.
    let (is_waiting, is_ended) = (&AtomicBool::new(true), &AtomicBool::new(false));
    let booted = thread::scope(|scope| {
        let mut boot = spawn(&plan.boot, Stdio::piped(), caretaker.record()?, children)?;
        let patch = |stage| spawn(stage, Stdio::piped(), Stdio::piped(), children);
        let mut patch = plan.patch.as_ref().map(patch).transpose()?;
        let mut pull = spawn(&plan.pull, pull_stdin(args), Stdio::piped(), children)?;
        let (booting, pulling) = (process(&boot)?, process(&pull)?);
        scope.spawn(move || {
            while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(&booting, PollFlags::IN)], None) {}
            if is_waiting.load(Ordering::Acquire) {
                is_ended.store(true, Ordering::Release);
                let _ = pidfd_send_signal(&pulling, Signal::TERM);
            }
        });
        let made = (|| -> anyhow::Result<Result<(), u8>> {
            let mut record = match finish_unless(&plan.pull, &mut pull, Vec::new(), children, is_ended)? {
                Ok(record) => record,
                Err(code) => return Ok(Err(code)),
            };
            is_waiting.store(false, Ordering::Release);
            // Only now, when the image is there and the VM can boot: what the old VM wrote goes with it.
            if let Err(code) = replace(plan, &record, children)? {
                return Ok(Err(code));
            }
            if let (Some(stage), Some(patch)) = (&plan.patch, &mut patch) {
                record = match finish(stage, patch, record, children)? {
                    Ok(record) => record,
                    Err(code) => return Ok(Err(code)),
                };
            }
            Ok(finish(&plan.boot, &mut boot, record, children)?.map(drop))
        })();
        // After a failure the stages behind it still wait for a record.
        is_waiting.store(false, Ordering::Release);
        children.end();
        for child in [Some(&mut boot), patch.as_mut(), Some(&mut pull)].into_iter().flatten() {
            child.wait()?;
        }
        made
    })?;
    caretaker.share(false)?;
    Ok(booted.map_err(|code| children.exit_code(code)))
}

/// Starts the VM from a snapshot, in place of [`boot`].
fn resume(plan: &Plan, held: &Held, children: &Children, caretaker: &Caretaker) -> anyhow::Result<Result<(), u8>> {
    let record = serde_json::to_vec(&held.record)?;
    caretaker.share(true)?;
    let resumed = (|| -> anyhow::Result<Result<(), u8>> {
        if let Err(code) = replace(plan, &record, children)? {
            return Ok(Err(code));
        }
        let mut boot = spawn(&plan.boot, Stdio::piped(), caretaker.record()?, children)?;
        Ok(finish(&plan.boot, &mut boot, record, children)?.map(drop))
    })();
    children.forget();
    caretaker.share(false)?;
    Ok(resumed?.map_err(|code| children.exit_code(code)))
}

/// Removes the VM that has the name, with --replace, if the new one can boot.
fn replace(plan: &Plan, record: &[u8], children: &Children) -> anyhow::Result<Result<(), u8>> {
    if let Some([check, remove]) = &plan.replace {
        let mut check_boot = spawn(check, Stdio::piped(), Stdio::null(), children)?;
        if let Err(code) = finish(check, &mut check_boot, record.to_vec(), children)? {
            return Ok(Err(code));
        }
        if !shielded(remove)?.success() {
            return Ok(Err(exit::TOOL_FAILED));
        }
    }
    Ok(Ok(()))
}

/// Starts the command with `-d`. Returns its ID if there is one, or an exit status if it could not be started.
fn detach(exec: &Stage, children: &Children) -> anyhow::Result<Result<Option<u64>, u8>> {
    let mut child = spawn(exec, Stdio::null(), Stdio::piped(), children)?;
    let mut printed = Vec::new();
    child.stdout.take().map(|mut stdout| stdout.read_to_end(&mut printed)).transpose()?;
    let status = child.wait()?;
    children.forget();
    if !status.success() {
        return Ok(Err(code(status)));
    }
    if printed.is_empty() {
        return Ok(Ok(None));
    }
    let started: serde_json::Value = serde_json::from_slice(&printed).context("msb-exec")?;
    Ok(Ok(started["id"].as_u64()))
}

/// Leaves the VM running, and prints its name. With --rm the caretaker waits for the command.
fn leave(plan: &Plan, args: &Args, mut caretaker: Caretaker, id: Option<u64>) -> anyhow::Result<u8> {
    if let Err(error) = line::put_bytes(format!("{}\n", plan.name).as_bytes()) {
        // Nobody would know the VM's name.
        end(&plan.end)?;
        caretaker.dismiss()?;
        return Err(error.into());
    }
    match id.filter(|_| args.rm) {
        Some(id) => {
            caretaker.order(&[&plan.wait().and([id.to_string()]), &plan.end])?;
        }
        None => caretaker.dismiss()?,
    }
    Ok(0)
}
