//! One exec, seen from the host. The connection is read even while stdout or stderr blocks: credit bounds the bytes on their way,
//! so a stopped reader stalls its own command and nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use msb::record::Vm;
use msb::tool::exit::OutputError;
use msb::vm::patience::Patience;
use msb::wire::dial::PatientReader;
use msb::wire::exec::{Attach, Exit, Failure, Listed, Request, Signal as SignalBody, Started, Text};
use msb::wire::{self, Decoded, Decoder, MAX_DATA, Message, Stream};
use nix::sys::signal::Signal;

use crate::input::{self, Credit};
use crate::keys::{Keys, Watch};
use crate::output::{self, Output, Turn};
use crate::sending::Sending;
use crate::started::Reports;
use crate::{go, signals, tty, typed};

/// How long the guest may take to start a command, without the time in which the VM waits for a processor ([`Patience`]). A guest that
/// starts hundreds at once is slow.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long writing the remaining output may take after a failure of the guest.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a command that timed out has between TERM and KILL.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// How an exec ended.
#[derive(Debug)]
pub enum Ended {
    /// The command ran and ended.
    Exit(Exit),
    /// The command exceeded its time limit and was ended.
    TimedOut(Option<Exit>),
    /// The command is running, and this caller has detached from it.
    Detached(Option<Listed>),
    /// The command could not be started.
    Failure(Failure),
}

/// A request to the agent, and how this process takes part in it.
pub struct Call {
    /// The first frame.
    pub opening: Opening,
    /// Whether stdin is sent to the command.
    pub sends_stdin: bool,
    /// The keys that detach.
    pub detach_keys: Keys,
    /// The command's time limit.
    pub timeout: Option<Duration>,
    /// Where the caller's request to start comes from, for a command that is prepared.
    pub go: Option<File>,
    /// Who is told when the command runs.
    pub reports: Reports,
}

/// The first frame after hello.
pub enum Opening {
    /// A command to run.
    Exec(Box<Request>),
    /// A running command to attach to.
    Attach(Attach),
}

impl Opening {
    fn message(&self) -> Message {
        match self {
            Self::Exec(request) => Message::Exec(request.clone()),
            Self::Attach(attach) => Message::Attach(*attach),
        }
    }

    /// The command, as far as this caller knows it.
    pub fn argv(&self) -> &[Text] {
        match self {
            Self::Exec(request) => &request.argv,
            Self::Attach(_) => &[],
        }
    }

    /// Whether streams are sent and received.
    fn has_streams(&self) -> bool {
        match self {
            Self::Exec(request) => !request.detach,
            Self::Attach(attach) => attach.streams,
        }
    }
}

impl Call {
    /// The frames that open the exec.
    ///
    /// # Errors
    /// A request that is too long.
    pub fn opening(&self) -> anyhow::Result<Vec<u8>> {
        let mut frames = self.opening.message().to_frame();
        if let Err(wire::Error::TooLong { length, limit, .. }) = Message::check_length(&frames) {
            bail!(
                "the command and its environment take {length} bytes of a request, which has {limit} at most \
                 (pass long values through stdin or a file)"
            );
        }
        if self.opening.has_streams() {
            for stream in [Stream::Stdout, Stream::Stderr] {
                Message::Credit(stream, output::credit(stream)).put(&mut frames);
            }
        }
        Ok(frames)
    }
}

