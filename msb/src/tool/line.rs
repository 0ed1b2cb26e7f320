//! Lines between stages: take exactly one from stdin without touching what follows, put one on stdout whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::SpliceFlags;
use serde::Serialize;

use crate::tool::exit::ReaderGone;

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
        let got = read(fd, &mut block[..wanted])?;
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

/// Takes the first JSON value from `fd`, with the newline directly behind it if there is one, and leaves every other byte
/// unread. Text that is no object is taken to the end of its line. Returns `None` at end-of-file.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a value longer than [`MAX`]; else what `read(2)` says.
pub fn take_value(fd: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let fd = fd.as_fd();
    let seekable = rustix::fs::tell(fd).is_ok();
    let (mut value, mut scan) = (Vec::new(), Scan::default());
    let mut block = [0u8; 4096];
    loop {
        let wanted = if seekable { block.len() } else { 1 };
        let got = read(fd, &mut block[..wanted])?;
        if got == 0 {
            return Ok(scan.has_begun().then_some(value));
        }
        let end = block[..got].iter().position(|&byte| scan.ends_with(byte));
        value.extend_from_slice(&block[..end.map_or(got, |end| end + 1)]);
        if let Some(end) = end {
            if seekable {
                let surplus = i64::try_from(got - end - 1).unwrap_or(0);
                rustix::fs::seek(fd, rustix::fs::SeekFrom::Current(-surplus))?;
            }
            if scan.is_object() && take_newline(fd, seekable)? {
                value.push(b'\n');
            }
            return Ok(Some(value));
        }
        if value.len() > MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record longer than 16 MiB"));
        }
    }
}

/// The first JSON value in `text`; `None` if there is nothing in it.
pub fn first_value(text: &[u8]) -> Option<&[u8]> {
    let mut scan = Scan::default();
    let end = text.iter().position(|&byte| scan.ends_with(byte));
    scan.has_begun().then(|| &text[..end.map_or(text.len(), |end| end + 1)])
}

/// Where the first value of a text ends, byte by byte.
#[derive(Debug, Default)]
enum Scan {
    /// Before the value: white space, or a byte order mark.
    #[default]
    Before,
    /// In an object, between strings.
    Object { depth: usize },
    /// In a string; `escaped`: behind a backslash.
    String { depth: usize, escaped: bool },
    /// Behind the object.
    Behind,
    /// In something that is no object.
    Other,
}

impl Scan {
    /// Whether the value ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        *self = match (&*self, byte) {
            (Self::Before, b' ' | b'\t' | b'\r' | b'\n' | 0xef | 0xbb | 0xbf) => Self::Before,
            (Self::Before, b'{') => Self::Object { depth: 1 },
            (Self::Before, _) => Self::Other,
            (Self::Object { depth }, b'"') => Self::String { depth: *depth, escaped: false },
            (Self::Object { depth }, b'{' | b'[') => Self::Object { depth: depth + 1 },
            (Self::Object { depth: 1 }, b'}' | b']') => Self::Behind,
            (Self::Object { depth }, b'}' | b']') => Self::Object { depth: depth - 1 },
            (Self::Object { depth }, _) => Self::Object { depth: *depth },
            (Self::String { depth, escaped: false }, b'"') => Self::Object { depth: *depth },
            (Self::String { depth, escaped }, byte) => {
                Self::String { depth: *depth, escaped: !escaped && byte == b'\\' }
            }
            (Self::Behind, _) => Self::Behind,
            (Self::Other, _) => Self::Other,
        };
        matches!((&*self, byte), (Self::Behind, _) | (Self::Other, b'\n'))
    }

    fn has_begun(&self) -> bool {
        !matches!(self, Self::Before)
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::Behind)
    }
}

fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            // Somebody else has set the flag O_NONBLOCK, which all who have the pipe share.
            Err(Errno::AGAIN) => await_data(fd)?,
            other => return Ok(other?),
        }
    }
}

fn await_data(fd: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
        Err(Errno::INTR) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// Takes the next byte if it is a newline. In a pipe or a socket it is looked at first, and left there if it is another:
/// it belongs to somebody else. True: it was one.
fn take_newline(fd: BorrowedFd<'_>, seekable: bool) -> io::Result<bool> {
    let mut byte = [0u8];
    if seekable {
        let is_other = read(fd, &mut byte)? == 1 && byte != *b"\n";
        if is_other {
            rustix::fs::seek(fd, rustix::fs::SeekFrom::Current(-1))?;
        }
        return Ok(byte == *b"\n");
    }
    let is_newline = match peek(fd) {
        // Neither a pipe nor a socket.
        Err(Errno::INVAL | Errno::NOTSOCK) => false,
        other => other? == Some(b'\n'),
    };
    if is_newline {
        read(fd, &mut byte)?;
    }
    Ok(is_newline)
}

/// The next byte, which stays; `None` at end-of-file.
fn peek(fd: BorrowedFd<'_>) -> rustix::io::Result<Option<u8>> {
    let mut byte = [0u8];
    let (copy, copy_in) = rustix::pipe::pipe()?;
    loop {
        let got = match rustix::pipe::tee(fd, &copy_in, 1, SpliceFlags::empty()) {
            Err(Errno::INVAL) => rustix::net::recv(fd, &mut byte, RecvFlags::PEEK).map(|(got, _)| got),
            Ok(1) => rustix::io::read(&copy, &mut byte),
            other => other,
        };
        match got {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_data(fd).map_err(|_| Errno::IO)?,
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(error) => return Err(error),
        }
    }
}

/// Writes to stdout, past the standard library, which takes a closed stdout for one that everything was written to.
///
/// # Errors
/// What `write(2)` says.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    File::from(rustix::stdio::stdout().try_clone_to_owned()?).write_all(bytes)
}

