//! Connections from the host: the listener, the hello, and the first frame.

use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use msb::wire::{self, HEADER, Message};

use crate::agent::Agent;
use crate::channel::{self, Listener};
use crate::error::Error;
use crate::link::PEER_TIMEOUT;
use crate::sessions::Server;
use crate::{clock, console, copy, resume, session, visit};

/// The longest grace of a shutdown.
const MAX_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Starts the threads that accept connections.
///
/// # Errors
/// Those of `socket(2)` and `bind(2)`, and of starting the thread.
pub fn start(agent: &Arc<Agent>) -> Result<(), Error> {
    let listener = Listener::start().map_err(|error| Error::step("listen for the host".into(), error))?;
    // The OOM killer must end commands (see sys::Launch) and not the agent.
    if !agent.is_init()
        && let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000")
    {
        console::log(&format!("oom_score_adj: {error}"));
    }
    // A caller gets an answer even if the guest is busy. Commands start with nice value 0 (see sys::Launch).
    let begin = || _ = rustix::process::setpriority_process(None, channel::NICE);
    Arc::new(Server { agent: Arc::clone(agent), begin, accept: Box::new(move || listener.accept()), serve })
        .start()
        .map_err(|error| Error::step("start a thread".into(), error))
}

fn serve(connection: UnixStream, agent: &Agent) {
    match greet(connection, agent) {
        Ok(()) => {}
        // The caller has gone, which is not an error.
        Err(wire::Error::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {}
        Err(error) => console::log(&format!("connection closed: {error}")),
    }
}

fn greet(mut connection: UnixStream, agent: &Agent) -> Result<(), wire::Error> {
    connection.set_read_timeout(Some(PEER_TIMEOUT))?;
    Message::hello().send(&mut connection)?;
    match receive_request(&mut connection)? {
        Some(Message::Exec(request)) => {
            request.now_ms.into_iter().for_each(clock::catch_up);
            session::run(connection, agent, *request)
        }
        Some(Message::Attach(attach)) => {
            connection.set_read_timeout(None)?;
            visit::attach(connection, agent, attach)
        }
        Some(Message::Kill(kill)) => visit::kill(connection, agent, kill),
        Some(Message::Change(change)) => visit::change(connection, agent, change),
        Some(Message::List) => Ok(Message::Execs(agent.execs.list()).send(&mut connection)?),
        Some(Message::Record) => agent.recorder.connect(connection),
        Some(Message::Get(get)) => {
            connection.set_read_timeout(None)?;
            copy::get(connection, get)
        }
        Some(Message::Put(put)) => {
            connection.set_read_timeout(None)?;
            copy::put(connection, put)
        }
        Some(Message::Clock(clock)) => {
            clock::set(clock.now_ms);
            Ok(())
        }
        Some(Message::Resume(other)) => {
            connection.set_read_timeout(None)?;
            let ready = resume::run(agent, *other);
            drop(connection);
            Ok(report(ready)?)
        }
        Some(Message::Shutdown(shutdown)) => {
            // A longer time would overflow an Instant.
            let grace = Duration::from_millis(shutdown.grace_ms).min(MAX_GRACE);
            agent.shutdown.ask(grace, connection);
            Ok(())
        }
        Some(_) => Err(wire::Error::OutOfTurn("a first frame that is not a request")),
        None => Ok(()),
    }
}

/// Receives the hello and the first frame after it. The header of that is read together with the hello, whose length is known.
fn receive_request(connection: &mut UnixStream) -> Result<Option<Message>, wire::Error> {
    let mut start = vec![0; Message::hello().to_frame().len() + HEADER];
    let got = loop {
        match connection.read(&mut start) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            got => break got?,
        }
    };
    let mut frames = start[..got].chain(connection);
    Message::receive_hello(&mut frames)?;
    Message::receive(&mut frames)
}

/// Tells the host how the boot went.
///
/// # Errors
/// Those of `connect(2)` and `write(2)`.
pub fn report(ready: wire::exec::Ready) -> io::Result<()> {
    let is_last = ready.error.is_some() && channel::is_port();
    let mut host = channel::connect()?;
    host.set_write_timeout(Some(PEER_TIMEOUT))?;
    let mut frames = Message::hello().to_frame();
    Message::Ready(ready).put(&mut frames);
    io::Write::write_all(&mut host, &frames)?;
    if is_last {
        // The machine ends next. The host closes the connection when it has the report.
        host.set_read_timeout(Some(PEER_TIMEOUT))?;
        while host.read(&mut [0; 64])? > 0 {}
    }
    Ok(())
}
