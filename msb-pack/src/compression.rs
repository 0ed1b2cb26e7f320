//! How a layer is compressed.

use std::io::{self, Write};

use clap::ValueEnum;

use crate::gzip::{Gzip, processors};

/// The level of zstd, which is its default.
const ZSTD_LEVEL: i32 = 3;

/// A compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// The archive as it is
    None,
    /// gzip, which every tool reads
    Gzip,
    /// zstd, smaller and faster
    Zstd,
}

impl Compression {
    /// That of a file's name: `.gz`, `.tgz`, `.zst`, `.tzst`.
    pub(crate) fn of_name(name: &str) -> Self {
        if name.ends_with("gz") {
            Self::Gzip
        } else if name.ends_with("zst") {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// The media type of a layer (the OCI image specification's `media-types.md`).
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Compresses what is written, on all processors.
    ///
    /// # Errors
    /// The error of setting it up.
    pub(crate) fn writer<W: Write>(self, out: W) -> io::Result<Compressor<W>> {
        Ok(match self {
            Self::None => Compressor::None(out),
            Self::Gzip => Compressor::Gzip(Gzip::new(out)?),
            Self::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                // The result is the same for any number of workers, but not for none.
                encoder.multithread(u32::try_from(processors()).unwrap_or(1))?;
                Compressor::Zstd(encoder)
            }
        })
    }
}

/// A compressed stream that is being written.
pub(crate) enum Compressor<W: Write> {
    None(W),
    Gzip(Gzip<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// Writes the end.
    ///
    /// # Errors
    /// The error of compressing or writing.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(out) => out.flush(),
            Self::Gzip(gzip) => gzip.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
