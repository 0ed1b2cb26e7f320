//! Fetches one layer and unpacks it into a directory. Threads fetch and hash the compressed data, have it decompressed, hash the
//! decompressed data, and write. Short channels connect them, so memory is bounded and the slowest thread sets the pace.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, anyhow};

use crate::budget::{Budget, Exceeded};
use crate::chunks::{Hangup, Sink, Stream, channel, is_hangup};
use crate::decompressor::Decompressor;
use crate::image::{Blob, EMPTY_LAYER, ImageLayer, Origin};
use crate::progress::Bar;
use crate::unpack::{Unpacked, unpack};
use msb_archive::Tape;
use msb_registry::digest::{Digest, Hash, Verifier};

/// Chunks in a channel: at most 2 MiB between two threads.
const DEPTH: usize = 8;

/// Fetches a layer and unpacks it into the empty directory `into`. `decompressor` belongs to the calling thread.
///
/// # Errors
/// A message with the first cause: if several steps failed, the error of the earliest one. [`Hangup`] if `stop` was set.
pub(crate) fn fetch_and_unpack(
    origin: &dyn Origin,
    layer: &ImageLayer,
    decompressor: &mut Decompressor,
    into: &Path,
    bar: &Bar,
    budget: &Budget,
    stop: &AtomicBool,
) -> anyhow::Result<Unpacked> {
    let (blob_out, blob_in) = channel(DEPTH * 2);
    let (hash_out, hash_in) = channel(DEPTH);
    let (tar_out, tar_in) = channel(DEPTH);
    let (fetched, inflated, hashed, unpacked) = thread::scope(|scope| {
        let fetched = scope.spawn(|| fetch(origin, &layer.blob, Watched { out: blob_out, bar, stop }));
        let hashed = scope.spawn(|| hash(hash_in, &layer.diff_id));
        let unpacked = scope.spawn(|| write(tar_in, into, budget));
        let inflated = inflate(decompressor, blob_in, hash_out, tar_out);
        (join(fetched), inflated, join(hashed), join(unpacked))
    });
    let mut errors = Vec::new();
    errors.extend(fetched.err());
    errors.extend(inflated.err());
    // Wrong bytes explain a malformed entry, so a wrong digest is reported first.
    errors.extend(hashed.err());
    match (unpacked, errors.is_empty()) {
        (Ok(unpacked), true) => Ok(unpacked),
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

/// Counts bytes for the progress bar, and cancels the blob if another layer failed.
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

    /// Fails once the blob is not needed any more: an origin flushes while it waits.
    fn flush(&mut self) -> std::io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other(Hangup));
        }
        Ok(())
    }
}

fn fetch(origin: &dyn Origin, blob: &Blob, out: Watched<'_>) -> anyhow::Result<()> {
    let mut verifier = Verifier::new(out, blob.digest.as_ref(), blob.size);
    match blob.is_empty_layer() {
        true => verifier.write_all(&EMPTY_LAYER)?,
        false => origin.copy_blob(blob, &mut verifier)?,
    }
    // The stream is marked as complete only if the digest was right.
    Ok(verifier.finish(blob.digest.as_ref())?.out.finish()?)
}

fn inflate(decompressor: &mut Decompressor, mut blob: Stream, hash: Sink, tar: Sink) -> anyhow::Result<()> {
    let inflated = decompress(decompressor, &mut blob, &hash, &tar);
    match inflated {
        Err(error) if !is_hangup(&error) => {
            // Wrong bytes are a likely cause, so the digest is computed to its end.
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

fn decompress(decompressor: &mut Decompressor, blob: &mut Stream, hash: &Sink, tar: &Sink) -> anyhow::Result<()> {
    decompressor.decompress(&mut *blob, |piece| {
        let piece = Arc::new(piece);
        hash.send(piece.clone())?;
        Ok(tar.send(piece)?)
    })?;
    // What follows the compressed data belongs to the blob.
    Ok(blob.drain()?)
}

fn hash(mut tar: Stream, diff_id: &Digest) -> anyhow::Result<()> {
    let mut hash = Hash::like(diff_id);
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

fn write(tar: Stream, into: &Path, budget: &Budget) -> anyhow::Result<Unpacked> {
    let mut tape = Tape::new(tar);
    let unpacked = unpack(&mut tape, into, budget);
    let mut tar = tape.into_inner();
    // After a full disk or an exceeded limit, nothing more is read. Otherwise the rest is read, so that the digest can be
    // checked.
    let is_final = |error: &anyhow::Error| {
        error.chain().any(|cause| {
            let io = cause.downcast_ref::<std::io::Error>();
            io.is_some_and(|io| io.raw_os_error().is_some() || io.kind() == std::io::ErrorKind::StorageFull)
                || cause.is::<Exceeded>()
        })
    };
    match unpacked {
        Err(error) if is_final(&error) => Err(error),
        unpacked => tar.drain().map_err(anyhow::Error::from).and(unpacked),
    }
}
