//! One exec, from its start to its exit: a loop over the caller's connection and the command's streams that never waits on
//! one of them alone. What is in memory is bounded by the credit given for stdin, a few packets, and what is kept of the
//! output of a command without a caller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use msb::wire::exec::{Execs, Exit, Request, Started};
use msb::wire::turn::Window;
use msb::wire::{self, HEADER, Message, Piece, Stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use vsock::VsockStream;

use crate::Agent;
use crate::child::{self, Streams};
use crate::execs::{Exec, Rest};
use crate::group::Group;
use crate::link::{Link, PORTION};
use crate::output::Output;

/// How long the host may take for a frame of the hello, and to take the last one.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes of stdin the host may send ahead of the command at first, and of one that waits for more. The latter is
/// less than what the kernel buffers for a connection ([`crate::listen`]): then vsock's own flow control, at which VMMs get
/// stuck, never has to act.
const STDIN_CREDIT: u32 = 128 << 10;
const MAX_STDIN_CREDIT: u32 = 2 << 20;
/// The window for stdin at first.
const STDIN_WINDOW: Window = Window::growing(STDIN_CREDIT, MAX_STDIN_CREDIT);
/// How long a command that has closed its outputs may take to end, for the word of both to be one packet.
const END_FOLLOWS: Duration = Duration::from_millis(10);
/// How long a command may take to end on HUP when its caller is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

struct Session<'a> {
    agent: &'a Agent,
    exec: Arc<Exec>,
    /// The command's processes; none where it ended before there was a caller.
    group: Option<Group>,
    link: Option<Link>,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_queue: VecDeque<u8>,
    /// What was written past the queue, and not counted yet.
    stdin_written: usize,
    stdin_window: Window,
    stdin_ended: bool,
    /// The last byte that came.
    stdin_last: Option<u8>,
    outputs: Vec<Output>,
}

/// Serves an exec on a connection that has said hello.
///
/// # Errors
/// A broken connection, or frames that make no sense. The command is ended first.
pub fn run(mut connection: VsockStream, agent: &Agent, request: Request) -> Result<(), wire::Error> {
    let (detach, argv) = (request.detach, request.argv.clone());
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
    let argv = if argv.is_empty() { &agent.defaults.argv } else { &argv };
    let exec = agent.execs.add(Arc::clone(&child.group.process), argv, detach)?;
    let mut session = Session {
        agent,
        exec,
        group: Some(child.group),
        link: None,
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
        // Nobody may be there to hear it, and the command was to run anyway.
        let _ = Link::new(connection).and_then(|link| link.finish(&session.started()));
    } else {
        session.welcome(Link::new(connection)?);
    }
    session.serve()
}

/// Serves a caller that attaches to an exec that has ended, with what is kept of its output, which stays for the next one.
///
/// # Errors
/// A broken connection, or frames that make no sense.
pub fn run_ended(connection: VsockStream, agent: &Agent, exec: Arc<Exec>, rest: &Rest) -> Result<(), wire::Error> {
    let mut session = Session {
        agent,
        exec,
        group: None,
        link: None,
        terminal: None,
        stdin: None,
        stdin_queue: VecDeque::new(),
        stdin_written: 0,
        stdin_window: STDIN_WINDOW,
        stdin_ended: true,
        stdin_last: None,
        outputs: rest.iter().map(|(stream, tail)| Output::ended(*stream, tail.clone())).collect(),
    };
    session.welcome(Link::new(connection)?);
    session.pump()
}

/// What a round of polling found.
struct Woken {
    link: PollFlags,
    bell: PollFlags,
    stdin: PollFlags,
    outputs: Vec<PollFlags>,
}

