//! One exec, from its first frame to its exit: a loop over the connection and the command's streams that never waits on
//! one of them alone. What is in memory is bounded by the credit given for stdin and one frame a stream.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use msb::wire::exec::{Exit, Request, Started};
use msb::wire::{self, Decoder, MAX_DATA, Message, Stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use vsock::VsockStream;

use crate::Agent;
use crate::child::{self, Streams};
use crate::reap::Reaper;

/// How long the host may take for a frame of the hello, and to take the last one.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes of stdin the host may send ahead of the command. Less than the 256 KiB that Linux buffers for a vsock
/// connection: then vsock's own flow control, at which VMMs get stuck, never has to act.
const STDIN_CREDIT: u32 = 128 << 10;
/// Output is read while less than this waits for the connection, in bytes.
const OUT_ENOUGH: usize = 2 * MAX_DATA;
/// The most bytes of one write, and so of one packet. The guest's kernel (seen with 6.12.113) scatters packets of over
/// 32 KiB over several descriptors, and vhost-device-vsock 0.3.0 drops what is scattered.
const MAX_PACKET: usize = 31 << 10;
/// How long a command may take to end on HUP when its caller is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// Ctrl-D: the end of input as a terminal says it.
const END_OF_TRANSMISSION: u8 = 4;

/// An output of the command.
struct Output {
    stream: Stream,
    source: Option<OwnedFd>,
    credit: u64,
}

struct Session<'a> {
    reaper: &'a Reaper,
    connection: VsockStream,
    decoder: Decoder,
    process: std::sync::Arc<crate::reap::Awaited>,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_queue: VecDeque<u8>,
    stdin_credit: u64,
    stdin_ended: bool,
    outputs: Vec<Output>,
    /// Frames on their way out.
    out: Vec<u8>,
}

/// Serves an exec on a connection that has said hello.
///
/// # Errors
/// A broken connection, or frames that make no sense. The command is ended first.
pub fn run(mut connection: VsockStream, agent: &Agent, request: Request) -> Result<(), wire::Error> {
    let child = match child::start(&agent.reaper, request, &agent.defaults) {
        Ok(child) => child,
        Err(failure) => return Ok(Message::Failure(failure).send(&mut connection)?),
    };
    let (stdin, terminal, sources) = match child.streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            (stdin, None, vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)])
        }
        Streams::Terminal(fd) => {
            let (reading, sizing) = (fd.try_clone()?, fd.try_clone()?);
            (fd, Some(sizing), vec![(Stream::Stdout, reading)])
        }
    };
    for fd in sources.iter().map(|(_, fd)| fd).chain([&stdin]) {
        rustix::io::ioctl_fionbio(fd, true).map_err(io::Error::from)?;
    }
    connection.set_nonblocking(true)?;
    let mut out = Message::Started(Started { pid: child.process.pid }).to_frame();
    Message::Credit(Stream::Stdin, STDIN_CREDIT).put(&mut out);
    let mut session = Session {
        reaper: &agent.reaper,
        connection,
        decoder: Decoder::default(),
        process: child.process,
        terminal,
        stdin: Some(stdin),
        stdin_queue: VecDeque::new(),
        stdin_credit: STDIN_CREDIT.into(),
        stdin_ended: false,
        outputs: sources.into_iter().map(|(stream, fd)| Output { stream, source: Some(fd), credit: 0 }).collect(),
        out,
    };
    let result = session.pump();
    if session.process.exit().is_none() {
        session.end_orphan();
    }
    result
}

/// What a round of polling found.
struct Woken {
    connection: PollFlags,
    stdin: PollFlags,
    outputs: Vec<PollFlags>,
}

