//! Where the guest's memory comes to lie in this process. KVM gives a guest large pages only where its memory has the same
//! place within a large page on both sides, and libkrun takes whatever place the kernel has for it. Since Linux 6.7 that is a
//! place for large pages; before, it is one by luck, and each small page that the guest touches takes a way out of the VM.
#![allow(unsafe_code)]

use std::io;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The size of a large page, in bytes.
const LARGE: usize = 2 << 20;
const SMALL: usize = 4 << 10;
/// What is left free, in bytes, for the little that is mapped before the guest's memory and would take its place. The memory
/// must not fit in there.
const ROOM: usize = 16 << 20;

/// Sees to it that the next mapping of so much memory, in MiB, lies where large pages fit.
///
/// # Errors
/// What `mmap(2)` says.
pub(super) fn prepare(memory_mib: u32) -> io::Result<()> {
    let length = (memory_mib as usize) << 20;
    let place = place_for(length)?;
    if place.is_multiple_of(LARGE) {
        return Ok(());
    }
    // The kernel goes down from the highest place. A page just above the wanted one keeps it from what is higher.
    let wanted = (place - ROOM) / LARGE * LARGE;
    let fence = ptr::without_provenance_mut(wanted + length);
    // SAFETY: a new mapping that replaces none, and that nobody uses.
    unsafe { mmap_anonymous(fence, SMALL, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE) }?;
    Ok(())
}

/// The address that the kernel has for so many bytes.
fn place_for(length: usize) -> io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, taken away before anybody uses it.
    unsafe {
        let place = mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags)?;
        munmap(place, length)?;
        Ok(place.addr())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn a_prepared_place_fits_large_pages() {
        // In a process of one thread, as the VMM is: other tests map things too.
        // SAFETY: the child maps memory and ends, and takes no lock.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let fits = |memory_mib: u32| {
                    prepare(memory_mib).is_ok()
                        && place_for((memory_mib as usize) << 20).is_ok_and(|place| place.is_multiple_of(LARGE))
                };
                std::process::exit(i32::from(![64, 65, 512, 4096].into_iter().all(fits)))
            }
            ForkResult::Parent { child } => assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0)),
        }
    }
}
