//! Detects compression by the first bytes. Media types are ignored: registries hold layers with a wrong one, archives have none,
//! and the diff_id tells whether the result is right.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

/// How many bytes are needed to detect the compression.
pub(crate) const MAGIC: u64 = 6;
/// The most memory that xz may take for its dictionary, in bytes: that of `xz -9`.
const MAX_XZ_MEMORY: u64 = 96 << 20;

/// A format that `docker load` and `docker pull` decompress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    /// The format of bytes that begin with `head`, [`MAGIC`] bytes or all there are.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A skippable frame may come first, as pzstd writes it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// Reads what `packed` holds. Several members, frames or streams are one (RFC 1952, section 2.2; RFC 8878, section 3):
    /// pigz, stargz and pzstd write them.
    ///
    /// # Errors
    /// The errors of setting up the decompressor. The reader's error for data that ends too early is
    /// [`io::ErrorKind::UnexpectedEof`].
    pub(crate) fn reader<'a>(self, packed: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(Members(Some(GzDecoder::new(packed)))),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, liblzma::stream::CONCATENATED);
                Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream.map_err(io::Error::other)?))
            }
        })
    }

    /// The name of the format.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }

    /// The format with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Zstd, Self::Bzip2, Self::Xz].into_iter().find(|format| format.name() == name)
    }
}

/// The members of a gzip file. Zeros behind a member are padding, as gzip(1) has it.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let length = member.read(into)?;
            if length > 0 || into.is_empty() {
                return Ok(length);
            }
            self.0 = match self.0.take() {
                Some(member) => next_member(member.into_inner())?,
                None => None,
            };
        }
        Ok(0)
    }
}

fn next_member<R: BufRead>(mut packed: R) -> io::Result<Option<GzDecoder<R>>> {
    loop {
        let data = packed.fill_buf()?;
        let zeros = data.iter().take_while(|&&byte| byte == 0).count();
        let (is_end, is_member) = (data.is_empty(), zeros < data.len());
        packed.consume(zeros);
        if is_end || is_member {
            return Ok(is_member.then(|| GzDecoder::new(packed)));
        }
    }
}

/// Reads the first bytes, enough to tell the compression, and hands them back with the rest.
///
/// # Errors
/// The errors of reading.
pub(crate) fn detect<R: BufRead>(mut packed: R) -> io::Result<(Compression, impl BufRead)> {
    let mut head = Vec::new();
    packed.by_ref().take(MAGIC).read_to_end(&mut head)?;
    Ok((Compression::of(&head), BufReader::new(io::Cursor::new(head)).chain(packed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bytes_tell_their_compression() {
        for (head, found) in [
            (&[0x1f, 0x8b, 8][..], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x50, 0x2a, 0x4d, 0x18], Compression::Zstd),
            (b"BZh91A", Compression::Bzip2),
            (b"BZhome", Compression::None),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (b"etc/", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(Compression::of(head), found, "{head:?}");
        }
    }

    #[test]
    fn bytes_that_come_one_by_one_are_enough() {
        struct Trickle(Vec<u8>, usize);
        impl Read for Trickle {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let got = (&self.0[self.1..]).take(1).read(into)?;
                self.1 += got;
                Ok(got)
            }
        }
        let packed = zstd::encode_all(&b"plain"[..], 0).unwrap();
        let (compression, whole) = detect(BufReader::with_capacity(1, Trickle(packed, 0))).unwrap();
        let mut text = String::new();
        compression.reader(whole).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((compression, &*text), (Compression::Zstd, "plain"));
    }

    #[test]
    fn what_is_compressed_in_parts_is_read_whole() {
        let gzip = |text: &[u8]| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(text).unwrap();
            packed.finish().unwrap()
        };
        let bzip2 = |text: &[u8]| {
            let mut packed = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            packed.write_all(text).unwrap();
            packed.finish().unwrap()
        };
        let xz = |text: &[u8]| liblzma::encode_all(text, 0).unwrap();
        let zstd = |text: &[u8]| zstd::encode_all(text, 0).unwrap();
        type Pack<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
        let packers: [(Compression, Pack<'_>); 4] = [
            (Compression::Gzip, &gzip),
            (Compression::Bzip2, &bzip2),
            (Compression::Xz, &xz),
            (Compression::Zstd, &zstd),
        ];
        for (expected, pack) in packers {
            let packed = [pack(b"first "), pack(b"second")].concat();
            let read = |packed: &[u8]| {
                let (compression, whole) = detect(packed).unwrap();
                assert_eq!(compression, expected);
                assert_eq!(Compression::from_name(compression.name()), Some(compression));
                let mut text = String::new();
                compression.reader(whole).unwrap().read_to_string(&mut text).map(|_| text)
            };
            assert_eq!(read(&packed).unwrap(), "first second");
            let error = read(&packed[..packed.len() - 3]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
            if expected == Compression::Gzip {
                assert_eq!(read(&[&packed, &[0; 9000][..]].concat()).unwrap(), "first second");
                let error = read(&[&packed, &b"\0\0garbage behind it"[..]].concat()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            }
        }
    }
}
