//! Roots that are already on this host: a directory or a disk image. Both are used in place; nothing is copied.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use msb::record::{DiskFormat, Rootfs, path};

/// The first bytes of a qcow2 file (QEMU's `docs/interop/qcow2.txt`).
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// The root at `path`.
///
/// # Errors
/// A message for what is neither a directory nor a disk image.
pub(crate) fn root(path: &Path) -> anyhow::Result<Rootfs> {
    describe(path).with_context(|| format!("source {path:?}"))
}

fn describe(path: &Path) -> anyhow::Result<Rootfs> {
    let absolute = fs::canonicalize(path)?;
    path::require_utf8(&absolute)?;
    let metadata = fs::metadata(&absolute)?;
    if metadata.is_dir() {
        return Ok(Rootfs::dir(absolute));
    }
    // Decided by the file's name alone: a guest can write anything to a raw disk, including the magic of a qcow2 file whose
    // backing file is another file of the host.
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => DiskFormat::Qcow2,
        Some("raw" | "img") => DiskFormat::Raw,
        Some("erofs") => DiskFormat::Erofs,
        _ => bail!(
            "neither a directory nor a disk (.qcow2, .raw, .img, .erofs); an archive is oci-archive:FILE or docker-archive:FILE"
        ),
    };
    ensure!(metadata.is_file(), "not a regular file");
    if format == DiskFormat::Qcow2 {
        let mut magic = Vec::new();
        File::open(&absolute)?.take(4).read_to_end(&mut magic)?;
        ensure!(magic == QCOW2_MAGIC, "not a qcow2 image: the magic is missing (is it raw? name it .raw)");
    }
    Ok(Rootfs::disk(absolute, format))
}
