//! The shortest way to a guest with libkrun: what msb-boot's start is measured against (tests/bench-krun.sh).
//!
//!     bare-krun LIBKRUNFW BOOT-SHARE ROOT MIB
//!
//! The boot share has an `init.krun`; its console is stdout. Nothing is confined, watched or cleaned up.

use std::path::Path;

#[path = "../src/krun/ffi.rs"]
#[allow(dead_code)] // msb-boot calls more of it
mod ffi;

fn main() -> std::io::Result<()> {
    let [library, share, root, mib] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("four arguments");
    ffi::keep_loaded(Path::new(&library))?;
    let context = ffi::Context::new()?;
    context.set_size(1, mib.parse().expect("a number of MiB"))?;
    context.add_root_share(Path::new(&share))?;
    context.add_share(c"rootfs", Path::new(&root))?;
    context.set_console(Path::new("/proc/self/fd/1"))?;
    Err(context.enter())
}
