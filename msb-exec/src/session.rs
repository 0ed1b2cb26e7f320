//! One exec seen from the host. The connection is always read, whatever the caller's stdout does: credit bounds what
//! can arrive, so a stopped reader stalls its own command and nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use msb::exit::ReaderGone;
use msb::wire::exec::{Exit, Failure, Request, Signal as SignalBody};
use msb::wire::{self, Decoder, MAX_DATA, Message, Stream, put_data};
use nix::sys::signal::{SigSet, Signal};

use crate::tty;

/// How many bytes of each output may be on their way. Both together are less than a Linux guest sends ahead on a vsock
/// connection (256 KiB) and than a Unix socket holds (208 KiB), so that even a stopped msb-exec makes no VMM wait.
const OUTPUT_CREDIT: u32 = 96 << 10;
/// How long what came before a failure of the guest may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a command that timed out may take to end on TERM.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// How an exec ended, as far as the guest is concerned.
#[derive(Debug)]
pub enum Ended {
    /// The command ran and ended.
    Exit(Exit),
    /// The command ran, and was ended for taking too long.
    TimedOut,
    /// There was no command to run.
    Failure(Failure),
}

/// The sending half of the connection. Frames are written whole.
#[derive(Clone)]
struct Sending(Arc<Mutex<UnixStream>>);

impl Sending {
    fn frame(&self, frame: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(frame)
    }

    fn message(&self, message: &Message) -> io::Result<()> {
        self.frame(&message.to_frame())
    }
}

/// Credit for stdin, which the connection's reader gives and stdin's reader spends.
#[derive(Default)]
struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
}

#[derive(Default)]
struct CreditState {
    bytes: usize,
    unwanted: bool,
}

impl Credit {
    fn give(&self, bytes: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).bytes += bytes;
        self.changed.notify_one();
    }

    /// The command takes no more.
    fn refuse(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).unwanted = true;
        self.changed.notify_one();
    }

    /// Waits for credit; `None` once the command takes no more.
    fn available(&self) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes == 0 && !state.unwanted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.unwanted).then_some(state.bytes)
    }

    fn spend(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
    }
}

/// Runs `request` on a connection that has said hello, with this process's streams, until the command has ended and its
/// output is written.
///
/// # Errors
/// [`ReaderGone`] where nobody reads our stdout; a [`wire::Error`] where the connection or the guest fails.
pub fn run(connection: UnixStream, request: &Request, timeout: Option<Duration>) -> anyhow::Result<Ended> {
    let has_terminal = request.tty.is_some();
    let sending = Sending(Arc::new(Mutex::new(connection.try_clone()?)));
    let mut opening = Message::Exec(request.clone()).to_frame();
    Message::Credit(Stream::Stdout, OUTPUT_CREDIT).put(&mut opening);
    Message::Credit(Stream::Stderr, OUTPUT_CREDIT).put(&mut opening);
    pass_signals_on(&sending, has_terminal);
    sending.frame(&opening)?;

    let credit = Arc::new(Credit::default());
    let (reading, giving) = (sending.clone(), Arc::clone(&credit));
    thread::spawn(move || send_stdin(&reading, &giving));
    let clock = connection.try_clone()?;
    let timed_out = timeout.map(|limit| watch_clock(&sending, clock, limit));

    // Files of our own on the same descriptors: the standard library's would hold bytes back until a newline.
    let (out, err) = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
    let stdout = Output::start(out.into(), Stream::Stdout, &connection, &sending)?;
    let stderr = Output::start(err.into(), Stream::Stderr, &connection, &sending)?;
    let ended = receive(&connection, &credit, &stdout, &stderr);
    // A reader that takes its time is waited for, but not to say that the guest has failed.
    let limit = if ended.is_ok() { None } else { Some(LAST_WORDS) };
    // Both first: what was queued is written even where the other one failed.
    let written = [("stdout", stdout.finish(limit)), ("stderr", stderr.finish(limit))];
    for (name, result) in written {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(ReaderGone.into()),
            other => other.context(name)?,
        }
    }
    match ended {
        // Also where the guest did not even end the command on KILL, and we ended the connection.
        Ok(Ended::Exit(_)) | Err(_) if timed_out.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) => {
            Ok(Ended::TimedOut)
        }
        other => Ok(other?),
    }
}

/// Reads frames until the last one. Data goes to the writers' queues, which credit bounds.
fn receive(
    mut connection: &UnixStream,
    credit: &Credit,
    stdout: &Output,
    stderr: &Output,
) -> Result<Ended, wire::Error> {
    let mut decoder = Decoder::default();
    let mut block = vec![0u8; MAX_DATA];
    loop {
        let got = match connection.read(&mut block) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        decoder.feed(&block[..got]);
        while let Some(message) = decoder.next_message()? {
            match message {
                Message::Data(Stream::Stdout, bytes) => stdout.queue(bytes)?,
                Message::Data(Stream::Stderr, bytes) => stderr.queue(bytes)?,
                Message::Credit(Stream::Stdin, bytes) => credit.give(bytes as usize),
                Message::Eof(Stream::Stdin) => credit.refuse(),
                Message::Eof(_) | Message::Started(_) => {}
                Message::Exit(exit) => return Ok(Ended::Exit(exit)),
                Message::Failure(failure) => return Ok(Ended::Failure(failure)),
                _ => return Err(wire::Error::OutOfTurn("not a frame for the caller of an exec")),
            }
        }
    }
}

