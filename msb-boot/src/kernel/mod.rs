//! The guest's kernel: where libkrunfw is, and its kernel as an ELF file, which all VMMs take.

mod elf;

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use msb::program;
use msb::store::{home, layout, publish};

use crate::krun::ffi;
use crate::unusable::Unusable;

/// The name of libkrunfw for the dynamic loader. The number is the version of its interface.
pub(crate) const LIBRARY: &str = "libkrunfw.so.5";

/// VMMs read the file as users of their own.
const MODE: u32 = 0o644;

/// How a VMM enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootProtocol {
    /// In 64-bit mode, at the entry in the ELF header.
    LongMode,
    /// In 32-bit mode, at the entry in the note `XEN_ELFNOTE_PHYS32_ENTRY` (PVH).
    Pvh,
}

/// Finds libkrunfw: `$MSB_LIBKRUNFW`, beside this program, in `../lib/msb`, or where the dynamic loader finds it.
///
/// # Errors
/// The places that were searched.
pub(crate) fn library() -> Result<PathBuf, Unusable> {
    static CACHED: OnceLock<Result<PathBuf, Unusable>> = OnceLock::new();
    CACHED.get_or_init(find_library).clone()
}

fn find_library() -> Result<PathBuf, Unusable> {
    if let Some(path) = std::env::var_os("MSB_LIBKRUNFW").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).map_err(|error| {
            Unusable::new(
                format!("guest kernel {path:?}: {error}"),
                "MSB_LIBKRUNFW names it: name another, or unset it",
            )
        });
    }
    if let Some(path) = program::installed("../lib/msb", LIBRARY).find(|path| path.exists()) {
        return Ok(path);
    }
    ffi::loaders_path(LIBRARY).ok_or_else(|| {
        Unusable::new(
            format!("guest kernel {LIBRARY:?}: not beside msb-boot, not in ../lib/msb and not known to the loader"),
            "install libkrunfw, or run \"make deps build\", or name the file in MSB_LIBKRUNFW",
        )
    })
}

/// Checks that the library has a kernel that a VMM can enter with `protocol`. Returns the path of the ELF file for [`write_elf`], which
/// may exist already: below `$MSB_HOME/kernel`, named after the library's file.
///
/// # Errors
/// A library that cannot be read, holds no kernel, or holds one that `protocol` cannot enter.
pub(crate) fn check(library: &Path, protocol: BootProtocol) -> anyhow::Result<PathBuf> {
    let subject = || format!("guest kernel {library:?}");
    let meta = fs::metadata(library).with_context(subject)?;
    let name = format!("{:x}-{:x}-{:x}.{:x}.vmlinux", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let file = layout::kernels(&home::home()?).join(name);
    let has_pvh_entry = if file.exists() {
        let mut headers = [0; elf::IMAGE_OFFSET];
        File::open(&file).and_then(|mut file| file.read_exact(&mut headers)).with_context(|| format!("{file:?}"))?;
        elf::has_pvh_entry(&headers)
    } else {
        let image = ffi::kernel_image(library).with_context(subject)?;
        elf::pvh_entry(image.bytes, image.load).is_some()
    };
    ensure!(
        protocol != BootProtocol::Pvh || has_pvh_entry,
        "guest kernel {library:?}: no PVH entry in it (it is too old for QEMU: name another in MSB_LIBKRUNFW)"
    );
    Ok(file)
}

/// Writes the library's kernel as an ELF file, if the file does not exist, and lets any user read it.
///
/// libkrun could map the kernel from the library instead, but would then place the guest's memory around it: each first access to a page
/// costs a VM exit or two, and the memory's addresses hardly ever fit huge pages.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write_elf(library: &Path, file: &Path) -> anyhow::Result<()> {
    let subject = || format!("{file:?}");
    if !file.exists() {
        make_elf(library, file)?;
    }
    // The umask may forbid it, and an earlier release let only root read it.
    if fs::metadata(file).with_context(subject)?.mode() & 0o004 == 0 {
        fs::set_permissions(file, Permissions::from_mode(MODE)).with_context(subject)?;
    }
    Ok(())
}

fn make_elf(library: &Path, file: &Path) -> anyhow::Result<()> {
    let image = ffi::kernel_image(library).with_context(|| format!("guest kernel {library:?}"))?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    publish::make_private_dir(dir).with_context(|| format!("{dir:?}"))?;
    let pvh = elf::pvh_entry(image.bytes, image.load);
    let headers = elf::headers(image.bytes.len(), image.load, image.entry, pvh)?;
    publish::write_file(file, &[&headers, image.bytes].concat(), MODE).with_context(|| format!("{file:?}"))
}
