//! A layer as a blob: an archive, its compression, and the digests of both.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::compression::{Compression, Compressor};
use crate::digest::Hashing;
use crate::staged::unnamed;
use crate::tar_out::TarOut;

/// How much is hashed and compressed at once, in bytes.
const BUFFER: usize = 1 << 17;

/// A layer of the new image.
pub(crate) struct Layer {
    /// `mediaType`, `digest` and `size` of the blob.
    pub(crate) descriptor: Value,
    /// The digest of the archive without compression.
    pub(crate) diff_id: String,
    /// The blob, if this run has made it. Otherwise it is where the base image is.
    pub(crate) file: Option<File>,
    /// How it came to be, for the history; `None` if the base's history has it.
    pub(crate) created_by: Option<String>,
}

impl Layer {
    /// A layer of the base, which stays as it is.
    pub(crate) fn of_base(layer: &Self) -> Self {
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        Self { descriptor, diff_id, file: None, created_by: None }
    }

    /// The digest of the blob.
    pub(crate) fn digest(&self) -> &str {
        self.descriptor["digest"].as_str().unwrap_or_default()
    }

    /// The size of the blob, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.descriptor["size"].as_u64().unwrap_or(0)
    }
}

/// An archive on its way to its blob.
pub(crate) type Out<W> = TarOut<BufWriter<Hashing<Compressor<Hashing<BufWriter<W>>>>>>;

/// Writes an archive to `out`, with what `fill` adds. Returns `out`, the diff_id, and digest and size of the blob.
///
/// # Errors
/// Those of writing and of `fill`.
pub(crate) fn write<W: Write>(
    out: W,
    compression: Compression,
    is_layer: bool,
    newest: Option<i64>,
    fill: impl FnOnce(&mut Out<W>) -> anyhow::Result<()>,
) -> anyhow::Result<(W, String, String, u64)> {
    let blob = Hashing::new(BufWriter::with_capacity(BUFFER, out));
    let archive = Hashing::new(compression.writer(blob)?);
    let mut tar = TarOut::new(BufWriter::with_capacity(BUFFER, archive), is_layer, newest);
    fill(&mut tar)?;
    if tar.left_out > 0 {
        let message = format!("{} sockets were left out: an archive cannot hold them", tar.left_out);
        msb::tool::exit::warn(crate::page::TOOL, &message);
    }
    let archive = tar.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    let (compressor, diff_id, _) = archive.finish();
    let (blob, digest, size) = compressor.finish()?.finish();
    Ok((blob.into_inner().map_err(std::io::IntoInnerError::into_error)?, diff_id, digest, size))
}

/// Makes the blob of a layer, in a file without a name on the file system of `dir`.
///
/// # Errors
/// As [`write()`].
pub(crate) fn make(
    dir: &Path,
    compression: Compression,
    newest: Option<i64>,
    created_by: &str,
    fill: impl FnOnce(&mut Out<File>) -> anyhow::Result<()>,
) -> anyhow::Result<Layer> {
    let file = unnamed(dir).with_context(|| format!("{dir:?}"))?;
    let (file, diff_id, digest, size) = write(file, compression, true, newest, fill)?;
    let descriptor = json!({"mediaType": compression.media_type(), "digest": digest, "size": size});
    Ok(Layer { descriptor, diff_id, file: Some(file), created_by: Some(created_by.to_owned()) })
}
