//! Where a jail has what the process in it serves. The jail itself is [`msb::jail`].

use msb::tool::capability;

use crate::unusable::Unusable;

/// The volumes, in libkrun's jail.
pub(crate) const VOLUMES: &str = "/msb/volumes";
/// The guest's root, in the jail of a process that serves it.
pub(crate) const ROOT: &str = "/msb/root";
/// The directory for the VM's sockets.
pub(crate) const SOCKET_DIR: &str = "/msb/sockets";
/// The guest's kernel, in the VMM's jail.
pub(crate) const KERNEL: &str = "/msb/kernel";

/// Checks that this user can put processes into jails.
///
/// # Errors
/// The privilege that is missing.
pub(crate) fn check_privileges() -> Result<(), Unusable> {
    let missing = capability::check_sys_admin();
    missing.map_err(|missing| Unusable::new(format!("cannot confine a VM: {}", missing.found), missing.remedy))
}
