//! The guest's kernel: where libkrunfw is, and its kernel as a file that all VMMs take.

mod bundle;
mod elf;

use std::borrow::Cow;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, anyhow, ensure};
use msb::architecture::{Architecture, KernelFormat};
use msb::store::{home, layout, publish};

use crate::guest_files;
use crate::krun::ffi;
use crate::unusable::Unusable;

/// The name of libkrunfw for the dynamic loader. The number is the version of its interface.
pub(crate) const LIBRARY: &str = "libkrunfw.so.5";

/// The directory of an installation with the library for guests of this machine's architecture, as seen from that of the tools.
const LIBRARY_DIR: &str = "../lib/msb";

/// What to do about a library without the right kernel.
const REMEDY: &str = "name another in MSB_LIBKRUNFW";

/// VMMs read the file as users of their own.
const MODE: u32 = 0o644;

/// How a VMM enters a kernel that is an ELF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootProtocol {
    /// In 64-bit mode, at the entry in the ELF header.
    LongMode,
    /// In 32-bit mode, at the entry in the note `XEN_ELFNOTE_PHYS32_ENTRY` (PVH).
    Pvh,
}

/// A guest kernel to write to a file.
struct Kernel {
    /// What is before the image in the file.
    headers: Vec<u8>,
    /// The image.
    image: Cow<'static, [u8]>,
    /// Whether it is an ELF program that a VMM can enter with PVH.
    has_pvh_entry: bool,
}

/// Finds libkrunfw for guests of an architecture: `$MSB_LIBKRUNFW`, as [`guest_files`] finds it, or, for guests of this machine's
/// own, where the dynamic loader finds it.
///
/// # Errors
/// The places that were searched.
pub(crate) fn library(architecture: Architecture) -> Result<PathBuf, Unusable> {
    static CACHED: OnceLock<Result<PathBuf, Unusable>> = OnceLock::new();
    match architecture {
        Architecture::HOST => CACHED.get_or_init(|| find_library(architecture)).clone(),
        other => find_library(other),
    }
}

fn find_library(architecture: Architecture) -> Result<PathBuf, Unusable> {
    if let Some(path) = std::env::var_os("MSB_LIBKRUNFW").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).map_err(|error| {
            Unusable::new(
                format!("guest kernel {path:?}: {error}"),
                "MSB_LIBKRUNFW names it: name another, or unset it",
            )
        });
    }
    if let Some(path) = guest_files::find(architecture, LIBRARY_DIR, LIBRARY) {
        return Ok(path);
    }
    let searched = guest_files::searched(architecture, LIBRARY_DIR);
    if architecture != Architecture::HOST {
        return Err(Unusable::new(
            format!("guest kernel {LIBRARY:?}: {searched}"),
            format!("run \"{}\", or name the file in MSB_LIBKRUNFW", guest_files::remedy(architecture)),
        ));
    }
    ffi::loaders_path(LIBRARY).ok_or_else(|| {
        Unusable::new(
            format!("guest kernel {LIBRARY:?}: {searched}, and not known to the loader"),
            "install libkrunfw, or run \"make deps build\", or name the file in MSB_LIBKRUNFW",
        )
    })
}

/// Checks that the library has a kernel that a VMM can enter, with `protocol` if it is an ELF program. Returns the path of the
/// file for [`write`], which may exist already: below `$MSB_HOME/kernel`, named after the library's file.
///
/// # Errors
/// A library that cannot be read, holds no kernel for `architecture`, or holds one that `protocol` cannot enter.
pub(crate) fn check(library: &Path, architecture: Architecture, protocol: BootProtocol) -> anyhow::Result<PathBuf> {
    let subject = || format!("guest kernel {library:?}");
    let meta = fs::metadata(library).with_context(subject)?;
    let suffix = match architecture.kernel_format() {
        KernelFormat::Elf => "vmlinux",
        KernelFormat::Image => "Image",
    };
    let name = format!("{:x}-{:x}-{:x}.{:x}.{suffix}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let file = layout::kernels(&home::home()?).join(name);
    let has_pvh_entry = if !file.exists() {
        read(library, architecture).with_context(subject)?.has_pvh_entry
    } else if architecture.kernel_format() == KernelFormat::Elf {
        let mut headers = [0; elf::IMAGE_OFFSET];
        File::open(&file).and_then(|mut file| file.read_exact(&mut headers)).with_context(|| format!("{file:?}"))?;
        elf::has_pvh_entry(&headers)
    } else {
        false
    };
    ensure!(
        architecture.kernel_format() != KernelFormat::Elf || protocol != BootProtocol::Pvh || has_pvh_entry,
        "guest kernel {library:?}: no PVH entry in it (it is too old for QEMU: {REMEDY})"
    );
    Ok(file)
}

/// Reads the library's kernel. A library for this machine is asked for the addresses of a kernel that has any.
fn read(library: &Path, architecture: Architecture) -> anyhow::Result<Kernel> {
    let machine = architecture.elf_machine();
    let (image, load, entry) =
        if architecture == Architecture::HOST && architecture.kernel_format() == KernelFormat::Elf {
            let image = ffi::kernel_image(library)?;
            (Cow::Borrowed(image.bytes), image.load, image.entry)
        } else {
            let file = fs::read(library)?;
            let kernel = bundle::kernel(&file, machine).map_err(|why| anyhow!("{why} ({REMEDY})"))?;
            (Cow::Owned(kernel.to_owned()), architecture.kernel_address(), architecture.kernel_address())
        };
    match architecture.kernel_format() {
        KernelFormat::Elf => {
            let pvh = elf::pvh_entry(&image, load);
            let headers = elf::headers(machine, image.len(), load, entry, pvh)?;
            Ok(Kernel { headers, image, has_pvh_entry: pvh.is_some() })
        }
        KernelFormat::Image => {
            ensure!(bundle::is_image(&image), "its kernel is not an Image ({REMEDY})");
            Ok(Kernel { headers: Vec::new(), image, has_pvh_entry: false })
        }
    }
}

/// Writes the library's kernel to a file, if the file does not exist, and lets any user read it.
///
/// libkrun could map the kernel from the library instead, but would then place the guest's memory around it: each first access to
/// a page costs a VM exit or two, and the memory's addresses hardly ever fit huge pages.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(library: &Path, architecture: Architecture, file: &Path) -> anyhow::Result<()> {
    let subject = || format!("{file:?}");
    if !file.exists() {
        let kernel = read(library, architecture).with_context(|| format!("guest kernel {library:?}"))?;
        let dir = file.parent().unwrap_or(Path::new("/"));
        publish::make_private_dir(dir).with_context(|| format!("{dir:?}"))?;
        publish::write_file(file, &[&kernel.headers, &*kernel.image].concat(), MODE).with_context(subject)?;
    }
    // The umask may forbid it, and an earlier release let only root read it.
    if fs::metadata(file).with_context(subject)?.mode() & 0o004 == 0 {
        fs::set_permissions(file, Permissions::from_mode(MODE)).with_context(subject)?;
    }
    Ok(())
}
