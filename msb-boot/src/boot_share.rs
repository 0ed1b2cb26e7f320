//! The boot share: the small directory that is the guest's first root. It holds the agent, the agent's configuration and the scripts,
//! and nothing of the image.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use msb::record::script;
use msb::vm::boot::{Boot, FILE_NAME, INIT_NAME, MSB_DIR, VOLUMES_DIR, VolumeSource};

/// The mount points for the agent.
const MOUNT_POINTS: [&str; 8] = ["mnt", "dev", "proc", "sys", "etc", "base", "patches", "top"];

/// Makes the boot share at `dir`, which must not exist.
///
/// # Errors
/// The file that could not be made or read.
pub(crate) fn make(dir: &Path, agent: &Path, boot: &Boot, scripts: &BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    let scripts_dir = dir.join(MSB_DIR).join("scripts");
    make_dir(dir)?;
    make_dir(&dir.join(MSB_DIR))?;
    make_dir(&scripts_dir)?;
    for name in MOUNT_POINTS {
        make_dir(&dir.join(name))?;
    }
    let volumes = dir.join(VOLUMES_DIR);
    make_dir(&volumes)?;
    for volume in &boot.volumes {
        // Mount points.
        match &volume.source {
            VolumeSource::Directory(number) => make_dir(&volumes.join(number.to_string()))?,
            VolumeSource::File(number) => drop(File::create_new(volumes.join(number.to_string()))?),
            VolumeSource::Tmpfs(_) => {}
        }
    }
    let init = dir.join(INIT_NAME);
    fs::copy(agent, &init).with_context(|| format!("agentd {agent:?} to {init:?}"))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))?;

    let file = dir.join(FILE_NAME);
    let json = serde_json::to_vec(boot)?;
    // It may hold secrets. The VM's user gets it before the VMM reads it.
    let written = File::options().write(true).create_new(true).mode(0o600).open(&file);
    written.and_then(|mut out| out.write_all(&json)).with_context(|| format!("{file:?}"))?;

    let profile = dir.join(MSB_DIR).join(script::PROFILE_NAME);
    fs::write(&profile, script::PROFILE).with_context(|| format!("{profile:?}"))?;
    fs::set_permissions(&profile, Permissions::from_mode(0o644))?;

    for (name, source) in scripts {
        let target = scripts_dir.join(name);
        fs::copy(source, &target).with_context(|| format!("script {name:?} from {source:?}"))?;
        fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Gives the agent's configuration the current time. The agent takes that for the time of the request to boot, and has less time for an
/// init if the boot is late already.
///
/// # Errors
/// Those of `open(2)` and `utimensat(2)`.
pub(crate) fn renew(dir: &Path) -> io::Result<()> {
    File::options().write(true).open(dir.join(FILE_NAME))?.set_modified(SystemTime::now())
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().mode(0o755).create(dir);
    made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o755))).with_context(|| format!("{dir:?}"))
}

/// Checks a script's file. `Some` is a warning.
///
/// # Errors
/// A script that cannot be read, or is not a regular file.
pub(crate) fn check_script(name: &str, source: &Path) -> anyhow::Result<Option<String>> {
    let subject = || format!("script {name:?} from {source:?}");
    if !fs::metadata(source).with_context(subject)?.is_file() {
        bail!("{}: not a file", subject());
    }
    let file = File::open(source).with_context(subject)?;
    Ok(has_dos_interpreter(file).with_context(subject)?.then(|| {
        format!(
            "script {name:?}: its first line ends in CR LF, so the guest looks for an interpreter with a CR in its \
             name (save it with LF alone)"
        )
    }))
}

/// Whether a script's first line starts with `#!` and ends in CR LF. Linux reads at most 256 bytes of it.
fn has_dos_interpreter(file: impl Read) -> io::Result<bool> {
    let mut line = Vec::new();
    BufReader::new(file).take(256).read_until(b'\n', &mut line)?;
    Ok(line.starts_with(b"#!") && line.ends_with(b"\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_gets_the_time_of_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join(FILE_NAME);
        fs::write(&file, "{}").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        renew(scratch.path()).unwrap();
        assert!(fs::metadata(&file).unwrap().modified().unwrap().elapsed().unwrap().as_secs() < 3600);
        assert_eq!(fs::read(&file).unwrap(), b"{}");
    }

    #[test]
    fn an_interpreter_line_that_ends_in_cr_lf_gives_a_warning() {
        for (script, expected) in [
            ("#!/bin/sh\r\necho\n", true),
            ("#!/bin/sh\necho\r\n", false),
            ("echo\r\n", false),
            ("", false),
            ("#!/bin/sh\r", false),
        ] {
            assert_eq!(has_dos_interpreter(script.as_bytes()).unwrap(), expected, "{script:?}");
        }
    }
}
