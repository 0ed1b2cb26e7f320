//! Huge pages for the guest's memory. KVM maps huge pages only if the guest-physical and the host-virtual address of the memory have the
//! same offset within a huge page, and libkrun maps the memory at the address that the kernel chooses. Since Linux 6.7 that address is
//! aligned to huge pages. On older kernels it is so only by chance, and each small page that the guest touches costs a VM exit.

use std::io;

use super::ffi;

/// The size of a huge page, in bytes.
const HUGE_PAGE: usize = 2 << 20;
/// The gap that is left for small mappings that libkrun makes before it maps the guest's memory, in bytes. It must be smaller than the
/// guest's memory.
const GAP: usize = 16 << 20;

/// Makes the kernel align the next mapping of this size, in MiB, to huge pages.
///
/// # Errors
/// Those of `mmap(2)`.
pub(super) fn align_next_mapping(memory_mib: u32) -> io::Result<()> {
    let length = (memory_mib as usize) << 20;
    let address = ffi::next_mapping_address(length)?;
    if address.is_multiple_of(HUGE_PAGE) {
        return Ok(());
    }
    // The kernel takes the highest free range. A page just above the wanted range makes the ranges above it too small.
    let wanted = (address - GAP) / HUGE_PAGE * HUGE_PAGE;
    ffi::occupy(wanted + length)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_next_mapping_is_aligned_to_huge_pages() {
        // In a process with one thread, as the VMM is: other tests also map memory.
        const ALONE: &str = "MSB_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let own =
                ["--exact", "krun::huge_pages::tests::the_next_mapping_is_aligned_to_huge_pages", "--test-threads=1"];
            let run = Command::new(std::env::current_exe().unwrap()).args(own).env(ALONE, "1").output().unwrap();
            let stdout = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && stdout.contains("1 passed"), "{stdout}");
            return;
        }
        // No kernel aligns memory of an odd number of MiB by itself.
        for memory_mib in [64, 65, 512, 513, 4096] {
            align_next_mapping(memory_mib).unwrap();
            let address = ffi::next_mapping_address((memory_mib as usize) << 20).unwrap();
            assert!(address.is_multiple_of(HUGE_PAGE), "{memory_mib} MiB at {address:#x}");
        }
    }
}
