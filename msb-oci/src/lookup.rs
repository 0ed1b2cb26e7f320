//! Whether a command can be found in the container's tree, with the messages that callers recognise.

use std::path::{Path, PathBuf};

use anyhow::bail;
use msb::overlay::beneath::Dir;
use msb::wire::exec::DEFAULT_PATH;
use oci_spec::runtime::Process;
use rustix::fs::Mode;

/// Checks the command of a process.
///
/// # Errors
/// It is missing, or cannot be executed. Engines find their exit status, 127 or 126, in the words.
pub(crate) fn check(tree: &Path, process: &Process) -> anyhow::Result<()> {
    let Some(name) = process.args().as_ref().and_then(|args| args.first()) else {
        bail!("process.args: there is no command")
    };
    let root = Dir::open(tree)?;
    let path =
        process.env().iter().flatten().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let places: Vec<PathBuf> = if name.contains('/') {
        vec![process.cwd().join(name)]
    } else {
        path.split(':').map(|dir| process.cwd().join(dir).join(name)).collect()
    };
    let mut denied = false;
    for place in &places {
        // What a symlink leads to that only the guest has, such as /proc, is not found here, and left to the guest.
        if is_guests_own(place) {
            return Ok(());
        }
        let Ok(entry) = root.entry_in_root(place) else { continue };
        let mode = Mode::from_raw_mode(entry.stat().st_mode);
        if entry.is_dir() || !mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH) {
            denied = true;
        } else {
            return Ok(());
        }
    }
    match denied {
        true => bail!("exec {name:?}: permission denied"),
        false => bail!("executable file {name:?} not found in $PATH: No such file or directory"),
    }
}

/// Whether a path is in a file system that the guest mounts.
fn is_guests_own(path: &Path) -> bool {
    ["/proc", "/dev", "/sys"].iter().any(|own| path.starts_with(own))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_command_is_found_as_the_guest_finds_it() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        for dir in ["bin", "usr/bin", "usr/bin/tool", "home"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for (file, mode) in [("bin/run", 0o755), ("bin/data", 0o644), ("home/own", 0o100), ("usr/bin/data", 0o644)] {
            fs::write(root.join(file), "").unwrap();
            fs::set_permissions(root.join(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/bin/run", root.join("bin/link")).unwrap();
        symlink("../../../../../../bin/sh", root.join("bin/out")).unwrap();
        symlink("nowhere", root.join("bin/broken")).unwrap();
        for (name, expected) in [
            ("run", None),
            ("link", None),
            ("/bin/run", None),
            ("./own", None),
            ("/proc/self/exe", None),
            ("data", Some("permission denied")),
            ("tool", Some("permission denied")),
            ("/bin", Some("permission denied")),
            ("own", Some("No such file or directory")),
            ("out", Some("No such file or directory")),
            ("broken", Some("No such file or directory")),
            ("/bin/run/x", Some("No such file or directory")),
        ] {
            let process =
                serde_json::json!({"args": [name], "cwd": "/home", "user": {}, "env": ["PATH=/usr/bin:/bin"]});
            let result = check(root, &serde_json::from_value(process).unwrap()).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(result, Ok(()), "{name}"),
                Some(words) => assert!(result.unwrap_err().ends_with(words), "{name}"),
            }
        }
    }
}
