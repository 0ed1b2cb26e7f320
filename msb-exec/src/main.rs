//! msb-exec: runs a command in a running microVM as if it ran on the host.

mod args;
mod blocking;
mod capabilities;
mod connect;
mod container;
mod ended;
mod go;
mod input;
mod keys;
mod others;
mod output;
mod page;
mod process;
mod ready;
mod request;
mod sending;
mod session;
mod signals;
mod started;
mod status;
mod tty;
mod typed;

use std::ffi::OsString;
use std::fs::File;
use std::panic;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use args::Args;
use container::{Config, Resources};
use keys::Keys;
use msb::inherited;
use msb::record::Vm;
use msb::tool::exit::{self, coded};
use msb::wire::container::{Change, Limits};
use msb::wire::exec::{Attach, Failure, Kill, Listed, Text};
use msb::{tool::cli, tool::start, wire};
use process::Process;
use session::{Call, Ended, Opening};
use started::Reports;
use status::Status;

fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse_by(&page::PAGE, exit::TOOL_FAILED, Args::read);
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tty::restore();
        print(info);
    }));
    let mut is_reported = false;
    let result = report_start(&args, &mut is_reported);
    tty::restore();
    match result {
        // The supervisor has the message, and stderr is the command's.
        Err(error) if args.stand_in && is_reported => exit::status_of(exit::TOOL_FAILED, error.as_ref()).into(),
        result => exit::report("msb-exec", exit::TOOL_FAILED, result),
    }
}

/// Runs, and reports a failure to the descriptor of `--started-fd`.
fn report_start(args: &Args, is_reported: &mut bool) -> anyhow::Result<u8> {
    let file = args.started_fd.map(inherited::take).transpose().context("--started-fd")?.map(File::from);
    let reports = Reports::to(file);
    let result = run(args, &reports);
    *is_reported = match &result {
        Ok(status) => reports.failed(*status, "it ended before it ran"),
        Err(error) => reports.failed(exit::status_of(exit::TOOL_FAILED, error.as_ref()), &format!("{error:#}")),
    };
    result
}

fn run(args: &Args, reports: &Reports) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(args::signal_and_id).transpose();
    let signal = signal.map_err(|why| anyhow!(why))?;
    let change = args.limits.as_deref().map(change).transpose()?;
    let call = call(args, reports)?;
    let status = args.json_status.as_deref().map(Status::open).transpose()?;
    let record = ready::take(&args.record, args.wait_ready).map_err(|error| match &args.record.record {
        Some(name) if args.is_named_by_word && !ready::is_lost(&error) => {
            anyhow!("{error:#} (a command goes after --: msb-exec -- {name})")
        }
        _ => error,
    })?;
    let vm = record.vm()?;
    if let Some((signal, id)) = signal {
        return others::signal(vm, Kill { id, signal });
    }
    if let Some(change) = change {
        return others::change(vm, change);
    }
    if args.list {
        return others::list(vm);
    }
    let argv = call.opening.argv().to_vec();
    let ended = exec(args, vm, call);
    tty::restore();
    let is_nothing_to_do = |failure: &Failure| args.optional && failure.no_command;
    let code = match &ended {
        Ok(Ended::Exit(exit)) => match (exit.code, exit.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => exit::SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(0)),
            (None, None) => exit::TOOL_FAILED,
        },
        Ok(Ended::Detached(_)) => 0,
        Ok(Ended::TimedOut(_)) => exit::TIMED_OUT,
        Ok(Ended::Failure(failure)) if is_nothing_to_do(failure) => 0,
        Ok(Ended::Failure(failure)) => failure.code,
        Err(error) if exit::is_reader_gone(error.as_ref()) => exit::READER_GONE,
        Err(_) => exit::TOOL_FAILED,
    };
    if let Some(status) = status {
        status.write(code, &ended)?;
    }
    match ended? {
        Ended::Exit(exit) if exit.code.is_none() && exit.signal.is_none() => {
            Err(coded(code, "the agent did not report how the command ended").into())
        }
        Ended::Exit(_) => Ok(code),
        Ended::Detached(exec) => detached(args, vm, exec, argv),
        Ended::TimedOut(_) => Err(coded(code, "the command took too long and was ended").into()),
        Ended::Failure(failure) if is_nothing_to_do(&failure) => Ok(code),
        Ended::Failure(failure) => Err(coded(code, exit::printable(&failure.message)).into()),
    }
}

/// The file and the id of `--limits`.
fn change(words: &[OsString]) -> anyhow::Result<Change> {
    let [file, id] = words else { bail!("--limits FILE ID is expected") };
    let number = id.to_str().and_then(|id| id.parse().ok());
    let id = number.with_context(|| format!("id {id:?}: not a number"))?;
    let limits = Resources::read(Path::new(file))?.limits();
    ensure!(limits != Limits::default(), "limits {file:?}: there are none of memory, pids or cpu");
    Ok(Change { id, limits })
}

/// The call that the command line describes.
fn call(args: &Args, reports: &Reports) -> anyhow::Result<Call> {
    let config = args.container.as_deref().map(Config::read).transpose()?;
    let container = config.as_ref().map(Config::container).transpose()?;
    let process = match &args.process {
        Some(file) => Some(Process::read(file)?),
        None if args.command.is_empty() => config.and_then(|config| config.process),
        None => None,
    };
    let wants_terminal = match &process {
        Some(process) => args.tty || (!args.no_tty && process.terminal()),
        None => args.tty || (!args.no_tty && !args.rsh && !args.detach && tty::is_on_both_sides()),
    };
    let opening = match (args.attach, args.wait) {
        (Some(id), _) => Opening::Attach(Attach { id, streams: true }),
        (None, Some(id)) => Opening::Attach(Attach { id, streams: false }),
        (None, None) => Opening::Exec(Box::new(request::request(args, process.as_ref(), container, wants_terminal)?)),
    };
    Ok(Call {
        sends_stdin: !args.no_stdin && args.wait.is_none() && !args.detach,
        detach_keys: if args.stand_in { Keys::default() } else { args.detach_keys.clone() },
        timeout: args.timeout.filter(|limit| !limit.is_zero()),
        go: args.prepare_fd.map(inherited::take).transpose().context("--prepare-fd")?.map(File::from),
        reports: reports.clone(),
        opening,
    })
}

fn exec(args: &Args, vm: &Vm, call: Call) -> anyhow::Result<Ended> {
    // With --wait, signals end msb-exec itself.
    let blocked = if args.wait.is_none() && !args.detach { Some(signals::block(args.stand_in)?) } else { None };
    let opening = call.opening()?;
    let connection = connect::connect(vm, &opening)?;
    session::run(vm, connection, call, blocked).map_err(|error| match error.downcast::<wire::Error>() {
        Ok(broken) => anyhow!(connect::describe(vm, broken)),
        Err(other) => other,
    })
}

/// Prints how to attach again.
fn detached(args: &Args, vm: &Vm, exec: Option<Listed>, argv: Vec<Text>) -> anyhow::Result<u8> {
    let Some(mut exec) = exec else {
        return Err(anyhow!("the agent did not report which command it kept"));
    };
    if args.detach {
        exec.argv = match args.process.as_ref().or(args.container.as_ref()) {
            Some(_) => argv,
            None => args.command.iter().map(|word| Text::from(word.as_os_str())).collect(),
        };
        others::print(vm, &exec)?;
    } else {
        if !args.quiet {
            exit::warn(
                "msb-exec",
                &format!("the command goes on without you (msb-exec --attach {} to return)", exec.id),
            );
        }
    }
    Ok(0)
}
