//! Lines between stages: take exactly one from stdin without touching what follows, put one on stdout whole.

use std::io::{self, Write};
use std::os::fd::AsFd;

use serde::Serialize;

use crate::exit::ReaderGone;

/// The longest line that is taken, in bytes.
pub const MAX: usize = 16 << 20;

/// Takes one line from `fd` and leaves every byte behind its newline unread.
///
/// The rest of the stream belongs to somebody else (ops, a child's stdin), so a pipe is read byte by byte; a seekable
/// file is read in blocks and its offset put back. Returns `None` at end-of-file. The newline is not part of the
/// line; a last line without one counts.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a line longer than [`MAX`]; else what `read(2)` says.
pub fn take(fd: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let fd = fd.as_fd();
    let seekable = rustix::fs::tell(fd).is_ok();
    let mut line = Vec::new();
    let mut block = [0u8; 4096];
    loop {
        let wanted = if seekable { block.len() } else { 1 };
        let got = match rustix::io::read(fd, &mut block[..wanted]) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if got == 0 {
            return Ok(if line.is_empty() { None } else { Some(line) });
        }
        if let Some(end) = block[..got].iter().position(|&byte| byte == b'\n') {
            line.extend_from_slice(&block[..end]);
            if seekable {
                let surplus = i64::try_from(got - end - 1).unwrap_or(0);
                rustix::fs::seek(fd, rustix::fs::SeekFrom::Current(-surplus))?;
            }
            return Ok(Some(line));
        }
        line.extend_from_slice(&block[..got]);
        if line.len() > MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "line longer than 16 MiB"));
        }
    }
}

/// Puts `value` on stdout as one line of JSON, in one write where the pipe allows.
///
/// # Errors
/// [`ReaderGone`] where stdout is a pipe without a reader; else the write's own error.
pub fn put(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow::Error::new(error).context("stdout")),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn leaves_the_rest_of_a_pipe_unread() {
        let (reader, writer) = std::io::pipe().unwrap();
        (&writer).write_all(b"first\nrest of it").unwrap();
        drop(writer);
        assert_eq!(take(&reader).unwrap().unwrap(), b"first");
        let mut rest = String::new();
        (&reader).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest of it");
    }

    #[test]
    fn leaves_the_rest_of_a_file_unread() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"first\nrest of it").unwrap();
        file.rewind().unwrap();
        assert_eq!(take(&file).unwrap().unwrap(), b"first");
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest of it");
    }

    #[test]
    fn counts_a_last_line_without_newline_and_says_none_at_the_end() {
        let (reader, writer) = std::io::pipe().unwrap();
        (&writer).write_all(b"only").unwrap();
        drop(writer);
        assert_eq!(take(&reader).unwrap().unwrap(), b"only");
        assert!(take(&reader).unwrap().is_none());
    }

    #[test]
    fn refuses_a_line_without_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX as u64 + 8192).unwrap();
        assert_eq!(take(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
