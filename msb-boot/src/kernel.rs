//! The guest's kernel: where libkrunfw is, and its image in the form that QEMU takes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use msb::state;

use crate::krun::ffi;
use crate::vmm::Why;
use crate::{elf, programs};

/// The library's name to the loader. The number is the version of its interface.
pub(crate) const LIBRARY: &str = "libkrunfw.so.5";

/// Finds the library: `$MSB_LIBKRUNFW`, beside this program, in `../lib/msb`, else as the loader does.
///
/// # Errors
/// Words that say where it was looked for.
pub(crate) fn library() -> Result<PathBuf, Why> {
    if let Some(path) = std::env::var_os("MSB_LIBKRUNFW").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).map_err(|error| {
            Why::new(format!("guest kernel {path:?}: {error}"), "MSB_LIBKRUNFW names it: name another, or unset it")
        });
    }
    let own = programs::near_us("../lib/msb", LIBRARY);
    if let Some(path) = own.into_iter().find(|path| path.exists()) {
        return Ok(path);
    }
    ffi::loaders_path(LIBRARY).ok_or_else(|| {
        Why::new(
            format!("guest kernel {LIBRARY:?}: not beside msb-boot, not in ../lib/msb and not known to the loader"),
            "install libkrunfw, or run \"make deps build\", or name the file in MSB_LIBKRUNFW",
        )
    })
}

/// Checks that the library holds a kernel.
///
/// # Errors
/// Words for a file that is no such library.
pub(crate) fn check(library: &Path) -> anyhow::Result<()> {
    ffi::kernel_image(library).map(drop).with_context(|| format!("guest kernel {library:?}"))
}

/// The library's kernel as an ELF file for QEMU. It is made once and kept under `$MSB_HOME/kernel`.
///
/// # Errors
/// Words for a library that holds no kernel with a PVH entry, or a file that cannot be written.
pub(crate) fn elf(library: &Path) -> anyhow::Result<PathBuf> {
    let subject = || format!("guest kernel {library:?}");
    let meta = fs::metadata(library).with_context(subject)?;
    let name = format!("{:x}-{:x}-{:x}.{:x}.elf", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let dir = state::home()?.join("kernel");
    let kept = dir.join(name);
    if kept.exists() {
        return Ok(kept);
    }
    let image = ffi::kernel_image(library).with_context(subject)?;
    let entry = elf::pvh_entry(image.bytes, image.load)
        .ok_or_else(|| anyhow!("guest kernel {library:?}: no PVH entry in it (it is too old for QEMU)"))?;

    state::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
    let aside = state::aside(&kept);
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&elf::headers(image.bytes.len(), image.load, entry))?;
        file.write_all(image.bytes)?;
        file.sync_all()?;
        fs::rename(&aside, &kept)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.with_context(|| format!("{kept:?}"))?;
    Ok(kept)
}
