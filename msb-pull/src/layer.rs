//! One layer on its way from the origin into a directory. Four threads: fetch and hash what is compressed, decompress, hash
//! what is not, write. Between them are short channels, so that nothing is held whole and the slowest sets the pace.

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, anyhow, bail};

use crate::chunks::{Hangup, Sink, Stream, channel, is_hangup};
use crate::digest::{Digest, Hash, Verifier};
use crate::image::{Blob, Origin};
use crate::progress::Bar;
use crate::tape::Tape;
use crate::unpack::unpack;

/// Pieces in a channel, and bytes in a piece: 2 MiB between two threads at most.
const DEPTH: usize = 8;
const PIECE: usize = 1 << 18;

/// A layer to unpack.
pub(crate) struct Layer {
    pub(crate) blob: Blob,
    pub(crate) diff_id: Digest,
}

/// Fetches a layer and unpacks it into the empty directory `into`. Returns the directories it implies.
///
/// # Errors
/// The first cause, in words: what came before a failing step, if that failed too. [`Hangup`] where `stop` was set.
pub(crate) fn fetch_and_unpack(
    origin: &dyn Origin,
    layer: &Layer,
    into: &Path,
    bar: &Bar,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<PathBuf>> {
    let (blob_out, blob_in) = channel(DEPTH * 2);
    let (hash_out, hash_in) = channel(DEPTH);
    let (tar_out, tar_in) = channel(DEPTH);
    let (fetched, inflated, hashed, unpacked) = thread::scope(|scope| {
        let fetched = scope.spawn(|| fetch(origin, &layer.blob, Watched { out: blob_out, bar, stop }));
        let inflated = scope.spawn(|| inflate(&layer.blob.media_type, blob_in, hash_out, tar_out));
        let hashed = scope.spawn(|| hash(hash_in, &layer.diff_id));
        let unpacked = write(tar_in, into);
        (join(fetched), join(inflated), join(hashed), unpacked)
    });
    let mut errors = Vec::new();
    errors.extend(fetched.err());
    errors.extend(inflated.err());
    // Bytes that are not the ones that the image's author saw explain an odd entry, so the hash speaks first.
    errors.extend(hashed.err());
    match (unpacked, errors.is_empty()) {
        (Ok(implied), true) => Ok(implied),
        (unpacked, _) => {
            errors.extend(unpacked.err());
            let first = errors.iter().position(|error| !is_hangup(error)).unwrap_or(0);
            Err(errors.swap_remove(first)).with_context(|| format!("layer {:?}", layer.blob.name()))
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// Counts what passes for the progress bar, and ends the blob when another layer failed.
struct Watched<'a> {
    out: Sink,
    bar: &'a Bar,
    stop: &'a AtomicBool,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other(Hangup));
        }
        self.bar.advance(bytes.len());
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn fetch(origin: &dyn Origin, blob: &Blob, out: Watched<'_>) -> anyhow::Result<()> {
    let mut verifier = Verifier::new(out, blob.digest.as_ref(), blob.size);
    origin.copy_blob(blob, &mut verifier)?;
    // The end is only told to those who wait for it when the blob was the right one.
    Ok(verifier.finish(blob.digest.as_ref())?.out.finish()?)
}

fn inflate(media_type: &str, mut blob: Stream, hash: Sink, tar: Sink) -> anyhow::Result<()> {
    let inflated = decompress(media_type, &mut blob, &hash, &tar);
    match inflated {
        Err(error) if !is_hangup(&error) => {
            // Bytes that do not decompress may be the wrong ones: let their digest be finished.
            blob.drain()?;
            Err(error)
        }
        Err(error) => Err(error),
        Ok(()) => {
            hash.finish()?;
            Ok(tar.finish()?)
        }
    }
}

fn decompress(media_type: &str, blob: &mut Stream, hash: &Sink, tar: &Sink) -> anyhow::Result<()> {
    let head = magic(blob)?;
    let compression = Compression::of(media_type, &head)?;
    let whole = head.chain(&mut *blob);
    let mut plain: Box<dyn Read + '_> = match compression {
        // Several members are one stream (RFC 1952, section 2.2): pigz and stargz write them.
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::None => Box::new(whole),
    };
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match plain.read(&mut piece[filled..]).map_err(|error| compression.words(error))? {
                0 => break,
                got => filled += got,
            }
        }
        if filled == 0 {
            break;
        }
        piece.truncate(filled);
        let piece = Arc::new(piece);
        hash.send(piece.clone())?;
        tar.send(piece)?;
    }
    drop(plain);
    Ok(blob.drain()?)
}

/// What a blob begins with, enough to know its compression: a connection may bring it byte by byte.
fn magic(blob: &mut Stream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    blob.take(4).read_to_end(&mut head)?;
    Ok(head)
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By what the blob begins with, which the media type must not contradict. Docker archives have no media types, and
    /// plain ones are known to be wrong.
    fn of(media_type: &str, head: &[u8]) -> anyhow::Result<Self> {
        let found = match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        };
        let said = if media_type.ends_with("gzip") {
            Self::Gzip
        } else if media_type.ends_with("zstd") {
            Self::Zstd
        } else {
            Self::None
        };
        if said != Self::None && found != said {
            bail!("not {} data, as its media type {media_type:?} says", said.name())
        }
        Ok(found)
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn words(self, error: std::io::Error) -> anyhow::Error {
        if error.get_ref().is_some_and(|inner| inner.is::<Hangup>()) {
            return error.into();
        }
        let name = self.name();
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return anyhow!("truncated {name} data");
        }
        anyhow!("bad {name} data: {error}")
    }
}

fn hash(mut tar: Stream, diff_id: &Digest) -> anyhow::Result<()> {
    let mut hash = Hash::default();
    loop {
        let bytes = tar.fill_buf()?;
        if bytes.is_empty() {
            return diff_id.expect("diff_id", &hash.finish());
        }
        hash.update(bytes);
        let length = bytes.len();
        tar.consume(length);
    }
}

fn write(tar: Stream, into: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut tape = Tape::new(tar);
    let unpacked = unpack(&mut tape, into);
    let mut tar = tape.into_inner();
    // A full disk ends it here. Else read on, behind the archive's end or in search of what is wrong with these bytes.
    let is_system = |error: &anyhow::Error| {
        error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.raw_os_error().is_some()))
    };
    match unpacked {
        Err(error) if is_system(&error) => Err(error),
        unpacked => tar.drain().map_err(anyhow::Error::from).and(unpacked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_comes_byte_by_byte_is_decompressed() {
        let packed = zstd::encode_all(&b"plain"[..], 0).unwrap();
        let (mut sink, mut blob) = channel(packed.len() + 1);
        packed.iter().for_each(|byte| sink.write_all(&[*byte]).unwrap());
        sink.finish().unwrap();
        let ((hash, _hashed), (tar, mut plain)) = (channel(2), channel(2));
        decompress("", &mut blob, &hash, &tar).unwrap();
        assert_eq!(plain.fill_buf().unwrap(), b"plain");
    }

    #[test]
    fn a_media_type_is_held_against_the_bytes() {
        let (gzip, zstd, plain) = (&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd][..], &b"etc/"[..]);
        for (media_type, head, found) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", gzip, Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip, Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", zstd, Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.v1.tar", plain, Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar", gzip, Some(Compression::Gzip)),
            ("", zstd, Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", plain, None),
            ("application/vnd.oci.image.layer.v1.tar+zstd", gzip, None),
        ] {
            assert_eq!(Compression::of(media_type, head).ok(), found, "{media_type}");
        }
    }
}
