//! The name of a VM, and the run directory that belongs to it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::record::path::absolute;
use crate::store::id_map::{self, IdMap};

/// `HOST_NAME_MAX` of Linux, which is also the length of the IDs that container engines generate.
const MAX: usize = 64;

/// Checks a VM's name. It becomes a directory and the guest's hostname: letters, digits, `-`, `_`, `.`, at most 64 bytes, and the first
/// one a letter or a digit.
///
/// # Errors
/// A message that states the rule.
pub fn check(name: &str) -> Result<(), &'static str> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if starts_well && is_plain && name.len() <= MAX {
        Ok(())
    } else {
        Err("a name is 1 to 64 letters, digits, \"-\", \"_\" or \".\", the first a letter or digit")
    }
}

/// [`check`], for a command line.
///
/// # Errors
/// As [`check`].
pub fn parse(text: &str) -> Result<String, &'static str> {
    check(text).map(|()| text.to_owned())
}

/// The directory that holds the run directories: `$MSB_RUN`, else `/run/msb` for root and `$XDG_RUNTIME_DIR/msb` for others. Without that
/// variable (cron, `su`) it is in the directory that a login session of the user has made, as for podman.
///
/// Root ignores the variable of a login session: the session ends before a VM does, and sudo, cron and services have another one or
/// none. A user who is root in a user namespace of its own counts as one of the others: there, `/run` does not belong to root.
///
/// # Errors
/// If the user is not root, neither variable is set, and there is no such directory.
pub fn run_base() -> io::Result<PathBuf> {
    match variable("MSB_RUN") {
        Some(dir) => absolute(&dir),
        None => Ok(runtime_dir()?.join("msb")),
    }
}

/// The directory for files that a reboot removes: `/run` for root, and for others `$XDG_RUNTIME_DIR` or that of a login session, as
/// [`run_base`] says.
///
/// # Errors
/// If the user is not root, the variable is not set, and there is no such directory.
pub fn runtime_dir() -> io::Result<PathBuf> {
    let owns_run = || std::fs::metadata("/run").map_or(true, |meta| meta.uid() == 0);
    if rustix::process::geteuid().is_root() && owns_run() {
        return Ok("/run".into());
    }
    match variable("XDG_RUNTIME_DIR").or_else(login_dir) {
        Some(dir) => absolute(&dir),
        None => Err(io::Error::other(
            "neither MSB_RUN nor XDG_RUNTIME_DIR is set, and the user has no /run/user/UID (set XDG_RUNTIME_DIR to a directory of \
             the user's own, or log in with systemd-logind)",
        )),
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The directory of the user's login sessions, if it is the user's alone.
fn login_dir() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let number = id_map::outside(&IdMap::of_this_process().ok()?.uid, user)?;
    let dir = PathBuf::from(format!("/run/user/{number}"));
    let meta = std::fs::symlink_metadata(&dir).ok()?;
    (meta.is_dir() && meta.uid() == user && meta.mode() & 0o022 == 0).then_some(dir)
}

/// The run directory of the VM `name`, which lives as long as the VM.
///
/// # Errors
/// As [`run_base`].
pub fn run_dir(name: &str) -> io::Result<PathBuf> {
    Ok(run_base()?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vms_are_safe_as_directories_and_hostnames() {
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"x".repeat(65)] {
            assert!(check(bad).is_err() && parse(bad).is_err(), "{bad:?}");
        }
        for good in ["worker", "a", "9.b-c_d", &"x".repeat(64)] {
            assert_eq!((check(good), parse(good)), (Ok(()), Ok(good.to_owned())), "{good:?}");
        }
    }
}
