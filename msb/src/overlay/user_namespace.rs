//! What a user namespace other than the host's changes for overlayfs.

use rustix::fs::stat;

/// The inode number of the host's user namespace, PROC_USER_INIT_INO of the kernel's `include/linux/proc_ns.h`.
const INITIAL: u64 = 0xefff_fffd;

/// The options of overlayfs for a tree that was made in this user namespace: `redirects` in that of the host, and `userxattr` in another
/// one. With `userxattr` overlayfs follows no redirects and no metacopies.
pub fn overlayfs_options(redirects: &'static str) -> &'static str {
    if is_initial() { redirects } else { "userxattr" }
}

/// Whether this process is in the user namespace of the host. In another one it can neither read nor set `trusted.` xattrs, whatever
/// its capabilities are there, and overlayfs has to be mounted with `userxattr`.
pub fn is_initial() -> bool {
    // Without /proc nobody has made a namespace for us.
    stat("/proc/self/ns/user").map_or(true, |stat| stat.st_ino == INITIAL)
}
