//! Who can enter a directory on the host. A commit brings set-id programs and device nodes as the guest made them. Other users of the
//! host could run and open those if they can enter the upper.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::attributes::ACCESS_ACL;
use super::error::{At, Error};

/// What decides who may enter a directory.
#[derive(Clone, Copy, Debug)]
struct Access {
    mode: u32,
    uid: u32,
    gid: u32,
    has_acl: bool,
}

/// Refuses an upper that users other than root and this process's user can enter.
///
/// # Errors
/// [`Error::Caller`] with what to do; or the error of reading the directories.
pub fn require_private(upper: &Path) -> Result<(), Error> {
    if by_others(upper).at(|| format!("upper {upper:?}"))? {
        let parent = upper.parent().unwrap_or(Path::new("/"));
        return Err(Error::Caller(format!(
            "upper {upper:?}: other users of this machine can enter it, and could run the set-id programs of a guest \
             (\"chmod 0700 {}\" closes it; msb-patch makes new ones private)",
            parent.display()
        )));
    }
    Ok(())
}

/// Whether users other than root and this process's user can enter a directory. They can if each directory on the path to it lets some
/// of them in.
///
/// # Errors
/// The error of `stat(2)`.
pub fn by_others(dir: &Path) -> io::Result<bool> {
    let dir = dir.canonicalize()?;
    let user = rustix::process::geteuid().as_raw();
    for step in dir.ancestors() {
        let meta = step.metadata()?;
        // Any access control list may let anybody in, so its value does not matter.
        let has_acl = rustix::fs::getxattr(step, ACCESS_ACL, &mut [0u8; 0][..]).is_ok();
        let access = Access { mode: meta.mode(), uid: meta.uid(), gid: meta.gid(), has_acl };
        if !access.lets_others_in(user) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Access {
    /// The owner of a directory can change its mode, so a directory of another user counts as open. The members of a group are unknown,
    /// except that group 0 has only root. With an access control list, the group bits are the most that the list grants.
    fn lets_others_in(self, user: u32) -> bool {
        let is_ours = self.uid == 0 || self.uid == user;
        let is_open_to_group = self.mode & 0o010 != 0 && (self.gid != 0 || self.has_acl);
        !is_ours || self.mode & 0o001 != 0 || is_open_to_group
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn mode_owner_and_acl_decide_who_enters() {
        for (mode, uid, gid, has_acl, open) in [
            (0o700, 0, 0, false, false),
            (0o755, 0, 0, false, true),
            (0o701, 0, 0, false, true),
            (0o744, 0, 0, false, false),
            (0o750, 0, 0, false, false),
            (0o750, 0, 100, false, true),
            (0o740, 0, 100, false, false),
            (0o750, 0, 0, true, true),
            (0o740, 0, 0, true, false),
            (0o700, 1000, 1000, false, true),
            (0o700, 7, 0, false, false),
            (0o701, 7, 0, false, true),
        ] {
            assert_eq!(Access { mode, uid, gid, has_acl }.lets_others_in(7), open, "{mode:o} {uid}:{gid} {has_acl}");
        }
    }

    #[test]
    fn one_closed_directory_on_the_way_is_enough() {
        let scratch = tempfile::tempdir().unwrap();
        let upper = scratch.path().join("open/private/upper");
        std::fs::create_dir_all(&upper).unwrap();
        let set = |path: &str, mode| {
            std::fs::set_permissions(scratch.path().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set("", 0o755);
        for path in ["open", "open/private", "open/private/upper"] {
            set(path, 0o755);
        }
        assert!(by_others(&upper).unwrap());
        let refused = require_private(&upper).unwrap_err().to_string();
        assert!(refused.contains("other users") && refused.contains("open/private"), "{refused}");
        for path in ["", "open", "open/private", "open/private/upper"] {
            set(path, 0o700);
            assert!(!by_others(&upper).unwrap(), "{path}");
            require_private(&upper).unwrap();
            set(path, 0o755);
        }
        std::os::unix::fs::symlink("open/private", scratch.path().join("way")).unwrap();
        set("open", 0o700);
        assert!(!by_others(&scratch.path().join("way/upper")).unwrap());
    }
}
