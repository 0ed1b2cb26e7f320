//! Decompresses in a process of its own, which can read its stdin, write to its stdout, and do nothing else. The data is hostile, and the
//! libraries for some formats are written in C. What comes out is checked against its digest by the caller, so a decompressor that was
//! taken over cannot pass off one layer as another, and damage to a later layer is noticed in the same way.
//!
//! It reads streams in [`frames`], each the name of the format and then the data, and writes a stream of decompressed data for each. On
//! malformed data it exits, and its exit status says why.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, anyhow, ensure};
use msb::program::OWN_EXECUTABLE;
use msb::{inherited, jail};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::compression::{self, Compression};
use crate::frames::{self, Frames};

/// The argument that makes this program a decompressor.
const ROLE: &str = "--as-decompressor";

/// The size of a piece that is passed on, in bytes.
const PIECE: usize = 1 << 18;
/// The most bytes of a format's name.
const MAX_NAME: usize = 16;
/// The size of a pipe, in bytes: the most that a user may set.
const PIPE: usize = 1 << 20;

/// The exit status for data that ends too early.
const TRUNCATED: u8 = 3;
/// The exit status for malformed data.
const MALFORMED: u8 = 4;
/// The exit status of a decompressor that cannot confine itself.
const NOT_SEALED: u8 = 5;

/// A process that decompresses one stream after another. It is started at the first use, and the kernel kills it when the thread that
/// started it ends.
#[derive(Default)]
pub(crate) struct Decompressor(Option<Running>);

struct Running {
    child: Child,
    /// `None` after a stream that could not be sent completely.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Decompressor {
    /// Decompresses `packed`, and passes the result to `take` in pieces of at most 256 KiB. All calls must come from one thread.
    ///
    /// # Errors
    /// Those of `packed` and `take`; a message for malformed data.
    pub(crate) fn decompress(
        &mut self,
        packed: impl BufRead + Send,
        mut take: impl FnMut(Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (compression, mut packed) = compression::detect(packed)?;
        if compression == Compression::None {
            return pass_on(&mut packed, &mut take);
        }
        let running = self.0.take().map_or_else(Running::start, Ok);
        let mut running = running.context("starting the decompressor")?;
        let Running { child, stdin, stdout } = &mut running;
        let (fed, taken) = thread::scope(|scope| {
            let fed = scope.spawn(move || feed(compression, packed, stdin));
            let taken = receive(stdout, &mut take);
            if taken.is_err() {
                // Its end also ends the thread that feeds it.
                let _ = child.kill();
            }
            (fed.join(), taken)
        });
        fed.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
        if taken? {
            // A process is used again only if it has completed the stream.
            self.0 = Some(running);
            return Ok(());
        }
        check(compression, running.child.wait()?)
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let mut child = Command::new(OWN_EXECUTABLE)
            .arg0("msb-pull")
            .arg(ROLE)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
        // The pipes work with any size.
        let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE);
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE);
        Ok(Self { child, stdin: Some(stdin), stdout })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or is idle.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Sends a stream. That the decompressor has ended is not an error here. After an error its stdin is closed, and it exits.
fn feed(compression: Compression, packed: impl BufRead, stdin: &mut Option<ChildStdin>) -> io::Result<()> {
    let Some(pipe) = stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
    match feed_pipe(compression, packed, pipe) {
        // Its exit status tells why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            *stdin = None;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

fn feed_pipe(compression: Compression, mut packed: impl BufRead, pipe: &mut ChildStdin) -> io::Result<()> {
    frames::put(pipe, compression.name().as_bytes())?;
    loop {
        let data = match packed.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            data => data?,
        };
        frames::put(pipe, data)?;
        match data.len() {
            0 => return Ok(()),
            length => packed.consume(length),
        }
    }
}

/// Passes on the pieces of one stream. Returns whether it is complete: the process ends early if the data is malformed.
fn receive(stdout: &mut ChildStdout, take: &mut impl FnMut(Vec<u8>) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    loop {
        let length = match frames::length(stdout)? {
            None => return Ok(false),
            Some(0) => return Ok(true),
            Some(length) => length,
        };
        ensure!(length <= PIECE, "the decompressor sent a frame of {length} bytes (report this)");
        let mut piece = Vec::with_capacity(length);
        stdout.by_ref().take(length as u64).read_to_end(&mut piece)?;
        if piece.len() < length {
            return Ok(false);
        }
        take(piece)?;
    }
}

/// Passes on data that is not compressed.
fn pass_on(from: &mut impl Read, take: &mut impl FnMut(Vec<u8>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => take(piece[..length].to_vec())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn check(compression: Compression, status: ExitStatus) -> anyhow::Result<()> {
    let name = compression.name();
    match status.code().map(u8::try_from) {
        Some(Ok(TRUNCATED)) => Err(anyhow!("truncated {name} data")),
        Some(Ok(MALFORMED)) => Err(anyhow!("bad {name} data")),
        Some(Ok(NOT_SEALED)) => Err(anyhow!(
            "the decompressor for {name} cannot confine itself (the kernel must have CONFIG_SECCOMP_FILTER)"
        )),
        Some(_) => Err(anyhow!("the decompressor for {name} failed: {status}")),
        None => {
            let signal = status.signal().unwrap_or_default();
            Err(anyhow!("the decompressor for {name} was killed by signal {signal}"))
        }
    }
}

/// Whether this process is a decompressor.
pub(crate) fn is_role() -> bool {
    std::env::args_os().nth(1).is_some_and(|role| role == ROLE)
}

/// Decompresses what comes on stdin to stdout, after it has given up everything else.
pub(crate) fn run() -> ExitCode {
    let status = seal().map_or(NOT_SEALED, |()| match serve() {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => TRUNCATED,
        Err(_) => MALFORMED,
    });
    status.into()
}

/// Leaves this process its standard streams alone. The kernel kills it when the thread that has started it ends.
fn seal() -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    inherited::close(&[])?;
    Ok(jail::seal()?)
}

fn serve() -> io::Result<()> {
    let mut streams = Frames::new(BufReader::with_capacity(PIECE, Pipe(rustix::stdio::stdin())));
    let mut stdout = Pipe(rustix::stdio::stdout());
    let mut piece = vec![0; PIECE];
    while let Some(name) = streams.begin(MAX_NAME)? {
        let format = str::from_utf8(&name).ok().and_then(Compression::from_name).ok_or(io::ErrorKind::InvalidData)?;
        let mut plain = format.reader(&mut streams)?;
        loop {
            match fill(&mut plain, &mut piece)? {
                0 => break,
                length => frames::put(&mut stdout, &piece[..length])?,
            }
        }
        drop(plain);
        // Skips what follows the compressed data.
        streams.drain()?;
        frames::put(&mut stdout, b"")?;
    }
    Ok(())
}

/// Reads a whole piece, or what is left.
fn fill(from: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match from.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// One of the standard streams, without a buffer.
struct Pipe(BorrowedFd<'static>);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, into)?)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(self.0, parts)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
