//! msb-exec: runs a command in a running microVM, as plainly as if it ran here.

mod args;
mod blocking;
mod connect;
mod ended;
mod input;
mod keys;
mod others;
mod output;
mod page;
mod ready;
mod request;
mod sending;
mod session;
mod signals;
mod status;
mod tty;
mod typed;

use std::panic;
use std::process::ExitCode;

use args::Args;
use msb::record::Vm;
use msb::tool::exit::{self, coded};
use msb::wire::exec::{Attach, Kill, Listed, Text};
use msb::{tool::cli, tool::source, tool::start, wire};
use session::{Call, Ended, Opening};
use status::Status;

fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse_by(&page::PAGE, exit::TOOL_FAILED, Args::read);
    let say = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tty::restore();
        say(info);
    }));
    let result = run(&args);
    tty::restore();
    exit::report("msb-exec", exit::TOOL_FAILED, result)
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(args::signal_and_id).transpose();
    let signal = signal.map_err(|why| coded(exit::TOOL_FAILED, why))?;
    let call = call(args)?;
    let status = args.json_status.as_deref().map(Status::open).transpose()?;
    let record = ready::take(&args.record, args.wait_ready).map_err(|error| match &args.record.record {
        Some(word) if args.is_named_by_word && !error.is::<source::Lost>() => {
            coded(exit::TOOL_FAILED, format!("{error:#} (a command goes behind --: msb-exec -- {word})"))
        }
        _ => error,
    })?;
    let vm = record.vm()?;
    if let Some((signal, id)) = signal {
        return others::signal(vm, Kill { id, signal });
    }
    if args.list {
        return others::list(vm);
    }
    let ended = exec(args, vm, call);
    tty::restore();
    let code = match &ended {
        Ok(Ended::Exit(exit)) => match (exit.code, exit.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => exit::SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(0)),
            (None, None) => exit::TOOL_FAILED,
        },
        Ok(Ended::Detached(_)) => 0,
        Ok(Ended::TimedOut(_)) => exit::TIMED_OUT,
        Ok(Ended::Failure(failure)) => failure.code,
        Err(error) if error.is::<exit::ReaderGone>() => exit::READER_GONE,
        Err(_) => exit::TOOL_FAILED,
    };
    if let Some(status) = status {
        status.write(code, &ended)?;
    }
    match ended? {
        Ended::Exit(exit) if exit.code.is_none() && exit.signal.is_none() => {
            Err(coded(code, "the agent did not say how the command ended"))
        }
        Ended::Exit(_) => Ok(code),
        Ended::Detached(exec) => detached(args, vm, exec),
        Ended::TimedOut(_) => Err(coded(code, "the command took too long and was ended")),
        Ended::Failure(failure) => Err(coded(code, exit::printable(&failure.message))),
    }
}

/// What the command line asks of the agent.
fn call(args: &Args) -> anyhow::Result<Call> {
    let wants_terminal = args.tty || (!args.no_tty && !args.rsh && !args.detach && tty::is_on_both_sides());
    let opening = match (args.attach, args.wait) {
        (Some(id), _) => Opening::Attach(Attach { id, streams: true }),
        (None, Some(id)) => Opening::Attach(Attach { id, streams: false }),
        (None, None) => Opening::Exec(request::request(args, wants_terminal)?),
    };
    Ok(Call {
        sends_stdin: !args.no_stdin && args.wait.is_none() && !args.detach,
        detach_keys: args.detach_keys.clone(),
        timeout: args.timeout.filter(|limit| !limit.is_zero()),
        opening,
    })
}

fn exec(args: &Args, vm: &Vm, call: Call) -> anyhow::Result<Ended> {
    // Who waits for another's command is ended by a signal like anybody else.
    let held = if args.wait.is_none() && !args.detach { Some(signals::hold()?) } else { None };
    let opening = call.opening()?;
    let connection = connect::connect(vm, &opening)?;
    session::run(connection, call, held).map_err(|error| match error.downcast::<wire::Error>() {
        Ok(broken) => coded(exit::TOOL_FAILED, connect::gone(vm, broken)),
        Err(other) => other,
    })
}

/// Says how to come back.
fn detached(args: &Args, vm: &Vm, exec: Option<Listed>) -> anyhow::Result<u8> {
    let Some(mut exec) = exec else {
        return Err(coded(exit::TOOL_FAILED, "the agent did not say which command it kept"));
    };
    if args.detach {
        exec.argv = args.command.iter().map(|word| Text::from(word.as_os_str())).collect();
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
