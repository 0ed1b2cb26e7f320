//! Connections of those who did not start an exec: to become its caller, to learn how it ends, to send it a signal.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use msb::wire::exec::{Attach, Execs, Failure, Kill, Started};
use msb::wire::exit_status::TOOL_FAILED;
use msb::wire::{self, Message, turn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vsock::VsockStream;

use crate::Agent;
use crate::execs::{Entry, Exec, Found};
use crate::session;

/// Makes somebody an exec's caller, or has them wait for its end.
///
/// # Errors
/// A broken connection, or frames that make no sense.
pub fn attach(mut connection: VsockStream, agent: &Agent, attach: Attach) -> Result<(), wire::Error> {
    let id = attach.id;
    let exec = match agent.execs.find(id) {
        Found::Whole(exec) => exec,
        Found::Exit(past) if !attach.streams => {
            let mut frames = Message::Started(Started { pid: past.pid, id, terminal: false }).to_frame();
            Message::Exit(past.exit()).put(&mut frames);
            return Ok(connection.write_all(&frames)?);
        }
        Found::Exit(_) => {
            let why = "it has ended, and its output is not kept any more (--wait tells how it ended)";
            return refuse(connection, format!("exec {id}: {why}"));
        }
        Found::Forgotten => return refuse(connection, forgotten(id)),
        Found::Never => return refuse(connection, no_such(id)),
    };
    if !attach.streams {
        Message::Started(Started { pid: exec.process.pid, id, terminal: false }).send(&mut connection)?;
        return tell_end(connection, &exec);
    }
    match exec.come_in(connection) {
        Entry::Taken => Ok(()),
        Entry::Ended(connection, rest) => session::run_ended(connection, agent, exec, &rest),
        Entry::Busy(connection) => refuse(connection, format!("exec {}: somebody is attached to it", attach.id)),
    }
}

/// Sends a signal to the process group of an exec's command.
///
/// # Errors
/// A broken connection, or no signal of that number.
pub fn kill(mut connection: VsockStream, agent: &Agent, kill: Kill) -> Result<(), wire::Error> {
    turn::check_signal(kill.signal)?;
    let exec = match agent.execs.find(kill.id) {
        Found::Whole(exec) => exec,
        Found::Exit(_) => return refuse(connection, format!("exec {}: it has ended", kill.id)),
        Found::Forgotten => return refuse(connection, forgotten(kill.id)),
        Found::Never => return refuse(connection, no_such(kill.id)),
    };
    agent.reaper.signal(&exec.process, kill.signal);
    Ok(Message::Execs(Execs { execs: vec![exec.listed()], ..Execs::default() }).send(&mut connection)?)
}

fn no_such(id: u32) -> String {
    format!("exec {id}: no command with this id (msb-exec --list shows which there are)")
}

fn forgotten(id: u32) -> String {
    format!(
        "exec {id}: it has ended and is forgotten (exit statuses are kept of detached commands alone, of the last 65536)"
    )
}

fn refuse(mut connection: VsockStream, message: String) -> Result<(), wire::Error> {
    Ok(Message::Failure(Failure { code: TOOL_FAILED, message }).send(&mut connection)?)
}

/// Waits for an exec's end, or for that of the connection, and tells.
fn tell_end(mut connection: VsockStream, exec: &Exec) -> Result<(), wire::Error> {
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
                Some(_) => Err(wire::Error::OutOfTurn("a frame from somebody who waits")),
            };
        }
    }
}
