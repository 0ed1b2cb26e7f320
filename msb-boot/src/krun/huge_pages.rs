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

    /// The flags of the mapping at an address, as /proc/self/smaps lists them.
    fn flags_at(address: usize) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        for line in maps.lines() {
            let (first, rest) = line.split_once(' ').unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let [start, end] = [start, end].map(|end| usize::from_str_radix(end, 16).unwrap());
                is_it = (start..end).contains(&address);
            } else if is_it && first == "VmFlags:" {
                return rest.split_ascii_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    #[test]
    fn huge_pages_are_requested_for_a_guests_memory_and_for_no_small_mapping() {
        let is_requested = |mib: usize| flags_at(ffi::map_as_libkrun(mib << 20)).contains(&"hg".to_owned());
        let has_huge_pages = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!((is_requested(64), is_requested(1)), (has_huge_pages, false));
    }

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
