//! Lines between stages: one JSON value is read from stdin and what follows stays unread; one line is written to stdout whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::SpliceFlags;
use serde::Serialize;

use crate::tool::exit::OutputError;

/// The longest line or value that is read, in bytes.
pub const MAX: usize = 16 << 20;

/// Reads the first JSON value from `fd`, with the newline directly after it if there is one, and leaves every other byte
/// unread. Text that is not an object is read to the end of its line. Returns `None` at end-of-file.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a value longer than [`MAX`]; otherwise those of `read(2)`.
pub fn take_value(fd: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let fd = fd.as_fd();
    let seekable = rustix::fs::tell(fd).is_ok();
    let (mut value, mut scan) = (Vec::new(), Scan::default());
    let mut block = [0u8; 4096];
    loop {
        let size = if seekable { block.len() } else { 1 };
        let got = read(fd, &mut block[..size])?;
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

/// The first JSON value in `text`; `None` if there is only white space.
pub fn first_value(text: &[u8]) -> Option<&[u8]> {
    let mut scan = Scan::default();
    let end = text.iter().position(|&byte| scan.ends_with(byte));
    scan.has_begun().then(|| &text[..end.map_or(text.len(), |end| end + 1)])
}

/// Finds the end of the first value of a text, byte by byte.
#[derive(Debug, Default)]
enum Scan {
    /// Before the value: white space, or a byte order mark.
    #[default]
    Before,
    /// In an object, outside strings.
    Object { depth: usize },
    /// In a string; `escaped`: after a backslash.
    String { depth: usize, escaped: bool },
    /// After the object.
    After,
    /// In anything else than an object.
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
            (Self::Object { depth: 1 }, b'}' | b']') => Self::After,
            (Self::Object { depth }, b'}' | b']') => Self::Object { depth: depth - 1 },
            (Self::Object { depth }, _) => Self::Object { depth: *depth },
            (Self::String { depth, escaped: false }, b'"') => Self::Object { depth: *depth },
            (Self::String { depth, escaped }, byte) => {
                Self::String { depth: *depth, escaped: !escaped && byte == b'\\' }
            }
            (Self::After, _) => Self::After,
            (Self::Other, _) => Self::Other,
        };
        matches!((&*self, byte), (Self::After, _) | (Self::Other, b'\n'))
    }

    fn has_begun(&self) -> bool {
        !matches!(self, Self::Before)
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::After)
    }
}

fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            // O_NONBLOCK belongs to the open file, so another process may have set it.
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

/// Reads the next byte if it is a newline, and returns whether it was. Any other byte stays unread: in a pipe or a socket, the
/// byte is peeked at first.
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

/// The next byte, which stays unread; `None` at end-of-file.
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

/// Writes to stdout without the standard library, which ignores the error of a closed stdout.
///
/// # Errors
/// Those of `write(2)`.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    File::from(rustix::stdio::stdout().try_clone_to_owned()?).write_all(bytes)
}

/// Prints `value` on stdout as one line of JSON, in one write if the pipe has room.
///
/// # Errors
/// [`OutputError::ReaderGone`], [`OutputError::Stdout`].
pub fn put(value: &impl Serialize) -> Result<(), OutputError> {
    let mut line = serde_json::to_vec(value).map_err(|error| OutputError::Stdout(error.into()))?;
    line.push(b'\n');
    put_bytes(&line)
}

/// Prints `bytes` on stdout, in one write if the pipe has room.
///
/// # Errors
/// As [`put`].
pub fn put_bytes(bytes: &[u8]) -> Result<(), OutputError> {
    write(bytes).map_err(OutputError::of_stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    /// A text, the value that is read from it, and what stays unread.
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
    fn one_value_and_its_newline_are_read_from_a_pipe_a_socket_and_a_file() {
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
    fn white_space_alone_is_not_a_value() {
        for text in ["", "\n", " \t\r\n", "\u{feff}"] {
            let (reader, writer) = std::io::pipe().unwrap();
            (&writer).write_all(text.as_bytes()).unwrap();
            drop(writer);
            assert_eq!(take_value(&reader).unwrap(), None, "{text:?}");
            assert_eq!(first_value(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_value_is_read_from_a_nonblocking_pipe() {
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
}
