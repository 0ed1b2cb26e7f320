//! The process that makes a request.

use fuser::Request;

use crate::host_ids;

/// The bit of CAP_SYS_ADMIN in a set of capabilities (`linux/capability.h`).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The process that makes a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: u32,
    pid: u32,
}

impl Caller {
    /// The caller of a request, with the umask in it if it has one.
    pub(crate) fn new(request: &Request, umask: u32) -> Self {
        let (uid, gid) = host_ids::of_caller(request.uid(), request.gid());
        Self { uid, gid, umask, pid: request.pid() }
    }

    /// Whether the process has CAP_SYS_ADMIN in our user namespace, without which the kernel's file systems do not list `trusted.` xattrs.
    /// A process in another PID namespace is not visible; it is judged by its user.
    pub(crate) fn is_admin(&self) -> bool {
        let proc = |name: &str| format!("/proc/{}/{name}", self.pid);
        let Ok(status) = std::fs::read_to_string(proc("status")) else { return self.uid == 0 };
        let namespace = |path: &str| std::fs::read_link(path).ok();
        has_sys_admin(&status) && namespace(&proc("ns/user")) == namespace("/proc/self/ns/user")
    }
}

/// Whether the effective capabilities in `/proc/PID/status` contain CAP_SYS_ADMIN.
fn has_sys_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|effective| effective & CAP_SYS_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_effective_set_decides() {
        for (status, expected) in [
            ("CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n", true),
            ("CapEff:\t0000000000200000\n", true),
            ("CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffdfffff\n", false),
            ("CapEff:\t0000000000000000\n", false),
            ("", false),
        ] {
            assert_eq!(super::has_sys_admin(status), expected, "{status:?}");
        }
    }
}