impl Session<'_> {
    fn started(&self) -> Message {
        Message::Started(Started { pid: self.exec.process.pid, id: self.exec.id, terminal: self.terminal.is_some() })
    }

    /// Tells a caller how things are.
    fn welcome(&mut self, mut link: Link) {
        link.queue(&self.started());
        if self.stdin.is_some() && !self.stdin_ended {
            let credit = STDIN_CREDIT - u32::try_from(self.stdin_queue.len()).unwrap_or(0).min(STDIN_CREDIT);
            self.stdin_window = STDIN_WINDOW;
            link.turn.give(credit);
            link.queue(&Message::Credit(Stream::Stdin, credit));
        } else {
            link.queue(&Message::Eof(Stream::Stdin));
        }
        for output in &mut self.outputs {
            output.start_anew();
        }
        self.link = Some(link);
    }

    /// Serves until the command has ended and somebody has been told, or nobody is there to tell.
    fn serve(&mut self) -> Result<(), wire::Error> {
        loop {
            match self.pump() {
                Err(error) if self.exec.is_detached() => {
                    if !matches!(error, wire::Error::Io(_)) {
                        crate::say(&format!("connection ended: {error}"));
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
            let rest = self.outputs.drain(..).map(Output::into_kept).collect();
            let Some((caller, rest)) = self.exec.leave(rest) else { return Ok(()) };
            self.outputs = rest.into_iter().map(|(stream, tail)| Output::ended(stream, tail)).collect();
            self.welcome(Link::new(caller)?);
        }
    }

    /// Whether the command has ended and nothing can come out of it any more.
    fn is_over(&self) -> bool {
        self.exec.exit().is_some() && self.outputs.iter().all(|output| output.source.is_none())
    }

    /// Moves bytes until the command has ended, and with a caller, until that has its output and its exit.
    fn pump(&mut self) -> Result<(), wire::Error> {
        let mut block = vec![0u8; HEADER + PORTION];
        let mut had_closed = false;
        loop {
            if let Some(link) = &mut self.link {
                for output in &mut self.outputs {
                    output.hand_over(link);
                }
            }
            let has_closed = self.outputs.iter().all(|output| output.source.is_none());
            if has_closed && !std::mem::replace(&mut had_closed, true) {
                // It ends a moment later, nearly always.
                wait_readable(self.exec.process.event().as_fd(), Instant::now() + END_FOLLOWS);
            }
            // Asked once a round: a command that ends after this wakes the wait.
            let exit = self.exec.exit();
            let runs = exit.is_none();
            if let Some(exit) = exit
                && has_closed
            {
                match self.link.take() {
                    None => return Ok(()),
                    Some(link) if self.outputs.iter().all(Output::is_drained) => return self.say_goodbye(link, exit),
                    link => self.link = link,
                }
            }
            if let Some(link) = &mut self.link {
                link.flush()?;
            }
            let woken = self.wait(runs)?;
            if !woken.bell.is_empty()
                && let Some(caller) = self.exec.caller()
            {
                self.welcome(Link::new(caller)?);
            }
            if !woken.link.is_empty() {
                self.take_frames(&mut block)?;
            }
            self.feed_stdin(woken.stdin);
            for (output, flags) in self.outputs.iter_mut().zip(woken.outputs) {
                if flags.is_empty() {
                    continue;
                }
                // A pipe may hold several portions. The caller's credit is their end; without a caller there would be none.
                let keeps = self.exec.is_detached();
                while output.take(self.link.as_mut(), keeps, &mut block)? && self.link.is_some() {}
            }
        }
    }

    /// Waits for what there is to wait for; for the command's end, while it `runs`.
    fn wait(&self, runs: bool) -> Result<Woken, wire::Error> {
        let mut fds = Vec::with_capacity(6);
        let mut watch = |fd, flags| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        };
        let link_at = self.link.as_ref().map(Link::wanted).map(|(fd, flags)| watch(fd, flags));
        let bell_at = self.link.is_none().then(|| watch(self.exec.bell().as_fd(), PollFlags::POLLIN));
        if runs {
            watch(self.exec.process.event().as_fd(), PollFlags::POLLIN);
        }
        // A pipe says by itself that its reader left. A terminal says so for ever, and its output is what tells.
        let stdin = self.stdin.as_ref().filter(|_| self.terminal.is_none() || !self.stdin_queue.is_empty());
        let stdin_at = stdin.map(|fd| {
            watch(fd.as_fd(), if self.stdin_queue.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT })
        });
        let outputs_at: Vec<Option<usize>> = self
            .outputs
            .iter()
            .map(|output| output.wants(self.link.as_ref()).map(|fd| watch(fd.as_fd(), PollFlags::POLLIN)))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let flags = |at: Option<usize>| at.and_then(|at| fds[at].revents()).unwrap_or(PollFlags::empty());
        Ok(Woken {
            link: flags(link_at),
            bell: flags(bell_at),
            stdin: flags(stdin_at),
            outputs: outputs_at.into_iter().map(flags).collect(),
        })
    }

    fn take_frames(&mut self, block: &mut [u8]) -> Result<(), wire::Error> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut bytes = link.read(block)?;
        while let Some(link) = &mut self.link
            && let Some(piece) = link.next(&mut bytes)?
        {
            match piece {
                Piece::Data(_, bytes) => self.take_stdin(bytes),
                Piece::Message(message) => self.obey(message)?,
            }
        }
        Ok(())
    }

    /// Hands bytes on to the command's stdin; what that does not take now waits in the queue.
    fn take_stdin(&mut self, bytes: &[u8]) {
        let Some(stdin) = &self.stdin else { return };
        self.stdin_last = bytes.last().copied().or(self.stdin_last);
        // An error will show again where the queue is written.
        let count = if self.stdin_queue.is_empty() { rustix::io::write(stdin, bytes).unwrap_or(0) } else { 0 };
        self.stdin_written += count;
        self.stdin_queue.extend(&bytes[count..]);
    }

    fn obey(&mut self, message: Message) -> Result<(), wire::Error> {
        match message {
            Message::Eof(Stream::Stdin) if self.terminal.is_some() => {
                self.stdin_queue.extend(child::end_of_input(self.terminal.as_ref(), self.stdin_last));
            }
            Message::Eof(Stream::Stdin) => self.stdin_ended = true,
            // The command has ended, and what it left behind holds its streams: the caller does not want to wait for that.
            Message::Signal(_) if self.exec.exit().is_some() => self.outputs.iter_mut().for_each(Output::close),
            Message::Signal(wanted) => {
                if let Some(group) = &self.group {
                    let signal = if wanted.all { Group::signal_all } else { Group::signal };
                    signal(group, &self.agent.reaper, wanted.signal);
                }
            }
            Message::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let _ = child::set_size(terminal, size);
                }
            }
            Message::Detach => {
                self.exec.detach();
                let execs = Execs { execs: vec![self.exec.listed()], ..Execs::default() };
                if let Some(link) = self.link.take() {
                    let _ = link.finish(&Message::Execs(execs));
                }
                self.exec.caller_left();
            }
            // Credit, which the link has taken, and bytes for a stdin that is closed.
            _ => {}
        }
        Ok(())
    }

    /// Writes what is queued for stdin, and gives credit for what was written. A command that closed its stdin is not an error: the
    /// caller is told, and stops.
    fn feed_stdin(&mut self, woken: PollFlags) {
        let Some(stdin) = &self.stdin else { return };
        let mut reader_left = woken.contains(PollFlags::POLLERR) && self.terminal.is_none();
        let mut written = std::mem::take(&mut self.stdin_written);
        while !reader_left && !self.stdin_queue.is_empty() {
            match rustix::io::write(stdin, self.stdin_queue.as_slices().0) {
                Ok(count) => {
                    self.stdin_queue.drain(..count);
                    written += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => reader_left = true,
            }
        }
        let link = self.link.as_mut().filter(|link| !link.turn.stdin_ended());
        if reader_left {
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
            link.turn.give(owed);
            link.queue(&Message::Credit(Stream::Stdin, owed));
        }
    }

    /// Says how the command ended, when nothing of it is left.
    fn say_goodbye(&mut self, link: Link, mut exit: Exit) -> Result<(), wire::Error> {
        if let Some(group) = self.group.as_ref().filter(|_| !self.exec.is_detached()) {
            group.end();
        }
        if let (Some(usage), Some((user, system))) = (&mut exit.usage, self.group.as_ref().and_then(Group::time)) {
            (usage.user_us, usage.system_us) = (usage.user_us.max(user), usage.system_us.max(system));
        }
        link.finish(&Message::Exit(exit))?;
        Ok(())
    }

    /// Ends a command whose caller is gone: HUP, as a closed terminal does it, then KILL for all that is left.
    fn end_orphan(&mut self) {
        self.link = None;
        self.outputs.clear();
        self.stdin = None;
        self.terminal = None;
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
    /// Also where a panic ends the session: its command may not go on without anybody to wait for it.
    fn drop(&mut self) {
        if self.group.is_none() {
            return;
        }
        if std::thread::panicking() {
            self.end_orphan();
        }
        self.agent.execs.end(&self.exec);
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
