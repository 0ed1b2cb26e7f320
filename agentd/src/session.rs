//! One exec, from its start to its exit: a loop over the caller's connection and the command's streams that never buffers on one of them.
//! Memory is bounded by the credit for stdin, a few packets, and the output that is kept of a command without a caller.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msb::wire::exec::{Execs, Exit, Request, Started};
use msb::wire::sequence::Window;
use msb::wire::{self, Decoded, HEADER, Message, Stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::agent::Agent;
use crate::barrier::Waiting;
use crate::execs::{Exec, KeptOutput};
use crate::group::Group;
use crate::link::{CHUNK, Link};
use crate::output::Output;
use crate::streams::{self, Streams};
use crate::{child, console};

/// How many bytes of stdin the host may send ahead of the command: at first, and at most if the command reads quickly. The latter is less
/// than the kernel's buffer for a connection, so vsock's own flow control, in which VMMs hang, is never used.
const STDIN_CREDIT: u32 = 128 << 10;
const MAX_STDIN_CREDIT: u32 = 2 << 20;
/// The initial window for stdin.
const STDIN_WINDOW: Window = Window::growing(STDIN_CREDIT, MAX_STDIN_CREDIT);
/// How long to wait for the exit of a command that has closed an output, so that all ends are sent in one packet.
const END_FOLLOWS: Duration = Duration::from_millis(10);
/// How long a command may take to end after SIGHUP when its caller is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

thread_local! {
    /// The buffer of the thread's sessions, one after the other. Mapping and unmapping one would interrupt the other processors.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Session<'a> {
    agent: &'a Agent,
    exec: Arc<Exec>,
    /// The command's processes. `None`: it ended before this caller came.
    group: Option<Group>,
    link: Option<Link>,
    /// The barrier at which a prepared command waits.
    waiting: Option<Waiting>,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_queue: VecDeque<u8>,
    /// Bytes that were written without the queue and are not in the window yet.
    stdin_written: usize,
    stdin_window: Window,
    stdin_ended: bool,
    /// The last byte that was received.
    stdin_last: Option<u8>,
    outputs: Vec<Output>,
}

/// Starts a command and serves it, on a connection after the hello.
///
/// # Errors
/// A broken connection, or invalid frames. The command is ended first.
pub fn run(mut connection: UnixStream, agent: &Agent, request: Request) -> Result<(), wire::Error> {
    let (detach, argv, is_container) = (request.detach, request.argv.clone(), request.container.is_some());
    let child = match child::start(agent, request) {
        Ok(child) => child,
        Err(failure) => return Ok(Message::Failure(failure).send(&mut connection)?),
    };
    let (stdin, terminal, sources) = match child.streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            (stdin, None, vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)])
        }
        Streams::Terminal(fd) => {
            let (reading, sizing) = (fd.try_clone()?, fd.try_clone()?);
            (Some(fd), Some(sizing), vec![(Stream::Stdout, reading)])
        }
    };
    for fd in sources.iter().map(|(_, fd)| fd).chain(&stdin) {
        rustix::io::ioctl_fionbio(fd, true).map_err(io::Error::from)?;
    }
    let defaults = agent.defaults();
    let argv = if argv.is_empty() { &defaults.argv } else { &argv };
    let limited = child.group.limited();
    let exec = agent.execs.add(Arc::clone(&child.group.process), argv, is_container, limited, detach)?;
    let mut session = Session {
        agent,
        exec,
        group: Some(child.group),
        link: None,
        waiting: child.waiting,
        terminal,
        stdin,
        stdin_queue: VecDeque::new(),
        stdin_written: 0,
        stdin_window: STDIN_WINDOW,
        stdin_ended: false,
        stdin_last: None,
        outputs: sources.into_iter().map(|(stream, fd)| Output::new(stream, fd)).collect(),
    };
    if detach {
        agent.recorder.detached(session.exec.listed());
        // The command runs even if the caller has gone.
        let _ = Link::new(connection).and_then(|link| link.finish(&session.started()));
    } else if session.waiting.is_some() {
        let mut link = Link::new(connection)?;
        link.turn.prepare();
        link.queue(&Message::Prepared(session.about()));
        session.link = Some(link);
    } else {
        session.take_caller(Link::new(connection)?);
    }
    session.serve()
}

