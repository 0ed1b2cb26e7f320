//! The capabilities of this process: root in a container may lack some.

use std::fs;

use crate::container;

/// The number of CAP_SYS_ADMIN in `linux/capability.h`.
const SYS_ADMIN: u32 = 21;

/// A missing prerequisite of mounts and namespaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} ({remedy})")]
pub struct Missing {
    /// What was found.
    pub found: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Checks that this process may mount and make namespaces.
///
/// # Errors
/// What is missing.
pub fn check_sys_admin() -> Result<(), Missing> {
    check(fs::read_to_string("/proc/self/status").ok().as_deref())
}

fn check(status: Option<&str>) -> Result<(), Missing> {
    let Some(status) = status else {
        return Err(Missing { found: "/proc is not mounted", remedy: "mount -t proc proc /proc" });
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    match effective >> SYS_ADMIN & 1 {
        1 => Ok(()),
        _ => Err(Missing { found: "the capability CAP_SYS_ADMIN is missing", remedy: container::REMEDY }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_capabilities_count() {
        for (status, message) in [
            (Some("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"), ""),
            (Some("CapEff:\t0000000000200000\n"), ""),
            (
                Some("CapPrm:\t000001ffffffffff\nCapEff:\t00000000a80425fb\n"),
                "CAP_SYS_ADMIN is missing (in a container: docker run --cap-add SYS_ADMIN ",
            ),
            (Some(""), "CAP_SYS_ADMIN is missing"),
            (None, "/proc is not mounted (mount -t proc"),
        ] {
            let found = check(status).map_or_else(|missing| missing.to_string(), |()| String::new());
            assert!(found.contains(message) && found.is_empty() == message.is_empty(), "{status:?}: {found}");
        }
    }
}
