//! Connections from the host: who may connect, the hello, and one thread each for what follows.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use msb::wire::{self, AGENT_PORT, Message, READY_PORT};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::session::{self, PATIENCE};
use crate::sessions::Sessions;
use crate::{Agent, Error, clock, sys, visit};

/// The longest grace of a shutdown.
const MAX_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The priority of what answers callers, as nice(1) has it, and of what serves them then.
const ANSWERING: i32 = -19;
const SERVING: i32 = -10;
/// What the kernel buffers for a connection until it is read, in bytes; Linux's own 256 KiB are little for a way as long as that
/// through a VMM.
const BUFFER: u64 = 4 << 20;
/// How many connections may wait to be taken. Where there are more, the kernel turns them away.
const BACKLOG: i32 = 4096;

/// Takes connections from now on, in a thread of its own.
///
/// # Errors
/// What `socket(2)`, `bind(2)` or starting the thread says.
pub fn start(agent: &Arc<Agent>) -> Result<(), Error> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)
        .map_err(|error| Error::step(format!("listen on vsock port {AGENT_PORT}"), error))?;
    // The crate's own is 128, which a hundred callers at once come near to.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| Error::step("set the backlog".into(), error.into()))?;
    // Connections have it from the listener.
    sys::set_vsock_buffer(listener.as_fd(), BUFFER)
        .map_err(|error| Error::step("enlarge vsock's buffers".into(), error))?;
    // Where memory runs out, commands go (see sys::Launch) and not who could tell of it.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        crate::say(&format!("oom_score_adj: {error}"));
    }
    let agent = Arc::clone(agent);
    let accept = move || {
        // However busy the guest is, a caller hears from it; commands start with the usual priority (see sys::Launch).
        let _ = rustix::process::setpriority_process(None, ANSWERING);
        loop {
            agent.sessions.wait_for_room();
            match listener.accept() {
                // Only the host: a process in the guest has other ways to start one.
                Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => serve(connection, &agent),
                Ok(_) => {}
                Err(error) => crate::say(&format!("accept: {error}")),
            }
        }
    };
    thread::Builder::new()
        .name("listen".into())
        .spawn(accept)
        .map(drop)
        .map_err(|error| Error::step("start a thread".into(), error))
}

fn serve(connection: VsockStream, agent: &Arc<Agent>) {
    let started = Sessions::serve(agent, |agent| match greet(connection, agent) {
        Ok(()) => {}
        // The caller left, which is its right.
        Err(wire::Error::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {}
        Err(error) => crate::say(&format!("connection ended: {error}")),
    });
    if let Err(error) = started {
        crate::say(&format!("start a thread: {error}"));
    }
}

fn greet(mut connection: VsockStream, agent: &Agent) -> Result<(), wire::Error> {
    connection.set_read_timeout(Some(PATIENCE))?;
    Message::hello().send(&mut connection)?;
    Message::receive_hello(&mut connection)?;
    let _ = rustix::process::setpriority_process(None, SERVING);
    match Message::receive(&mut connection)? {
        Some(Message::Exec(request)) => {
            request.now_ms.into_iter().for_each(clock::catch_up);
            connection.set_read_timeout(None)?;
            session::run(connection, agent, request)
        }
        Some(Message::Attach(attach)) => {
            connection.set_read_timeout(None)?;
            visit::attach(connection, agent, attach)
        }
        Some(Message::Kill(kill)) => visit::kill(connection, agent, kill),
        Some(Message::List) => Ok(Message::Execs(agent.execs.list()).send(&mut connection)?),
        Some(Message::Clock(clock)) => {
            clock::set(clock.now_ms);
            Ok(())
        }
        Some(Message::Shutdown(shutdown)) => {
            // More than any clock here can add.
            let grace = Duration::from_millis(shutdown.grace_ms).min(MAX_GRACE);
            agent.shutdown.ask(grace, connection);
            Ok(())
        }
        Some(_) => Err(wire::Error::OutOfTurn("it asks for nothing")),
        None => Ok(()),
    }
}

/// Tells the host how the start went.
///
/// # Errors
/// What connecting or writing says.
pub fn report(ready: wire::exec::Ready) -> io::Result<()> {
    let mut host = VsockStream::connect(&VsockAddr::new(VMADDR_CID_HOST, READY_PORT))?;
    host.set_write_timeout(Some(PATIENCE))?;
    let mut frames = Message::hello().to_frame();
    Message::Ready(ready).put(&mut frames);
    io::Write::write_all(&mut host, &frames)
}
