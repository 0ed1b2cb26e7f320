//! A minimal program that boots a guest with libkrun. tests/bench-krun.sh compares the start of msb-boot with it.
//!
//!     bare-krun LIBKRUNFW FIRST-ROOT ROOT MIB [CPUS PORT SOCKET]
//!
//! The first root has an `init.krun`, whose console is stdout. A connection to SOCKET leads to the guest's vsock PORT. There is no jail,
//! no supervisor and no cleanup.

use std::path::Path;

#[path = "../src/krun/ffi.rs"]
#[allow(dead_code)] // msb-boot calls more of it
mod ffi;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([library, share, root, mib], vsock) = arguments.split_first_chunk().expect("four arguments");
    // The library stays loaded, so libkrun finds it by name.
    ffi::kernel_image(Path::new(library))?;
    let context = ffi::Context::new()?;
    let cpus = vsock.first().map_or(1, |cpus| cpus.parse().expect("a number of CPUs"));
    context.set_size(cpus, mib.parse().expect("a number of MiB"))?;
    if let [_, port, socket] = vsock {
        context.add_plain_vsock()?;
        context.add_port(port.parse().expect("a port"), Path::new(socket), true)?;
    }
    context.disable_implicit_init()?;
    context.add_share("/dev/root", Path::new(share), true)?;
    context.add_share("rootfs", Path::new(root), false)?;
    context.set_console(Path::new("/proc/self/fd/1"))?;
    Err(context.enter())
}