/// Serves a caller that attaches to an exec after its end, with the output that was kept. It remains for later callers.
///
/// # Errors
/// A broken connection, or invalid frames.
pub fn run_ended(connection: UnixStream, agent: &Agent, exec: Arc<Exec>, kept: &KeptOutput) -> Result<(), wire::Error> {
    let mut session = Session {
        agent,
        exec,
        group: None,
        link: None,
        waiting: None,
        terminal: None,
        stdin: None,
        stdin_queue: VecDeque::new(),
        stdin_written: 0,
        stdin_window: STDIN_WINDOW,
        stdin_ended: true,
        stdin_last: None,
        outputs: kept.iter().map(|(stream, tail)| Output::ended(*stream, tail.clone())).collect(),
    };
    session.take_caller(Link::new(connection)?);
    session.pump()
}

/// The events of one call of poll(2).
struct Events {
    link: PollFlags,
    caller_event: PollFlags,
    stdin: PollFlags,
    outputs: Vec<PollFlags>,
}

impl Session<'_> {
    fn about(&self) -> Started {
        Started { pid: self.exec.process.pid, id: self.exec.id, terminal: self.terminal.is_some() }
    }

    fn started(&self) -> Message {
        Message::Started(self.about())
    }

    /// Takes a new caller, which has not been told about the end of any stream.
    fn take_caller(&mut self, link: Link) {
        for output in &mut self.outputs {
            output.reset_for_caller();
        }
        self.greet(link);
    }

    /// Tells a caller that the command runs, and the state of its stdin.
    fn greet(&mut self, mut link: Link) {
        link.queue(&self.started());
        if self.stdin.is_some() && !self.stdin_ended {
            let credit = STDIN_CREDIT - u32::try_from(self.stdin_queue.len()).unwrap_or(0).min(STDIN_CREDIT);
            self.stdin_window = STDIN_WINDOW;
            link.turn.grant(credit);
            link.queue(&Message::Credit(Stream::Stdin, credit));
        } else {
            link.queue(&Message::Eof(Stream::Stdin));
        }
        self.link = Some(link);
    }

    /// Serves until the command has ended and the caller, if there is one, has been told.
    fn serve(&mut self) -> Result<(), wire::Error> {
        loop {
            match self.pump() {
                Err(error) if self.exec.is_detached() => {
                    if !matches!(error, wire::Error::Io(_)) {
                        console::log(&format!("connection closed: {error}"));
                    }
                    self.link = None;
                    self.exec.caller_left();
                }
                Err(error) => {
                    self.end_orphan();
                    return Err(error);
                }
                Ok(()) => {}
            }
            if !self.is_over() {
                continue;
            }
            let kept = self.outputs.drain(..).map(Output::into_tail).collect();
            let Some((caller, kept)) = self.exec.leave(kept) else { return Ok(()) };
            self.outputs = kept.into_iter().map(|(stream, tail)| Output::ended(stream, tail)).collect();
            self.take_caller(Link::new(caller)?);
        }
    }

    /// Whether the command has ended and all of its output has been read.
    fn is_over(&self) -> bool {
        self.exec.exit().is_some() && self.outputs.iter().all(|output| output.source.is_none())
    }

    /// Moves bytes until the command has ended and the caller, if there is one, has its output and its exit.
    fn pump(&mut self) -> Result<(), wire::Error> {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.is_empty() {
                *buffer = vec![0u8; HEADER + CHUNK];
            }
            self.pump_through(buffer)
        })
    }

    /// The same, with a buffer for a chunk and its header.
    fn pump_through(&mut self, buffer: &mut [u8]) -> Result<(), wire::Error> {
        let mut had_closed_one = false;
        loop {
            if let Some(link) = &mut self.link {
                for output in &mut self.outputs {
                    output.send_kept(link);
                }
            }
            let has_closed_one = self.outputs.iter().any(|output| output.source.is_none());
            if has_closed_one && !std::mem::replace(&mut had_closed_one, true) {
                // Nearly always it has exited, or does so a moment later.
                self.agent.reaper.reap_child(&self.exec.process);
                if self.exec.exit().is_none() {
                    wait_readable(self.exec.process.event().as_fd(), Instant::now() + END_FOLLOWS);
                }
                if self.exec.exit().is_some() {
                    // The other output has ended too, unless a process that the command started has it open.
                    self.take_outputs(buffer, |_| true)?;
                    continue;
                }
            }
            let has_closed = self.outputs.iter().all(|output| output.source.is_none());
            // Read once per round: an exit after this ends the poll.
            let exit = self.exec.exit();
            let runs = exit.is_none();
            if let Some(exit) = exit
                && has_closed
            {
                match self.link.take() {
                    None => return Ok(()),
                    Some(link) if self.outputs.iter().all(Output::is_drained) => return self.send_exit(link, exit),
                    link => self.link = link,
                }
            }
            if let Some(link) = &mut self.link {
                link.flush()?;
            }
            let events = self.wait(runs)?;
            if !events.caller_event.is_empty()
                && let Some(caller) = self.exec.take_waiting()
            {
                self.take_caller(Link::new(caller)?);
            }
            if !events.link.is_empty() {
                self.take_frames(buffer)?;
            }
            self.feed_stdin(events.stdin);
            self.take_outputs(buffer, |output| !events.outputs[output].is_empty())?;
        }
    }

    /// Reads the outputs for which `is_ready` is true, by their index, as far as the caller has room.
    fn take_outputs(&mut self, buffer: &mut [u8], is_ready: impl Fn(usize) -> bool) -> io::Result<()> {
        let recorder = self.exec.is_detached().then_some((&self.agent.recorder, self.exec.id));
        for (index, output) in self.outputs.iter_mut().enumerate() {
            if !is_ready(index) || output.readable_fd(self.link.as_ref()).is_none() {
                continue;
            }
            // A pipe may hold several chunks. The caller's credit ends the loop; without a caller it would not end.
            while output.take(self.link.as_mut(), recorder, buffer)? && self.link.is_some() {}
        }
        Ok(())
    }

    /// Waits for an event; for the command's end too, if it `runs`.
    fn wait(&self, runs: bool) -> Result<Events, wire::Error> {
        let mut fds = Vec::with_capacity(6);
        let mut watch = |fd, flags| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        };
        let link_at = self.link.as_ref().map(Link::poll_flags).map(|(fd, flags)| watch(fd, flags));
        let caller_event_at = self.link.is_none().then(|| watch(self.exec.caller_event().as_fd(), PollFlags::POLLIN));
        if runs {
            watch(self.exec.process.event().as_fd(), PollFlags::POLLIN);
        }
        // A pipe reports POLLERR when its reader is gone. A terminal would report it all the time, and its output ends then too.
        let stdin = self.stdin.as_ref().filter(|_| self.terminal.is_none() || !self.stdin_queue.is_empty());
        let stdin_at = stdin.map(|fd| {
            watch(fd.as_fd(), if self.stdin_queue.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT })
        });
        let outputs_at: Vec<Option<usize>> = self
            .outputs
            .iter()
            .map(|output| output.readable_fd(self.link.as_ref()).map(|fd| watch(fd.as_fd(), PollFlags::POLLIN)))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let flags = |at: Option<usize>| at.and_then(|at| fds[at].revents()).unwrap_or(PollFlags::empty());
        Ok(Events {
            link: flags(link_at),
            caller_event: flags(caller_event_at),
            stdin: flags(stdin_at),
            outputs: outputs_at.into_iter().map(flags).collect(),
        })
    }

    fn take_frames(&mut self, buffer: &mut [u8]) -> Result<(), wire::Error> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut bytes = link.read(buffer)?;
        while let Some(link) = &mut self.link
            && let Some(item) = link.next(&mut bytes)?
        {
            match item {
                Decoded::Data(_, bytes) => self.write_stdin(bytes),
                Decoded::Message(message) => self.handle(message)?,
            }
        }
        Ok(())
    }

    /// Writes bytes to the command's stdin, and queues what it does not accept now.
    fn write_stdin(&mut self, bytes: &[u8]) {
        let Some(stdin) = &self.stdin else { return };
        self.stdin_last = bytes.last().copied().or(self.stdin_last);
        // An error will occur again when the queue is written.
        let count = if self.stdin_queue.is_empty() { rustix::io::write(stdin, bytes).unwrap_or(0) } else { 0 };
        self.stdin_written += count;
        self.stdin_queue.extend(&bytes[count..]);
    }

    fn handle(&mut self, message: Message) -> Result<(), wire::Error> {
        match message {
            Message::Eof(Stream::Stdin) if self.terminal.is_some() => {
                self.stdin_queue.extend(streams::end_of_input(self.terminal.as_ref(), self.stdin_last));
            }
            Message::Eof(Stream::Stdin) => self.stdin_ended = true,
            // The command has ended, but processes that it started hold its streams. The caller does not want to wait for them.
            Message::Signal(_) if self.exec.exit().is_some() => self.outputs.iter_mut().for_each(Output::close),
            Message::Signal(wanted) => {
                if let Some(group) = &self.group {
                    let signal = if wanted.all { Group::signal_all } else { Group::signal };
                    signal(group, &self.agent.reaper, wanted.signal);
                }
            }
            Message::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let _ = streams::set_size(terminal, size);
                }
            }
            Message::Go => self.start_prepared(),
            Message::Detach => {
                self.exec.detach();
                let listed = self.exec.listed();
                self.agent.recorder.detached(listed.clone());
                let execs = Execs { execs: vec![listed], ..Execs::default() };
                if let Some(link) = self.link.take() {
                    let _ = link.finish(&Message::Execs(execs));
                }
                self.exec.caller_left();
            }
            // Credit, which the link has handled, and the end of a stdin that is closed.
            _ => {}
        }
        Ok(())
    }

    /// Lets a prepared command go.
    fn start_prepared(&mut self) {
        let (Some(waiting), Some(link)) = (self.waiting.take(), self.link.take()) else { return };
        match waiting.open() {
            // If it was killed meanwhile, this caller may know about the end of an output.
            Ok(()) => self.greet(link),
            Err(not_started) => {
                let program = self.exec.program();
                let _ = link.finish(&Message::Failure(child::failed_to_start(&program, &not_started)));
                // Its process ends, and there is nothing else to say.
                self.outputs.clear();
            }
        }
    }

    /// Writes the queue to stdin and gives credit for what was written. If the command has closed its stdin, the caller is told so and stops
    /// sending.
    fn feed_stdin(&mut self, events: PollFlags) {
        let Some(stdin) = &self.stdin else { return };
        let mut reader_is_gone = events.contains(PollFlags::POLLERR) && self.terminal.is_none();
        let mut written = std::mem::take(&mut self.stdin_written);
        while !reader_is_gone && !self.stdin_queue.is_empty() {
            match rustix::io::write(stdin, self.stdin_queue.as_slices().0) {
                Ok(count) => {
                    self.stdin_queue.drain(..count);
                    written += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => reader_is_gone = true,
            }
        }
        // The caller of a prepared command is told when the command runs.
        let is_prepared = self.waiting.is_some();
        let link = self.link.as_mut().filter(|link| !is_prepared && !link.turn.stdin_ended());
        if reader_is_gone {
            self.stdin_queue.clear();
            self.stdin = None;
            if let Some(link) = link {
                link.queue(&Message::Eof(Stream::Stdin));
            }
        } else if self.stdin_ended && self.stdin_queue.is_empty() {
            self.stdin = None;
        } else if let Some(link) = link
            && let Some(owed) = self.stdin_window.add(written, self.stdin_queue.len())
        {
            link.turn.grant(owed);
            link.queue(&Message::Credit(Stream::Stdin, owed));
        }
    }

    /// Sends the exit, after the processes that are left have been killed.
    fn send_exit(&mut self, link: Link, mut exit: Exit) -> Result<(), wire::Error> {
        if let Some(group) = self.group.as_ref().filter(|_| !self.exec.is_detached()) {
            group.end();
        }
        if let (Some(usage), Some((user, system))) = (&mut exit.usage, self.group.as_ref().and_then(Group::time)) {
            (usage.user_us, usage.system_us) = (usage.user_us.max(user), usage.system_us.max(system));
        }
        exit.oom = self.group.as_ref().is_some_and(Group::was_out_of_memory);
        link.finish(&Message::Exit(exit))?;
        Ok(())
    }

    /// Ends a command whose caller is gone: with SIGHUP, as a closed terminal does, and then SIGKILL for all processes that are left.
    fn end_orphan(&mut self) {
        self.link = None;
        self.outputs.clear();
        self.stdin = None;
        self.terminal = None;
        // A command that has not begun ends at once.
        self.waiting = None;
        let Some(group) = &self.group else { return };
        if self.exec.exit().is_none() {
            group.signal(&self.agent.reaper, Signal::SIGHUP as i32);
            group.signal(&self.agent.reaper, Signal::SIGCONT as i32);
            wait_readable(self.exec.process.event().as_fd(), Instant::now() + ORPHAN_GRACE);
            group.signal(&self.agent.reaper, Signal::SIGKILL as i32);
        }
        group.end();
    }
}

impl Drop for Session<'_> {
    /// Cleans up, even if a panic ends the session: its command must not go on without a thread that waits for it.
    fn drop(&mut self) {
        if self.group.is_none() {
            return;
        }
        if std::thread::panicking() {
            self.end_orphan();
        }
        self.agent.execs.end(&self.exec);
        if self.exec.is_detached() {
            self.agent.recorder.ended(self.exec.listed());
        }
        if let Some(group) = &mut self.group {
            group.dispose(&self.agent.execs.cgroups);
            self.agent.execs.cgroups.prepare();
        }
    }
}

fn wait_readable(fd: BorrowedFd<'_>, until: Instant) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Err(nix::Error::EINTR) => {}
            _ => return,
        }
    }
}
