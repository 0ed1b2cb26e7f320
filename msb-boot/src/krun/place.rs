//! Where the guest's memory comes to lie in this process. KVM gives a guest large pages only where its memory has the same
//! place within a large page on both sides, and libkrun takes whatever place the kernel has for it. Since Linux 6.7 that is a
//! place for large pages; before, it is one by luck, and each small page that the guest touches takes a way out of the VM.

use std::io;

use super::ffi;

/// The size of a large page, in bytes.
const LARGE: usize = 2 << 20;
/// What is left free, in bytes, for the little that is mapped before the guest's memory and would take its place. The memory
/// must not fit in there.
const ROOM: usize = 16 << 20;

/// Sees to it that the next mapping of so much memory, in MiB, lies where large pages fit.
///
/// # Errors
/// What `mmap(2)` says.
pub(super) fn prepare(memory_mib: u32) -> io::Result<()> {
    let length = (memory_mib as usize) << 20;
    let place = ffi::next_place(length)?;
    if place.is_multiple_of(LARGE) {
        return Ok(());
    }
    // The kernel goes down from the highest place. A page just above the wanted one keeps it from what is higher.
    let wanted = (place - ROOM) / LARGE * LARGE;
    ffi::occupy(wanted + length)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_prepared_place_fits_large_pages() {
        // In a process of its own, with one thread, as the VMM is: other tests map things too.
        const ALONE: &str = "MSB_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let own = ["--exact", "krun::place::tests::a_prepared_place_fits_large_pages", "--test-threads=1"];
            let run = Command::new(std::env::current_exe().unwrap()).args(own).env(ALONE, "1").output().unwrap();
            let words = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && words.contains("1 passed"), "{words}");
            return;
        }
        // Memory of an odd number of MiB has no place for large pages from any kernel.
        for memory_mib in [64, 65, 512, 513, 4096] {
            prepare(memory_mib).unwrap();
            let place = ffi::next_place((memory_mib as usize) << 20).unwrap();
            assert!(place.is_multiple_of(LARGE), "{memory_mib} MiB at {place:#x}");
        }
    }
}
