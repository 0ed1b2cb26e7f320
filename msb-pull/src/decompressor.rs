//! Decompresses in a process of its own, which can read its stdin, write to its stdout, and do nothing else. The data is hostile, and
//! the libraries for some formats are written in C. What comes out is checked against its digest by the caller, so a decompressor that
//! was taken over cannot pass off one layer as another.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, anyhow};
use msb::program::OWN_EXECUTABLE;
use msb::{inherited, jail};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::compression::{self, Compression};

/// The argument that makes this program a decompressor. The format follows.
const ROLE: &str = "--as-decompressor";

/// The size of a piece that is passed on, in bytes.
const PIECE: usize = 1 << 18;
/// The size of a pipe, in bytes: the most that a user may set.
const PIPE: usize = 1 << 20;

/// The exit status for data that ends too early.
const TRUNCATED: u8 = 3;
/// The exit status for malformed data.
const MALFORMED: u8 = 4;
/// The exit status of a decompressor that cannot confine itself.
const NOT_SEALED: u8 = 5;

/// Passes on what `packed` holds, decompressed, in pieces of at most 256 KiB.
///
/// # Errors
/// Those of `packed` and `take`; a message for malformed data.
pub(crate) fn decompress(
    packed: impl BufRead + Send,
    mut take: impl FnMut(Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (compression, mut packed) = compression::detect(packed)?;
    if compression == Compression::None {
        return pass_on(&mut packed, &mut take);
    }
    let (mut child, stdin, mut stdout) = start(compression).context("starting the decompressor")?;
    let (fed, taken) = thread::scope(|scope| {
        let fed = scope.spawn(move || feed(packed, stdin));
        let taken = pass_on(&mut stdout, &mut take);
        if taken.is_err() {
            // Its end also ends the thread that feeds it.
            let _ = child.kill();
        }
        (fed.join(), taken)
    });
    let status = child.wait()?;
    fed.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
    taken?;
    check(compression, status)
}

fn start(compression: Compression) -> io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = Command::new(OWN_EXECUTABLE)
        .arg0("msb-pull")
        .args([ROLE, compression.name()])
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
    Ok((child, stdin, stdout))
}

/// Writes all data to the decompressor, unless it has ended.
fn feed(mut packed: impl BufRead, mut stdin: ChildStdin) -> io::Result<()> {
    loop {
        let data = match packed.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match stdin.write(data) {
            Ok(length) => packed.consume(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Its exit status tells why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Passes on what can be read, as soon as it can.
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
        Some(Ok(0)) => Ok(()),
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

/// The format to decompress, if this process is a decompressor.
pub(crate) fn role() -> Option<Compression> {
    let mut args = std::env::args().skip(1);
    let (role, format) = (args.next()?, args.next()?);
    (role == ROLE).then(|| Compression::from_name(&format)).flatten()
}

/// Decompresses stdin to stdout, after it has given up everything else.
pub(crate) fn run(compression: Compression) -> ExitCode {
    let status = seal().map_or(NOT_SEALED, |()| match copy(compression) {
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

fn copy(compression: Compression) -> io::Result<()> {
    let packed = BufReader::with_capacity(PIECE, Pipe(rustix::stdio::stdin()));
    let mut plain = compression.reader(packed)?;
    let mut stdout = Pipe(rustix::stdio::stdout());
    let mut piece = vec![0; PIECE];
    loop {
        match plain.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => stdout.write_all(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