/// Runs a call on a connection on which [`Call::opening`] was sent, with the streams of this process, until the command has ended
/// and its output is written. `blocked` are the signals to forward.
///
/// # Errors
/// [`OutputError::ReaderGone`] if nobody reads stdout or stderr; a [`wire::Error`] if the connection or the guest fails.
pub fn run(
    vm: &Vm,
    connection: UnixStream,
    mut call: Call,
    blocked: Option<signals::BlockedSignals>,
) -> anyhow::Result<Ended> {
    let sending = Sending::new(&connection)?;
    let turn = Turn::default();
    let mut go = call.go.take();
    if go.is_some() {
        turn.lock().unwrap_or_else(PoisonError::into_inner).prepare();
    }
    if call.opening.has_streams() {
        for stream in [Stream::Stdout, Stream::Stderr] {
            turn.lock().unwrap_or_else(PoisonError::into_inner).grant(stream, output::credit(stream));
        }
    }
    // From here on, signals that were blocked are forwarded.
    let has_terminal = Arc::new(AtomicBool::new(false));
    if let Some(blocked) = blocked {
        signals::forward(blocked, &sending, &has_terminal);
    }
    let credit = Arc::new(Credit::new()?);
    let timed_out = match call.timeout {
        Some(limit) => Some(enforce_timeout(&sending, connection.try_clone()?, limit)),
        None => None,
    };
    let stdout = Output::new(io::stdout(), Stream::Stdout, &connection, &sending, &turn)?;
    let stderr = Output::new(io::stderr(), Stream::Stderr, &connection, &sending, &turn)?;
    let is_detached = matches!(&call.opening, Opening::Exec(request) if request.detach);
    let start = |started: &Started| -> io::Result<()> {
        has_terminal.store(started.terminal, Ordering::Relaxed);
        call.reports.started(started);
        if !call.sends_stdin {
            return Ok(());
        }
        let keys = &call.detach_keys;
        let mode = match &call.opening {
            _ if !tty::is_terminal() => None,
            _ if started.terminal => Some(tty::Mode::Raw),
            // The command has no terminal: this one edits lines, and Ctrl-C is a signal.
            Opening::Attach(_) => keys.last().map(tty::Mode::Lines),
            Opening::Exec(_) => None,
        };
        let Some(mode) = mode else {
            input::send(&sending, &credit);
            return Ok(());
        };
        tty::set(mode)?;
        let (asking, turn) = (sending.clone(), Arc::clone(&turn));
        typed::send(&sending, &credit, Watch::new(keys.clone()), mode, move || {
            turn.lock().unwrap_or_else(PoisonError::into_inner).detach();
            let _ = asking.message(&Message::Detach);
        });
        Ok(())
    };
    let given_up = Arc::new(AtomicBool::new(false));
    let prepare = |prepared: &Started| -> io::Result<()> {
        call.reports.prepared(prepared);
        match go.take() {
            Some(from) => go::forward(from, &sending, &connection, &given_up),
            None => Ok(()),
        }
    };
    // A command may be silent forever; the agent that starts it may not.
    let starting = PatientReader { stream: &connection, patience: Patience::with(&vm.endpoint, START_TIMEOUT) };
    let ended = receive(starting, &turn, &credit, [&stdout, &stderr], is_detached, prepare, start);
    // A slow reader has all the time it needs, unless the guest has failed.
    let limit = if ended.is_ok() { None } else { Some(FLUSH_TIMEOUT) };
    // Both are finished first: what is queued is written even if the other one failed.
    let written = [("stdout", stdout.finish(limit)), ("stderr", stderr.finish(limit))];
    for (name, result) in written {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(OutputError::ReaderGone.into()),
            other => other.context(name)?,
        }
    }
    let is_over_time = timed_out.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
    match ended {
        Ok(Ended::Exit(exit)) if is_over_time => Ok(Ended::TimedOut(Some(exit))),
        // The guest did not end the command on KILL either, so this side closed the connection.
        Err(_) if is_over_time => Ok(Ended::TimedOut(None)),
        Err(_) if given_up.load(Ordering::Relaxed) => {
            bail!("--prepare-fd: end-of-file before the byte that starts the command")
        }
        other => Ok(other?),
    }
}

/// Reads frames until the last one, with patience until the command has started. Data is queued for the writers; credit bounds the queues.
fn receive(
    mut starting: PatientReader<'_>,
    turn: &Turn,
    credit: &Credit,
    [stdout, stderr]: [&Output; 2],
    is_detached: bool,
    mut prepare: impl FnMut(&Started) -> io::Result<()>,
    start: impl Fn(&Started) -> io::Result<()>,
) -> Result<Ended, wire::Error> {
    let mut decoder = Decoder::default();
    let mut block = vec![0u8; MAX_DATA];
    let mut connection = starting.stream;
    let mut is_answered = false;
    loop {
        let read = if is_answered { connection.read(&mut block) } else { starting.read(&mut block) };
        let mut bytes = match read {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            Ok(got) => &block[..got],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        while let Some(piece) = decoder.next(&mut bytes)? {
            turn.lock().unwrap_or_else(PoisonError::into_inner).take(&piece)?;
            let message = match piece {
                Decoded::Data(Stream::Stdout, bytes) => {
                    stdout.queue(bytes.to_vec());
                    continue;
                }
                Decoded::Data(_, bytes) => {
                    stderr.queue(bytes.to_vec());
                    continue;
                }
                Decoded::Message(message) => message,
            };
            match message {
                Message::Prepared(prepared) => {
                    is_answered = true;
                    connection.set_read_timeout(None)?;
                    prepare(&prepared)?;
                }
                Message::Started(started) if is_detached => {
                    start(&started)?;
                    let listed = Listed {
                        id: started.id,
                        pid: started.pid,
                        argv: Vec::new(),
                        detached: true,
                        attached: false,
                        exit: None,
                    };
                    return Ok(Ended::Detached(Some(listed)));
                }
                Message::Started(started) => {
                    is_answered = true;
                    connection.set_read_timeout(None)?;
                    start(&started)?;
                }
                Message::Credit(_, bytes) => credit.grant(bytes),
                Message::Eof(Stream::Stdin) => credit.refuse(),
                Message::Exit(exit) => return Ok(Ended::Exit(exit)),
                Message::Failure(failure) => return Ok(Ended::Failure(failure)),
                Message::Execs(execs) => return Ok(Ended::Detached(execs.execs.into_iter().next())),
                _ => {}
            }
        }
    }
}

/// Ends the command and everything it started after `limit`, and sets the flag it returns when that happens.
fn enforce_timeout(sending: &Sending, connection: UnixStream, limit: Duration) -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let (flag, sending) = (Arc::clone(&over), sending.clone());
    thread::spawn(move || {
        let end = |signal: Signal| sending.message(&Message::Signal(SignalBody { signal: signal as i32, all: true }));
        thread::sleep(limit);
        flag.store(true, Ordering::Relaxed);
        let _ = end(Signal::SIGTERM).and_then(|()| end(Signal::SIGCONT));
        thread::sleep(KILL_AFTER);
        let _ = end(Signal::SIGKILL);
        thread::sleep(KILL_AFTER);
        let _ = connection.shutdown(Shutdown::Both);
    });
    over
}