/// Sends stdin as credit allows, then its end.
fn send_stdin(sending: &Sending, credit: &Credit) {
    let mut block = vec![0u8; MAX_DATA];
    let mut frame = Vec::with_capacity(MAX_DATA + wire::HEADER);
    while let Some(available) = credit.available() {
        let wanted = available.min(MAX_DATA);
        let got = match rustix::io::read(rustix::stdio::stdin(), &mut block[..wanted]) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            // A closed stdin has nothing to say.
            Err(_) => 0,
        };
        if got == 0 {
            let _ = sending.message(&Message::Eof(Stream::Stdin));
            return;
        }
        credit.spend(got);
        frame.clear();
        put_data(&mut frame, Stream::Stdin, &block[..got]);
        if sending.frame(&frame).is_err() {
            return;
        }
    }
    // Whoever writes to our stdin learns that nobody reads it, as it would from the command itself.
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
}

/// An output of ours: a queue, and a thread that writes it and gives credit for what is written.
struct Output {
    queue: Sender<Vec<u8>>,
    /// Bytes that came and were not written yet.
    pending: Arc<AtomicUsize>,
    written: Receiver<io::Result<()>>,
}

impl Output {
    /// Where `to` fails, the thread ends the connection, and so the command.
    fn start(mut to: File, stream: Stream, connection: &UnixStream, sending: &Sending) -> io::Result<Self> {
        let (queue, queued): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let (sending, connection, unwritten) = (sending.clone(), connection.try_clone()?, Arc::clone(&pending));
        let (done, written) = channel();
        thread::spawn(move || {
            let mut result = Ok(());
            for bytes in queued {
                result = to.write_all(&bytes);
                if result.is_err() {
                    let _ = connection.shutdown(Shutdown::Both);
                    break;
                }
                unwritten.fetch_sub(bytes.len(), Ordering::Relaxed);
                // The command may have ended, and the connection with it.
                let _ = sending.message(&Message::Credit(stream, bytes.len() as u32));
            }
            let _ = done.send(result);
        });
        Ok(Self { queue, pending, written })
    }

    /// Takes bytes of the guest's, which may not send more than it has credit for.
    fn queue(&self, bytes: Vec<u8>) -> Result<(), wire::Error> {
        if bytes.is_empty() {
            // They cost no credit, and so there would be no end to them.
            return Err(wire::Error::OutOfTurn("output without a byte"));
        }
        let pending = self.pending.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if pending > OUTPUT_CREDIT as usize {
            return Err(wire::Error::OutOfTurn("output past its credit"));
        }
        // A writer that failed has ended the connection, which the next read shows.
        let _ = self.queue.send(bytes);
        Ok(())
    }

    /// Waits until all is written, or for `limit` at most.
    fn finish(self, limit: Option<Duration>) -> io::Result<()> {
        drop(self.queue);
        match limit {
            Some(limit) => self.written.recv_timeout(limit).unwrap_or(Ok(())),
            None => self.written.recv().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended"))),
        }
    }
}

/// Signals that the command gets in our place.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks the signals that are passed on. Before any thread is started, so that all have them blocked.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn hold_signals() -> io::Result<()> {
    signals().thread_block().map_err(Into::into)
}

fn signals() -> SigSet {
    PASSED_ON.into_iter().chain([Signal::SIGWINCH]).collect()
}

/// After so many INT or TERM a person wants an end here, whatever the guest does.
const PATIENT_SIGNALS: usize = 3;

fn pass_signals_on(sending: &Sending, has_terminal: bool) {
    let sending = sending.clone();
    thread::spawn(move || {
        let signals = signals();
        let mut insisted = 0;
        while let Ok(signal) = signals.wait() {
            let message = match signal {
                Signal::SIGWINCH if has_terminal => Message::Resize(tty::size()),
                Signal::SIGWINCH => continue,
                other => Message::Signal(SignalBody { signal: other as i32 }),
            };
            insisted += usize::from(matches!(signal, Signal::SIGINT | Signal::SIGTERM));
            let sent = sending.message(&message);
            if signal != Signal::SIGWINCH && (sent.is_err() || insisted >= PATIENT_SIGNALS) {
                // Nobody there to pass it on to: it is for us.
                tty::restore();
                let _ = signals.thread_unblock();
                let _ = nix::sys::signal::raise(signal);
            }
        }
    });
}

/// Ends the command after `limit`. The flag says that it came to that.
fn watch_clock(sending: &Sending, connection: UnixStream, limit: Duration) -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let (flag, sending) = (Arc::clone(&over), sending.clone());
    thread::spawn(move || {
        let end = |signal: Signal| sending.message(&Message::Signal(SignalBody { signal: signal as i32 }));
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
