//! Commands that other callers started: listing them, sending them signals, and changing their limits. A list has a line of JSON for each.

use anyhow::{anyhow, bail};
use msb::record::Vm;
use msb::tool::exit::{self, coded};
use msb::tool::line;
use msb::vm::patience::Patience;
use msb::wire::container::Change;
use msb::wire::dial::{PatientReader, TIMEOUT};
use msb::wire::exec::{Execs, Exit, Kill, Listed, Text};
use msb::wire::{self, Message};
use serde::Serialize;

use crate::connect::{connect, describe, is_gone};
use crate::ended;

/// An exec as it is printed.
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
/// Those of writing to stdout.
pub fn print(vm: &Vm, exec: &Listed) -> anyhow::Result<()> {
    let Listed { id, pid, argv, detached, attached, exit } = exec;
    let (id, pid, detached, attached) = (*id, *pid, *detached, *attached);
    line::put(&Line { id, pid, vm: &vm.name, command: argv, detached, attached, exit: *exit })?;
    Ok(())
}

/// Prints all execs.
///
/// # Errors
/// An agent that fails.
pub fn list(vm: &Vm) -> anyhow::Result<u8> {
    let listing = ask(vm, &Message::List)?;
    for exec in &listing.execs {
        print(vm, exec)?;
    }
    if listing.older > 0 {
        let message = format!("{} older detached commands have ended (--wait ID tells how)", listing.older);
        exit::warn("msb-exec", &message);
    }
    Ok(0)
}

/// Sends a signal to an exec.
///
/// # Errors
/// An agent that fails, or an exec that does not exist or has ended.
pub fn signal(vm: &Vm, kill: Kill) -> anyhow::Result<u8> {
    let execs = ask(vm, &Message::Kill(kill))?.execs;
    if execs.iter().any(|exec| exec.exit.is_some()) {
        bail!("exec {}: it has ended", kill.id);
    }
    Ok(0)
}

/// Changes the limits of a container.
///
/// # Errors
/// An agent that fails, or an exec that is no container with limits. Then none has changed.
pub fn change(vm: &Vm, change: Change) -> anyhow::Result<u8> {
    ask(vm, &Message::Change(change))?;
    Ok(0)
}

fn ask(vm: &Vm, question: &Message) -> anyhow::Result<Execs> {
    let connection = connect(vm, &question.to_frame())?;
    let answer = || -> Result<Message, wire::Error> {
        let patience = Patience::with(&vm.endpoint, TIMEOUT);
        Message::receive(&mut PatientReader { stream: &connection, patience })?
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())
    };
    let explain = |error| match question {
        // It ends a connection with a frame that it does not know.
        Message::Change(_) if is_gone(&error) && ended::is_alive(vm) => {
            let name = &vm.name;
            anyhow!("vm {name:?}: its agent is of an older version, and cannot change limits (boot the VM again)")
        }
        _ => anyhow!(describe(vm, error)),
    };
    match answer().map_err(explain)? {
        Message::Execs(execs) => Ok(execs),
        Message::Failure(failure) => Err(coded(failure.code, exit::printable(&failure.message)).into()),
        _ => Err(anyhow!(describe(vm, wire::Error::OutOfTurn("not an answer to a question")))),
    }
}
