//! The shortest way to a guest with libkrun: what msb-boot's start is measured against (tests/bench-krun.sh).
//!
//!     bare-krun LIBKRUNFW BOOT-SHARE ROOT MIB
//!
//! The boot share has an `init.krun`; its console is stdout. Nothing is confined, watched or cleaned up.
#![allow(unsafe_code)]

use std::ffi::CString;

fn main() {
    let [library, share, root, mib] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("four arguments");
    let mib: u32 = mib.parse().expect("a number of MiB");
    let path = |text: String| CString::new(text).expect("no NUL");
    let (share, root) = (path(share), path(root));
    // SAFETY: loading libkrunfw runs no code of its own, and it stays loaded. The C strings outlive the calls.
    let answers = unsafe {
        std::mem::forget(libloading::Library::new(library).expect("libkrunfw"));
        let context = krun::krun_create_ctx().cast_unsigned();
        [
            krun::krun_set_vm_config(context, 1, mib),
            krun::krun_disable_implicit_init(context),
            krun::krun_set_root(context, share.as_ptr()),
            krun::krun_add_virtiofs(context, c"rootfs".as_ptr(), root.as_ptr()),
            krun::krun_set_console_output(context, c"/proc/self/fd/1".as_ptr()),
            krun::krun_start_enter(context),
        ]
    };
    panic!("libkrun came back: {answers:?}");
}
