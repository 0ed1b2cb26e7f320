//! The initramfs: the guest's first root, which the VMM puts into the guest's memory with the kernel. It holds the agent, the agent's
//! configuration and the scripts, and nothing of the image.
//!
//! It is one cpio archive in three parts. The first one has the agent and is the same for all VMs, so it is a file in the store. A running
//! VM holds it open, with a lock against its removal: a restart and a commit take the agent that the VM was booted with, even if another
//! release is installed by then. The second one has the scripts, and is made once for a VM. The third one has the configuration, and is
//! made for each start.

mod cpio;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::record::script;
use msb::store::{home, layout, publish};
use msb::vm::boot::{AGENT_NAME, Boot, FILE_NAME, MSB_DIR, VOLUMES_DIR};
use msb::vm::rundir;

/// The mount points for the agent.
const MOUNT_POINTS: [&str; 11] =
    ["mnt", "dev", "proc", "sys", "base", "layer1", "layer2", "layer3", "patches", "top", VOLUMES_DIR];
/// The size of a page, in bytes. libkrun puts the end of the initramfs at the end of the guest's memory, and Linux frees the memory of one
/// that starts at a page.
const PAGE: u64 = 4096;

/// The first part, in the store, for the agent in a file: below `$MSB_HOME/kernel`, named after the agent's file. It may not exist yet.
///
/// # Errors
/// A file that does not exist.
pub(crate) fn agent_part(agent: &Path) -> anyhow::Result<PathBuf> {
    let meta = fs::metadata(agent).with_context(|| format!("agentd {agent:?}"))?;
    Ok(layout::agent_part(&home::home()?, &meta))
}

/// Writes the first part, if it does not exist.
///
/// # Errors
/// A file that cannot be read or written.
pub(crate) fn write_agent_part(agent: &Path, part: &Path) -> anyhow::Result<()> {
    if part.exists() {
        return Ok(());
    }
    let mut out = Vec::new();
    for name in MOUNT_POINTS.into_iter().chain([MSB_DIR]) {
        cpio::directory(&mut out, name);
    }
    cpio::file(&mut out, AGENT_NAME, 0o755, &fs::read(agent).with_context(|| format!("agentd {agent:?}"))?)?;
    let dir = part.parent().unwrap_or(Path::new("/"));
    publish::make_private_dir(dir).with_context(|| format!("{dir:?}"))?;
    publish::write_file(part, &out, 0o600).with_context(|| format!("{part:?}"))
}

/// Opens the first part with a lock, so that nobody removes it, and notes its use.
fn hold_agent_part(agent: &Path, part: &Path) -> anyhow::Result<File> {
    loop {
        // It was written before, but msb-store may have removed it since.
        write_agent_part(agent, part)?;
        match lock::open(part, Lock::Shared).map(File::from) {
            Ok(file) if file.metadata()?.nlink() > 0 => {
                // A store that cannot be written has it all the same.
                let _ = file.set_modified(SystemTime::now());
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{part:?}")),
        }
    }
}

/// The initramfs of a VM, but for its configuration.
#[derive(Debug)]
pub(crate) struct Initramfs {
    agent: File,
    scripts: Vec<u8>,
}

impl Initramfs {
    /// Opens the first part, which is written again if it is gone, and makes the second one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn make(agent: &Path, part: &Path, scripts: &BTreeMap<String, PathBuf>) -> anyhow::Result<Self> {
        let agent = hold_agent_part(agent, part)?;
        let mut out = Vec::new();
        cpio::directory(&mut out, &format!("{MSB_DIR}/scripts"));
        cpio::file(&mut out, &format!("{MSB_DIR}/{}", script::PROFILE_NAME), 0o644, script::PROFILE.as_bytes())?;
        for (name, source) in scripts {
            let subject = || format!("script {name:?} from {source:?}");
            let content = fs::read(source).with_context(subject)?;
            cpio::file(&mut out, &format!("{MSB_DIR}/scripts/{name}"), 0o755, &content).with_context(subject)?;
        }
        Ok(Self { agent, scripts: out })
    }

    /// Writes it for one start of the VM with the run directory `dir`, as a file without a name that `user` can read. The configuration may
    /// hold secrets, and the file disappears when nobody has it open. A commit gets no scripts.
    ///
    /// # Errors
    /// Those of writing a file in `dir`.
    pub(crate) fn write(&self, dir: &Path, boot: &Boot, user: u32) -> anyhow::Result<OwnedFd> {
        let requested_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = Boot { requested_at_ms: u64::try_from(requested_at.as_millis())?, ..boot.clone() };
        let mut end = if boot.commit { Vec::new() } else { self.scripts.clone() };
        cpio::file(&mut end, FILE_NAME, 0o600, &serde_json::to_vec(&boot)?)?;
        cpio::trailer(&mut end);
        let path = dir.join(rundir::INITRAMFS);
        let write = || -> io::Result<File> {
            let mut out = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            fs::remove_file(&path)?;
            fchown(&out, Some(user), Some(user))?;
            let mut agent = &self.agent;
            agent.rewind()?;
            let length = io::copy(&mut agent, &mut out)? + end.len() as u64;
            out.write_all(&end)?;
            out.set_len(length.next_multiple_of(PAGE))?;
            Ok(out)
        };
        Ok(write().with_context(|| format!("{path:?}"))?.into())
    }
}

