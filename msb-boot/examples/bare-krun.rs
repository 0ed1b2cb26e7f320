//! The shortest way to a guest with libkrun: what msb-boot's start is measured against (tests/bench-krun.sh).
//!
//!     bare-krun LIBKRUNFW BOOT-SHARE ROOT MIB [CPUS PORT SOCKET]
//!
//! The boot share has an `init.krun`; its console is stdout. Who connects to SOCKET comes to the guest's vsock PORT. Nothing is
//! confined, watched or cleaned up.

use std::path::Path;

#[path = "../src/krun/ffi.rs"]
#[allow(dead_code)] // msb-boot calls more of it
mod ffi;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([library, share, root, mib], door) = arguments.split_first_chunk().expect("four arguments");
    // It stays loaded, and libkrun finds it by its own name.
    ffi::kernel_image(Path::new(library))?;
    let context = ffi::Context::new()?;
    let cpus = door.first().map_or(1, |cpus| cpus.parse().expect("a number of CPUs"));
    context.set_size(cpus, mib.parse().expect("a number of MiB"))?;
    if let [_, port, socket] = door {
        context.add_plain_vsock()?;
        context.add_port(port.parse().expect("a port"), Path::new(socket), true)?;
    }
    context.add_root_share(Path::new(share))?;
    context.add_share(c"rootfs", Path::new(root))?;
    context.set_console(Path::new("/proc/self/fd/1"))?;
    Err(context.enter())
}
