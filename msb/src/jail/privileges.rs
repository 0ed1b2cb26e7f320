//! The user and the capabilities of a process in a jail.

use std::fs;
use std::io;

use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::overlay::error::{At, Error};

/// The first of the users of VMs. The PID of the supervisor is added, which has 22 bits at most. No distribution gives these numbers to
/// anybody: they are above those that useradd(8) takes for subordinate IDs, and those that systemd-nspawn(1) takes for containers, which
/// end at 0x6fffffff (systemd's "Users, Groups, UIDs and GIDs").
pub const FIRST_USER: u32 = 0x7000_0000;
/// The last of them.
pub const LAST_USER: u32 = FIRST_USER + (1 << 22);
/// The user that nobody else is.
const NOBODY: u32 = 65534;

/// The user and group of the VM whose supervisor has this PID.
pub fn user_of(supervisor: u32) -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let own = FIRST_USER + supervisor % (LAST_USER - FIRST_USER);
    // In the namespace of a user with one number, which is root there, no process has another.
    [own, NOBODY].into_iter().find(|user| is_mapped(&map, *user)).unwrap_or(0)
}

/// Whether no other process has this user.
pub(super) fn is_alone(user: u32) -> bool {
    (FIRST_USER..=LAST_USER).contains(&user)
}

/// Whether a user namespace has a number, by its `uid_map`.
fn is_mapped(map: &str, user: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(user)))
    })
}

/// Becomes the user, if there is one, and keeps these capabilities alone, for good. In a user namespace `keeps_groups`: supplementary
/// groups are the only access that a user may have to a device, and they give no other that he does not have.
pub(super) fn drop(kept: CapabilitySet, user: Option<u32>, keeps_groups: bool) -> Result<(), Error> {
    rustix::thread::clear_ambient_capability_set().map_err(io::Error::from)?;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // This kernel does not know the capability.
            Err(rustix::io::Errno::INVAL) => {}
            other => other.map_err(io::Error::from)?,
        }
    }
    if !keeps_groups {
        rustix::thread::set_thread_groups(&[]).map_err(io::Error::from)?;
    }
    if let Some(user) = user {
        rustix::thread::set_keep_capabilities(true).map_err(io::Error::from)?;
        become_user(user).at(|| format!("user {user}"))?;
    }
    let permitted = rustix::thread::capabilities(None).map_err(io::Error::from)?.permitted;
    if !permitted.contains(kept) {
        return Err(Error::Host(lacking(kept.difference(permitted))));
    }
    // What a program keeps that is executed as a user.
    let inheritable = if user.is_some() { kept } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    rustix::thread::set_capabilities(None, sets).map_err(io::Error::from)?;
    for capability in inheritable.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(io::Error::from)?;
    }
    Ok(rustix::thread::set_no_new_privs(true).map_err(io::Error::from)?)
}

/// A message about capabilities that are missing: root in a container has only some.
fn lacking(missing: CapabilitySet) -> String {
    let names: Vec<_> = missing.iter_names().map(|(name, _)| name).collect();
    let list = |prefix: &str, separator: &str| {
        names.iter().map(|name| format!("{prefix}{name}")).collect::<Vec<_>>().join(separator)
    };
    format!("this user lacks {} (in a container: docker run {})", list("CAP_", ", "), list("--cap-add ", " "))
}

/// Becomes a user and the group of the same number.
fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // A change of the user clears it.
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_capabilities_that_are_missing() {
        assert_eq!(
            lacking(CapabilitySet::DAC_READ_SEARCH | CapabilitySet::MKNOD),
            "this user lacks CAP_DAC_READ_SEARCH, CAP_MKNOD (in a container: docker run --cap-add DAC_READ_SEARCH \
             --cap-add MKNOD)"
        );
    }

    #[test]
    fn a_user_is_one_that_the_namespace_has() {
        assert!(is_mapped("         0          0 4294967295\n", LAST_USER));
        let rootless = "0 1000 1\n1 100000 65536\n";
        assert!(is_mapped(rootless, NOBODY) && is_mapped(rootless, 0));
        assert!(!is_mapped(rootless, FIRST_USER) && !is_mapped(rootless, 65537) && !is_mapped("", 0));
    }
}
