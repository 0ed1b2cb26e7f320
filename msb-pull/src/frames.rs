//! Framing for several streams on one pipe, one after another. A frame is a 32-bit little-endian length, and that many bytes. An empty
//! frame ends a stream.

use std::io::{self, BufRead, IoSlice, Read, Write};

/// Writes a frame.
///
/// # Errors
/// The error of writing.
pub(crate) fn put(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let header = u32::try_from(data.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut parts: &mut [IoSlice<'_>] = &mut [IoSlice::new(&header), IoSlice::new(data)];
    while !parts.is_empty() {
        match out.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => IoSlice::advance_slices(&mut parts, length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads the length of the next frame; `None` at the end of the pipe.
///
/// # Errors
/// The error of reading.
pub(crate) fn length(input: &mut impl Read) -> io::Result<Option<usize>> {
    let mut header = [0; 4];
    match input.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| usize::try_from(u32::from_le_bytes(header)).ok()),
    }
}

/// Reads one stream after another.
pub(crate) struct Frames<R> {
    input: R,
    /// How many bytes of the current frame are left.
    left: usize,
    is_over: bool,
}

impl<R: BufRead> Frames<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, is_over: true }
    }

    /// Starts the next stream: reads its first frame, of at most `limit` bytes. Reads return what follows it. `None` at the end of the
    /// pipe.
    ///
    /// # Errors
    /// The error of reading; [`io::ErrorKind::InvalidData`] for a longer frame.
    pub(crate) fn begin(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(length) = length(&mut self.input)? else { return Ok(None) };
        if length > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut first = vec![0; length];
        self.input.read_exact(&mut first)?;
        (self.left, self.is_over) = (0, false);
        Ok(Some(first))
    }

    /// Reads to the end of the stream and discards what it reads.
    ///
    /// # Errors
    /// The error of reading.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }
}

impl<R: BufRead> BufRead for Frames<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.is_over {
            self.left = length(&mut self.input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.is_over = self.left == 0;
        }
        if self.is_over {
            return Ok(&[]);
        }
        let data = self.input.fill_buf()?;
        if data.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&data[..data.len().min(self.left)])
    }

    fn consume(&mut self, length: usize) {
        self.left -= length;
        self.input.consume(length);
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    /// A pipe that transfers at most three bytes at a time.
    struct Narrow<T>(T);

    impl<T: Write> Write for Narrow<T> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(&bytes[..bytes.len().min(3)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<T: Read> Read for Narrow<T> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = into.len().min(3);
            self.0.read(&mut into[..length])
        }
    }

    #[test]
    fn one_stream_comes_after_another() {
        let mut pipe = Narrow(Vec::new());
        for frame in [&b"gzip"[..], b"first ", b"stream", b"", b"xz", b"", b"zstd", b"third", b""] {
            put(&mut pipe, frame).unwrap();
        }
        let whole = pipe.0;
        let mut frames = Frames::new(BufReader::with_capacity(5, Narrow(&whole[..])));
        let mut text = String::new();
        assert_eq!(frames.begin(4).unwrap().unwrap(), b"gzip");
        frames.read_to_string(&mut text).unwrap();
        assert_eq!(text, "first stream");
        assert_eq!(frames.begin(4).unwrap().unwrap(), b"xz");
        assert_eq!(frames.read_to_string(&mut text).unwrap(), 0);
        assert_eq!(frames.begin(4).unwrap().unwrap(), b"zstd");
        frames.drain().unwrap();
        assert_eq!(frames.begin(4).unwrap(), None);
        assert_eq!(Frames::new(&whole[..]).begin(3).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let mut pipe = Vec::new();
        put(&mut pipe, b"xz").unwrap();
        put(&mut pipe, b"data").unwrap();
        put(&mut pipe, b"").unwrap();
        for end in 0..pipe.len() {
            let mut frames = Frames::new(&pipe[..end]);
            match frames.begin(9) {
                Ok(None) => assert!(end < 4, "{end}"),
                Ok(Some(_)) => {
                    assert!(end >= 6, "{end}");
                    assert_eq!(frames.drain().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{end}");
                }
                Err(error) => assert_eq!((error.kind(), end), (io::ErrorKind::UnexpectedEof, end.clamp(4, 5))),
            }
        }
    }
}