/// Puts `value` on stdout as one line of JSON, in one write where the pipe allows.
///
/// # Errors
/// [`ReaderGone`] where stdout is a pipe without a reader; else the write's own error.
pub fn put(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    put_bytes(&line)
}

/// Puts `bytes` on stdout in one write where the pipe allows.
///
/// # Errors
/// As [`put`].
pub fn put_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    match write(bytes) {
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

    /// What a text is taken apart into: the value, and what stays.
    const VALUES: [(&str, &str, &str); 16] = [
        ("{}", "{}", ""),
        ("{}\nrest", "{}\n", "rest"),
        ("{}rest", "{}", "rest"),
        ("{}\n\nrest", "{}\n", "\nrest"),
        ("{}\r\nrest", "{}", "\r\nrest"),
        ("{} \nrest", "{}", " \nrest"),
        ("{}{}", "{}", "{}"),
        (" \n\t{\n \"a\": [1, {}]\n}\nx", " \n\t{\n \"a\": [1, {}]\n}\n", "x"),
        ("\u{feff}{}\n", "\u{feff}{}\n", ""),
        (r#"{"a":"}\\\"}","b":"\\"}x"#, r#"{"a":"}\\\"}","b":"\\"}"#, "x"),
        (r#"{"}]":"{["}x"#, r#"{"}]":"{["}"#, "x"),
        ("{\"cut\": [", "{\"cut\": [", ""),
        ("{\"cut", "{\"cut", ""),
        ("no json\nrest", "no json\n", "rest"),
        ("[1]\nrest", "[1]\n", "rest"),
        ("7", "7", ""),
    ];

    #[test]
    fn takes_one_value_and_its_newline_whatever_the_source_is() {
        for (text, value, rest) in VALUES {
            let (reader, writer) = std::io::pipe().unwrap();
            (&writer).write_all(text.as_bytes()).unwrap();
            drop(writer);
            let (socket, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
            peer.write_all(text.as_bytes()).unwrap();
            drop(peer);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            let sources: [std::os::fd::OwnedFd; 3] = [reader.into(), socket.into(), file.into()];
            for source in sources {
                assert_eq!(take_value(&source).unwrap().unwrap(), value.as_bytes(), "{text:?} {source:?}");
                let mut left = String::new();
                std::fs::File::from(source).read_to_string(&mut left).unwrap();
                assert_eq!(left, rest, "{text:?}");
            }
            let first = first_value(text.as_bytes()).unwrap();
            let of_object = value.strip_suffix('\n').filter(|_| !text.starts_with(['n', '[']));
            assert_eq!(first, of_object.unwrap_or(value).as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn a_value_may_end_where_a_block_does() {
        for length in 4090..4100 {
            let value = format!("{{{}}}", " ".repeat(length - 2));
            for rest in ["", "\n", "\nx", "x"] {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(format!("{value}{rest}").as_bytes()).unwrap();
                file.rewind().unwrap();
                assert_eq!(take_value(&file).unwrap().unwrap().trim_ascii_end(), value.as_bytes());
                let mut left = String::new();
                file.read_to_string(&mut left).unwrap();
                assert_eq!(left, rest.trim_start_matches('\n'), "{length} {rest:?}");
            }
        }
    }

    #[test]
    fn nothing_but_white_space_is_no_value() {
        for text in ["", "\n", " \t\r\n", "\u{feff}"] {
            let (reader, writer) = std::io::pipe().unwrap();
            (&writer).write_all(text.as_bytes()).unwrap();
            drop(writer);
            assert_eq!(take_value(&reader).unwrap(), None, "{text:?}");
            assert_eq!(first_value(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_value_comes_also_from_a_pipe_that_does_not_block() {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let writing = std::thread::spawn(move || {
            for part in ["{", "\"a\"", ":1}", "\n", "x"] {
                (&writer).write_all(part.as_bytes()).unwrap();
                std::thread::yield_now();
            }
        });
        assert_eq!(take_value(&reader).unwrap().unwrap(), b"{\"a\":1}\n");
        writing.join().unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 1);
    }

    #[test]
    fn refuses_a_value_without_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"{").unwrap();
        file.set_len(MAX as u64 + 8192).unwrap();
        file.rewind().unwrap();
        assert_eq!(take_value(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn refuses_a_line_without_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX as u64 + 8192).unwrap();
        assert_eq!(take(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
