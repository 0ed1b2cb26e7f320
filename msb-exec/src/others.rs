//! What concerns execs that others started: which there are, and signals for them. Each is a line of JSON on stdout.

use std::os::unix::net::UnixStream;

use msb::exit::{self, coded};
use msb::line;
use msb::record::Vm;
use msb::wire::dial::PATIENCE;
use msb::wire::exec::{Exit, Kill, Listed, Text};
use msb::wire::{self, Message};
use serde::Serialize;

use crate::connect::gone;

/// An exec as a record.
#[derive(Serialize)]
struct Line<'a> {
    id: u32,
    pid: i32,
    vm: &'a str,
    command: &'a [Text],
    detached: bool,
    attached: bool,
    #[serde(flatten)]
    exit: Option<Exit>,
}

/// Prints an exec.
///
/// # Errors
/// What writing says.
pub fn print(vm: &Vm, exec: &Listed) -> anyhow::Result<()> {
    let Listed { id, pid, argv, detached, attached, exit } = exec;
    let (id, pid, detached, attached) = (*id, *pid, *detached, *attached);
    line::put(&Line { id, pid, vm: &vm.name, command: argv, detached, attached, exit: *exit })
}

/// Prints all.
///
/// # Errors
/// Words for an agent that fails.
pub fn list(vm: &Vm, connection: UnixStream) -> anyhow::Result<u8> {
    for exec in ask(vm, connection, &Message::List)? {
        print(vm, &exec)?;
    }
    Ok(0)
}

/// Sends a signal to one.
///
/// # Errors
/// Words for an agent that fails, or an exec that is not there.
pub fn signal(vm: &Vm, connection: UnixStream, kill: Kill) -> anyhow::Result<u8> {
    let execs = ask(vm, connection, &Message::Kill(kill))?;
    if execs.iter().any(|exec| exec.exit.is_some()) {
        return Err(coded(exit::TOOL_FAILED, format!("exec {}: it has ended", kill.id)));
    }
    Ok(0)
}

fn ask(vm: &Vm, mut connection: UnixStream, question: &Message) -> anyhow::Result<Vec<Listed>> {
    let mut answer = || -> Result<Message, wire::Error> {
        connection.set_read_timeout(Some(PATIENCE))?;
        question.send(&mut connection)?;
        Message::receive(&mut connection)?
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())
    };
    match answer().map_err(|error| coded(exit::TOOL_FAILED, gone(vm, error)))? {
        Message::Execs(execs) => Ok(execs.execs),
        Message::Failure(failure) => Err(coded(failure.code, exit::printable(&failure.message))),
        _ => Err(coded(exit::TOOL_FAILED, gone(vm, wire::Error::OutOfTurn("not an answer to a question")))),
    }
}