impl Session<'_> {
    /// Moves bytes until the command has ended, its output is sent, and its exit is.
    fn pump(&mut self) -> Result<(), wire::Error> {
        let mut block = vec![0u8; MAX_DATA];
        loop {
            let exit = self.process.exit();
            let drained = self.outputs.iter().all(|output| output.source.is_none());
            if let (Some(exit), true) = (exit, drained) {
                return self.say_goodbye(exit);
            }
            let woken = self.wait(exit.is_some())?;
            if woken.connection.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.take_frames(&mut block)?;
            }
            self.feed_stdin(woken.stdin)?;
            for (place, flags) in woken.outputs.iter().enumerate() {
                if !flags.is_empty() {
                    self.take_output(place, &mut block)?;
                }
            }
            self.flush()?;
        }
    }

    fn wait(&self, exited: bool) -> Result<Woken, wire::Error> {
        let mut wanted = PollFlags::POLLIN;
        if !self.out.is_empty() {
            wanted |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.connection.as_fd(), wanted)];
        if !exited {
            fds.push(PollFd::new(self.process.event().as_fd(), PollFlags::POLLIN));
        }
        // A pipe says by itself that its reader left. A terminal says so for ever, and its output is what tells.
        let watched = self.stdin.as_ref().filter(|_| self.terminal.is_none() || !self.stdin_queue.is_empty());
        let stdin_at = watched.map(|fd| {
            let wanted = if self.stdin_queue.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            fds.push(PollFd::new(fd.as_fd(), wanted));
            fds.len() - 1
        });
        let outputs_at: Vec<Option<usize>> = self.outputs.iter().map(|output| self.watch(output, &mut fds)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let flags = |at: usize| fds[at].revents().unwrap_or(PollFlags::empty());
        Ok(Woken {
            connection: flags(0),
            stdin: stdin_at.map_or(PollFlags::empty(), flags),
            outputs: outputs_at.into_iter().map(|at| at.map_or(PollFlags::empty(), flags)).collect(),
        })
    }

    /// An output is watched only while there is credit and room: a hang-up cannot be masked, and would spin.
    fn watch<'a>(&self, output: &'a Output, fds: &mut Vec<PollFd<'a>>) -> Option<usize> {
        let source = output.source.as_ref().filter(|_| output.credit > 0 && self.out.len() < OUT_ENOUGH)?;
        fds.push(PollFd::new(source.as_fd(), PollFlags::POLLIN));
        Some(fds.len() - 1)
    }

    fn take_frames(&mut self, block: &mut [u8]) -> Result<(), wire::Error> {
        let got = match (&self.connection).read(block) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
            Ok(got) => got,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.decoder.feed(&block[..got]);
        while let Some(message) = self.decoder.next_message()? {
            self.obey(message)?;
        }
        Ok(())
    }

    fn obey(&mut self, message: Message) -> Result<(), wire::Error> {
        match message {
            Message::Data(Stream::Stdin, bytes) => {
                let length = bytes.len() as u64;
                if self.stdin_ended || length > self.stdin_credit {
                    return Err(wire::Error::OutOfTurn("stdin past its credit or its end"));
                }
                self.stdin_credit -= length;
                if self.stdin.is_some() {
                    self.stdin_queue.extend(bytes);
                }
            }
            Message::Eof(Stream::Stdin) => {
                self.stdin_ended = true;
                if self.terminal.is_some() {
                    self.stdin_queue.push_back(END_OF_TRANSMISSION);
                }
            }
            Message::Credit(stream, bytes) => {
                let output = self.outputs.iter_mut().find(|output| output.stream == stream);
                if let Some(output) = output {
                    output.credit = output.credit.saturating_add(bytes.into());
                }
            }
            Message::Signal(wanted) if !(1..=64).contains(&wanted.signal) => {
                return Err(wire::Error::OutOfTurn("no such signal"));
            }
            // The command has ended, and what it left behind holds its streams: the caller does not want to wait for that.
            Message::Signal(_) if self.process.exit().is_some() => {
                for output in &mut self.outputs {
                    output.source = None;
                }
            }
            Message::Signal(wanted) => self.reaper.signal(&self.process, wanted.signal),
            Message::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let _ = child::set_size(terminal, size);
                }
            }
            _ => return Err(wire::Error::OutOfTurn("not a frame for a running exec")),
        }
        Ok(())
    }

    /// Writes what is queued for stdin, and gives credit for it. A command that closed its stdin is not an error: the
    /// caller is told, and stops.
    fn feed_stdin(&mut self, woken: PollFlags) -> io::Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let mut reader_left = woken.contains(PollFlags::POLLERR) && self.terminal.is_none();
        let mut written = 0;
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
        if reader_left {
            self.stdin_queue.clear();
            self.stdin = None;
            if !self.stdin_ended {
                self.send(&Message::Eof(Stream::Stdin));
            }
        } else if self.stdin_ended && self.stdin_queue.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        } else if written > 0 && !self.stdin_ended {
            self.stdin_credit += written as u64;
            self.send(&Message::Credit(Stream::Stdin, written as u32));
        }
        Ok(())
    }

    fn take_output(&mut self, place: usize, block: &mut [u8]) -> io::Result<()> {
        let output = &mut self.outputs[place];
        let Some(source) = &output.source else { return Ok(()) };
        let wanted = block.len().min(usize::try_from(output.credit).unwrap_or(usize::MAX));
        match rustix::io::read(source, &mut block[..wanted]) {
            // EIO is how a terminal says that nobody is at its other end any more.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                output.source = None;
                let stream = output.stream;
                self.send(&Message::Eof(stream));
            }
            Ok(got) => {
                output.credit -= got as u64;
                let stream = output.stream;
                wire::put_data(&mut self.out, stream, &block[..got]);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn send(&mut self, message: &Message) {
        message.put(&mut self.out);
    }

    /// Writes as much as the connection takes now.
    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            let packet = &self.out[sent..];
            match (&self.connection).write(&packet[..packet.len().min(MAX_PACKET)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.drain(..sent);
        Ok(())
    }

    fn say_goodbye(&mut self, exit: Exit) -> Result<(), wire::Error> {
        self.send(&Message::Exit(exit));
        self.connection.set_nonblocking(false)?;
        self.connection.set_write_timeout(Some(PATIENCE))?;
        Ok(self.flush()?)
    }

    /// Ends a command whose caller is gone: HUP, as a closed terminal does it, then KILL.
    fn end_orphan(&mut self) {
        self.outputs.clear();
        self.stdin = None;
        self.terminal = None;
        self.reaper.signal(&self.process, Signal::SIGHUP as i32);
        self.reaper.signal(&self.process, Signal::SIGCONT as i32);
        wait_readable(self.process.event().as_fd(), Instant::now() + ORPHAN_GRACE);
        self.reaper.signal(&self.process, Signal::SIGKILL as i32);
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
