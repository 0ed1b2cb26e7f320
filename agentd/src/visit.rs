//! Connections for an exec that another connection has started: to attach to it, to wait for its end, to send it a signal, or to change
//! its limits.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use msb::wire::container::Change;
use msb::wire::exec::{Attach, Execs, Failure, Kill, Started};
use msb::wire::exit_status::TOOL_FAILED;
use msb::wire::{self, Message, sequence};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::agent::Agent;
use crate::execs::{Attached, Exec, Lookup};
use crate::session;

/// Attaches the connection to an exec, or waits for the end of the exec.
///
/// # Errors
/// A broken connection, or invalid frames.
pub fn attach(mut connection: UnixStream, agent: &Agent, attach: Attach) -> Result<(), wire::Error> {
    let id = attach.id;
    let exec = match agent.execs.find(id) {
        Lookup::Exec(exec) => exec,
        Lookup::Exit(past) if !attach.streams => {
            let mut frames = Message::Started(Started { pid: past.pid, id, terminal: false }).to_frame();
            Message::Exit(past.exit()).put(&mut frames);
            return Ok(connection.write_all(&frames)?);
        }
        Lookup::Exit(_) => {
            let why = "it has ended, and its output is not kept any more (--wait reports how it ended)";
            return refuse(connection, format!("exec {id}: {why}"));
        }
        Lookup::Forgotten => return refuse(connection, forgotten(id)),
        Lookup::Unused => return refuse(connection, no_such(id)),
    };
    if !attach.streams {
        Message::Started(Started { pid: exec.process.pid, id, terminal: false }).send(&mut connection)?;
        return send_end(connection, &exec);
    }
    match exec.attach(connection) {
        Attached::Accepted => Ok(()),
        Attached::Ended(connection, kept) => session::run_ended(connection, agent, exec, &kept),
        Attached::Busy(connection) => {
            refuse(connection, format!("exec {}: another caller is attached to it", attach.id))
        }
    }
}

/// Sends a signal to the process group of an exec's command.
///
/// # Errors
/// A broken connection, or an invalid signal number.
pub fn kill(mut connection: UnixStream, agent: &Agent, kill: Kill) -> Result<(), wire::Error> {
    sequence::check_signal(kill.signal)?;
    let exec = match find(agent, kill.id) {
        Ok(exec) => exec,
        Err(why) => return refuse(connection, why),
    };
    // The state before the signal: the signal may end the command at once.
    let execs = vec![exec.listed()];
    agent.reaper.signal(&exec.process, kill.signal);
    Ok(Message::Execs(Execs { execs, ..Execs::default() }).send(&mut connection)?)
}

/// Changes the limits of a container, and with them those of its further commands.
///
/// # Errors
/// A broken connection.
pub fn change(mut connection: UnixStream, agent: &Agent, change: Change) -> Result<(), wire::Error> {
    let Change { id, limits } = change;
    let changed = find(agent, id).and_then(|exec| {
        let limited = if exec.is_container() { exec.limited() } else { None };
        let limited = limited.ok_or_else(|| format!("exec {id}: it is no container with limits, or has ended"))?;
        let changed = agent.execs.cgroups.change(limited, &limits);
        changed.map_err(|(step, why)| format!("exec {id}: {step}: {why}"))?;
        Ok(exec.listed())
    });
    match changed {
        Ok(listed) => Ok(Message::Execs(Execs { execs: vec![listed], ..Execs::default() }).send(&mut connection)?),
        Err(why) => refuse(connection, why),
    }
}

/// An exec that is there, or why not.
fn find(agent: &Agent, id: u32) -> Result<Arc<Exec>, String> {
    match agent.execs.find(id) {
        Lookup::Exec(exec) => Ok(exec),
        Lookup::Exit(_) => Err(format!("exec {id}: it has ended")),
        Lookup::Forgotten => Err(forgotten(id)),
        Lookup::Unused => Err(no_such(id)),
    }
}

fn no_such(id: u32) -> String {
    format!("exec {id}: no command with this id (msb-exec --list shows which there are)")
}

fn forgotten(id: u32) -> String {
    format!(
        "exec {id}: it has ended and is forgotten (only detached commands have their exit status kept, the last 65536)"
    )
}

fn refuse(mut connection: UnixStream, message: String) -> Result<(), wire::Error> {
    Ok(Message::Failure(Failure::new(TOOL_FAILED, message)).send(&mut connection)?)
}

/// Waits for the end of an exec, which it sends, or of the connection.
fn send_end(mut connection: UnixStream, exec: &Exec) -> Result<(), wire::Error> {
    loop {
        if let Some(exit) = exec.exit() {
            connection.set_write_timeout(Some(Duration::from_secs(1)))?;
            return Ok(Message::Exit(exit).send(&mut connection)?);
        }
        let mut fds =
            [&exec.process.event().as_fd(), &connection.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if fds[1].any() == Some(true) {
            return match Message::receive(&mut connection)? {
                None => Ok(()),
                Some(_) => Err(wire::Error::OutOfTurn("a frame while it waits for the end of an exec")),
            };
        }
    }
}