/// Checks that the scripts' files fit into the guest's memory, of which the kernel gives half to the initramfs. It has the initramfs twice
/// while it unpacks it.
///
/// # Errors
/// Scripts that are too large.
pub(crate) fn check_size(scripts: &BTreeMap<String, PathBuf>, memory_mib: u32) -> anyhow::Result<()> {
    let sizes = scripts.values().filter_map(|source| fs::metadata(source).ok()).map(|meta| meta.len());
    let (mib, max) = (sizes.sum::<u64>() >> 20, u64::from(memory_mib) / 4);
    if mib >= max {
        bail!("scripts of {mib} MiB: they are in the guest's memory, and may take a quarter of it (use a volume)");
    }
    Ok(())
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
    use msb::vm::boot::{Defaults, VERSION};

    use super::*;

    fn boot(commit: bool) -> Boot {
        let defaults =
            Defaults { env: Vec::new(), cwd: String::new(), user: String::new(), argv: Vec::new(), stop_signal: 15 };
        Boot {
            version: VERSION,
            requested_at_ms: 0,
            hostname: "worker".into(),
            mounts: Vec::new(),
            defaults,
            directories: Vec::new(),
            volumes: Vec::new(),
            commit,
            bare: false,
            init: None,
            network: None,
            port: false,
        }
    }

    /// The modes and names in an archive, as a reader of the format finds them: from one header to the next.
    fn listed(archive: OwnedFd) -> Vec<String> {
        let (mut archive, mut bytes) = (File::from(archive), Vec::new());
        archive.rewind().unwrap();
        archive.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len().is_multiple_of(PAGE as usize));
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            let field = |number: usize| {
                let start = at + 6 + 8 * number;
                usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let name = std::str::from_utf8(&bytes[at + 110..at + 109 + field(11)]).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push(format!("{:o} {name}", field(1)));
            at = (at + 110 + field(11)).next_multiple_of(4) + field(6).next_multiple_of(4);
        }
    }

    #[test]
    fn the_parts_are_one_archive_of_whole_pages_that_has_no_name() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::write(at("agentd"), "agent").unwrap();
        fs::write(at("hello.sh"), "#!/bin/sh\n").unwrap();
        let scripts = BTreeMap::from([("hello".to_owned(), at("hello.sh"))]);
        let initramfs = Initramfs::make(&at("agentd"), &at("part"), &scripts).unwrap();
        assert!(lock::open(&at("part"), Lock::TryExclusive).is_err());
        // Neither is read again.
        fs::remove_file(at("hello.sh")).unwrap();
        fs::remove_file(at("part")).unwrap();
        let own = rustix::process::getuid().as_raw();
        let first = initramfs.write(scratch.path(), &boot(false), own).unwrap();
        assert_eq!(File::from(first.try_clone().unwrap()).metadata().unwrap().mode() & 0o777, 0o600);
        let profile = format!("100644 msb/{}", script::PROFILE_NAME);
        let all = listed(first);
        let rest = [
            "40755 msb",
            "100755 agentd",
            "40755 msb/scripts",
            &profile,
            "100755 msb/scripts/hello",
            "100600 boot.json",
        ];
        assert_eq!(all[MOUNT_POINTS.len()..], rest);
        assert_eq!(all[0], "40755 mnt");
        // The same agent again, and no scripts.
        let commit = listed(initramfs.write(scratch.path(), &boot(true), own).unwrap());
        assert_eq!(commit[MOUNT_POINTS.len()..], ["40755 msb", "100755 agentd", "100600 boot.json"]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn scripts_that_the_guests_memory_cannot_hold_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("large");
        File::create(&file).unwrap().set_len(40 << 20).unwrap();
        let scripts = BTreeMap::from([("large".to_owned(), file)]);
        assert!(check_size(&scripts, 256).is_ok());
        assert!(check_size(&scripts, 160).unwrap_err().to_string().contains("scripts of 40 MiB"));
        assert!(check_size(&BTreeMap::new(), 64).is_ok());
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
