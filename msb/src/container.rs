//! What a container must be given so that the tools can mount, and confine processes, in it. docker gives it neither.

use std::io;

use crate::overlay::error::{At, Error};

/// The flags for a container that lacks CAP_SYS_ADMIN. docker's filter has no pivot_root(2), and its profile of AppArmor no mounts.
/// CAP_DAC_READ_SEARCH is for the programs that make disks of a tree.
pub(crate) const REMEDY: &str = "in a container: docker run --cap-add SYS_ADMIN --cap-add DAC_READ_SEARCH \
                                 --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged";

/// Names a step that a container may forbid, with the remedy if it is forbidden.
pub(crate) fn step<T>(result: io::Result<T>, name: &str) -> Result<T, Error> {
    let is_forbidden = matches!(&result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    result.at(|| if is_forbidden { format!("{name} ({REMEDY})") } else { name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_forbidden_has_a_remedy() {
        let text =
            |errno: i32| step::<()>(Err(io::Error::from_raw_os_error(errno)), "pivot_root").unwrap_err().to_string();
        assert!(text(1).starts_with("pivot_root (in a container: docker run --cap-add SYS_ADMIN "), "{}", text(1));
        assert!(text(13).contains("apparmor=unconfined, or --privileged"), "{}", text(13));
        assert!(text(22).starts_with("pivot_root") && !text(22).contains("docker"), "{}", text(22));
        assert_eq!(step(Ok(1), "pivot_root").unwrap(), 1);
    }
}
