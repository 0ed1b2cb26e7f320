//! Who can reach a directory on the host. A guest's commit holds set-id programs and device nodes as the guest made them: where
//! other users of the host can enter the upper, they can run and open those.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};

/// What decides who may enter one directory.
#[derive(Clone, Copy, Debug)]
struct Gate {
    mode: u32,
    uid: u32,
    gid: u32,
    has_acl: bool,
}

/// Refuses an upper that other users than this process's can enter.
///
/// # Errors
/// A message that says what to do; or what reading the directories says.
pub fn require_private(upper: &Path) -> anyhow::Result<()> {
    if by_others(upper).with_context(|| format!("upper {upper:?}"))? {
        let parent = upper.parent().unwrap_or(Path::new("/"));
        bail!(
            "upper {upper:?}: other users of this machine can enter it, and could run the set-id programs of a guest \
             (\"chmod 0700 {}\" closes it; msb-patch makes new ones private)",
            parent.display()
        );
    }
    Ok(())
}

/// Whether somebody else than root and this process's user can enter a directory: each directory from the root to it lets
/// somebody else through.
///
/// # Errors
/// What `stat(2)` says.
pub fn by_others(dir: &Path) -> io::Result<bool> {
    let dir = dir.canonicalize()?;
    let user = rustix::process::geteuid().as_raw();
    for step in dir.ancestors() {
        let meta = step.metadata()?;
        // Its value does not matter: a list may let anybody in.
        let has_acl = rustix::fs::getxattr(step, "system.posix_acl_access", &mut [0u8; 0][..]).is_ok();
        let gate = Gate { mode: meta.mode(), uid: meta.uid(), gid: meta.gid(), has_acl };
        if !gate.lets_others_in(user) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Gate {
    /// Its owner may change the mode, so a directory of somebody else is open to him. Of a group nobody knows the members; that of
    /// root has none but root. With an access control list the group's bits are the most that the list gives anybody.
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
    fn a_directory_is_open_by_its_mode_its_owner_and_its_list() {
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
            assert_eq!(Gate { mode, uid, gid, has_acl }.lets_others_in(7), open, "{mode:o} {uid}:{gid} {has_acl}");
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
