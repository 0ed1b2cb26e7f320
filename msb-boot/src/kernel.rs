//! The guest's kernel: where libkrunfw is, and its image in the form that both VMMs take.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use msb::store::{home, layout, publish};

use crate::krun::ffi;
use crate::vmm::{Kind, Why};
use crate::{elf, programs};

/// The library's name to the loader. The number is the version of its interface.
pub(crate) const LIBRARY: &str = "libkrunfw.so.5";

/// Finds the library: `$MSB_LIBKRUNFW`, beside this program, in `../lib/msb`, else as the loader does.
///
/// # Errors
/// Words that say where it was looked for.
pub(crate) fn library() -> Result<PathBuf, Why> {
    static FOUND: OnceLock<Result<PathBuf, Why>> = OnceLock::new();
    FOUND.get_or_init(find_library).clone()
}

fn find_library() -> Result<PathBuf, Why> {
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

/// The library's kernel as an ELF file, which both VMMs take. It is made once and kept under `$MSB_HOME/kernel`.
///
/// libkrun would map the kernel where the library has it, and find the guest's memory around it: every page of it then
/// takes a way out of the VM, or two, and the memory's addresses are such that large pages hardly ever fit.
///
/// # Errors
/// Words for a library that holds no kernel, or none that `vmm` can enter, and for a file that cannot be written.
pub(crate) fn elf(library: &Path, vmm: Kind) -> anyhow::Result<PathBuf> {
    let subject = || format!("guest kernel {library:?}");
    let meta = fs::metadata(library).with_context(subject)?;
    let name = format!("{:x}-{:x}-{:x}.{:x}.vmlinux", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let dir = layout::kernels(&home::home()?);
    let kept = dir.join(name);
    if !kept.exists() {
        let image = ffi::kernel_image(library).with_context(subject)?;
        publish::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
        let pvh = elf::pvh_entry(image.bytes, image.load);
        let headers = elf::headers(image.bytes.len(), image.load, image.entry, pvh);
        publish::write_file(&kept, &[&headers, image.bytes].concat(), 0o600).with_context(|| format!("{kept:?}"))?;
    }
    if vmm == Kind::Qemu {
        let mut headers = [0; elf::IMAGE_OFFSET];
        File::open(&kept).and_then(|mut file| file.read_exact(&mut headers)).with_context(|| format!("{kept:?}"))?;
        ensure!(
            elf::has_pvh_entry(&headers),
            "guest kernel {library:?}: no PVH entry in it (it is too old for QEMU: name another in MSB_LIBKRUNFW)"
        );
    }
    Ok(kept)
}
