//! Landlock, the second layer of a jail. The mounts of a jail decide what a process sees. Landlock says once more what it may do with
//! that, and what it may execute, which neither mounts nor a filter for system calls can say. It applies on kernels that have it (Linux
//! 5.19 and later, if it is enabled), and changes nothing on others.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::profile::Rules;
use crate::inherited;

/// The rights that are handled: those that this ABI knows. What later ones add is decided by the mounts alone.
const RIGHTS: ABI = ABI::V6;
/// The first ABI that can allow to rename a file into another directory. The first of all forbids it.
const OLDEST: u32 = 2;

/// What a process may do with a file, or with all files below a directory.
pub(super) struct Rule {
    file: OwnedFd,
    rights: BitFlags<AccessFs>,
}

impl Rule {
    /// Reading, and writing if it is `writable`.
    pub(super) fn data(file: OwnedFd, writable: bool) -> io::Result<Self> {
        let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir();
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let rights = if writable { AccessFs::from_all(RIGHTS) & !AccessFs::Execute } else { read };
        Ok(Self { file, rights: if is_dir { rights } else { rights & AccessFs::from_file(RIGHTS) } })
    }

    /// All that a device does.
    pub(super) fn device(file: OwnedFd) -> Self {
        Self { file, rights: make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}) }
    }

    /// Executing a file.
    fn program(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file, rights: make_bitflags!(AccessFs::{Execute | ReadFile}) })
    }

    /// Opening the inherited files once more, through `/proc/self/fd`, for writing only if they are open for that. What is open for
    /// writing alone may be read too: mkfs.erofs(1) opens a device for both. A descriptor of O_PATH gives no right.
    ///
    /// # Errors
    /// That /proc is not mounted.
    pub(super) fn inherited() -> io::Result<Vec<Self>> {
        let mut rules = Vec::new();
        for number in inherited::numbers()? {
            let link = format!("/proc/self/fd/{number}");
            // The descriptor of /proc/self/fd itself is gone.
            let Ok(meta) = fs::symlink_metadata(&link) else { continue };
            let Ok(file) = rustix::fs::openat(CWD, &link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            // The server of a FUSE mount may be gone.
            let Ok(stat) = rustix::fs::fstat(&file) else { continue };
            // A memfd, as a pipe, is on no mount: it takes no rule (EBADFD), and needs none.
            let is_memfd = fs::read_link(&link).is_ok_and(|path| path.as_os_str().as_bytes().starts_with(b"/memfd:"));
            let kind = FileType::from_raw_mode(stat.st_mode);
            if is_memfd || !matches!(kind, FileType::RegularFile | FileType::BlockDevice | FileType::CharacterDevice) {
                continue;
            }
            // The bits of the link say how the file is open, see proc_pid_fd(5).
            let mode = meta.permissions().mode();
            if mode & 0o600 == 0 {
                continue;
            }
            let mut rights = make_bitflags!(AccessFs::{ReadFile | IoctlDev});
            if mode & 0o200 != 0 {
                rights |= make_bitflags!(AccessFs::{WriteFile | Truncate});
            }
            rules.push(Self { file, rights });
        }
        Ok(rules)
    }
}

/// The rules for executing a program of the jail: its file, and that of its dynamic loader, if it has one.
///
/// # Errors
/// Those of opening the files.
pub(super) fn program(path: &Path) -> io::Result<Vec<Rule>> {
    let mut rules = vec![Rule::program(path)?];
    if let Some(loader) = loader(&File::open(path)?)? {
        rules.push(Rule::program(&loader)?);
    }
    Ok(rules)
}

/// The dynamic loader that an ELF file names in its segment PT_INTERP, see elf(5).
fn loader(program: &File) -> io::Result<Option<PathBuf>> {
    const PT_INTERP: [u8; 4] = 3_u32.to_ne_bytes();
    const MAX_PATH: u64 = 4096;
    let mut header = [0; 64];
    if program.read_exact_at(&mut header, 0).is_err() || header[..5] != *b"\x7fELF\x02" {
        return Ok(None);
    }
    let word = |bytes: &[u8], at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let (segments, size) = (word(&header, 0x20), u16::from_ne_bytes([header[0x36], header[0x37]]));
    for number in 0..u16::from_ne_bytes([header[0x38], header[0x39]]) {
        let mut segment = [0; 56];
        let at = segments.saturating_add(u64::from(size) * u64::from(number));
        program.read_exact_at(&mut segment, at)?;
        if segment[..4] != PT_INTERP {
            continue;
        }
        let (at, length) = (word(&segment, 8), word(&segment, 32).min(MAX_PATH));
        let mut path = vec![0; usize::try_from(length).unwrap_or(0)];
        program.read_exact_at(&mut path, at)?;
        path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
        return Ok(Some(OsString::from_vec(path).into()));
    }
    Ok(None)
}

/// Allows this thread, and what it starts, no more of files than the rules say, if its profile confines that. Without a network of its own
/// it gets no TCP either. In no case can it signal processes outside, or connect to their abstract sockets. The thread must have
/// no_new_privs.
///
/// # Errors
/// Those of the system calls, on a kernel that has Landlock.
pub(super) fn restrict(process: &Rules, rules: Vec<Rule>) -> io::Result<()> {
    apply(process, rules).map(drop).map_err(io::Error::other)
}

fn apply(process: &Rules, rules: Vec<Rule>) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default().scope(Scope::from_all(RIGHTS))?;
    if process.limits_files {
        // The first ABI forbids to rename a file into another directory, and cannot allow it. Nothing is restricted there.
        ruleset = ruleset.set_compatibility(CompatLevel::SoftRequirement).handle_access(AccessFs::Refer)?;
        ruleset = ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(RIGHTS))?;
    }
    if !process.has_network {
        ruleset = ruleset.handle_access(AccessNet::from_all(RIGHTS))?;
    }
    let mut ruleset = ruleset.create()?;
    for rule in rules.into_iter().filter(|_| process.limits_files) {
        ruleset = ruleset.add_rule(PathBeneath::new(rule.file, rule.rights))?;
    }
    ruleset.restrict_self()
}

/// The version of Landlock's ABI, if this kernel has one that jails use.
pub fn landlock_abi() -> Option<u32> {
    // The crate tells the version only after it has restricted the thread that asks.
    let ask = || Ruleset::default().handle_access(AccessFs::Execute)?.create()?.restrict_self();
    let status = thread::spawn(ask).join().ok()?.ok()?;
    let LandlockStatus::Available { effective_abi, kernel_abi } = status.landlock else { return None };
    // The crate's own type goes as far as the crate knows.
    let version = kernel_abi.map_or(effective_abi.to_string(), |version| version.to_string());
    version.parse().ok().filter(|version| *version >= OLDEST)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::process::Command;

    use rustix::io::Errno;

    use super::*;
    use crate::jail::Profile;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn errno<T>(result: io::Result<T>) -> Option<Errno> {
        result.err().as_ref().and_then(Errno::from_io_error)
    }

    #[test]
    fn what_has_no_rule_is_neither_read_nor_written_nor_executed() {
        let Some(abi) = landlock_abi() else { return eprintln!("this kernel has no Landlock") };
        let scratch = tempfile::tempdir().unwrap();
        let [writable, readable, other] = ["writable", "readable", "other"].map(|name| scratch.path().join(name));
        for dir in [&writable, &readable, &other] {
            fs::create_dir_all(dir.join("below")).unwrap();
            fs::write(dir.join("file"), "").unwrap();
        }
        // Two files of one program: a rule is about a file.
        let [allowed, another] = [readable.join("true"), readable.join("below/true")];
        for copy in [&allowed, &another] {
            fs::copy("/bin/true", copy).unwrap();
        }
        let mut rules = program(&allowed).unwrap();
        rules.push(Rule::data(open(&writable), true).unwrap());
        rules.push(Rule::data(open(&readable), false).unwrap());
        rules.push(Rule::data(open(&other.join("file")), false).unwrap());
        for library in ["/usr", "/lib", "/lib64", "/etc", "/nix/store"].map(Path::new) {
            if library.exists() {
                rules.push(Rule::data(open(library), false).unwrap());
            }
        }
        let tries = move || {
            restrict(&Profile::Qemu.rules(), rules).unwrap();
            fs::write(writable.join("new"), "").unwrap();
            fs::rename(writable.join("new"), writable.join("below/new")).unwrap();
            fs::read(readable.join("file")).unwrap();
            fs::read(other.join("file")).unwrap();
            assert_eq!(errno(fs::write(readable.join("new"), "")), Some(Errno::ACCESS));
            assert_eq!(errno(fs::read_dir(&other)), Some(Errno::ACCESS));
            assert_eq!(errno(fs::write(other.join("file"), "")), Some(Errno::ACCESS));
            assert!(Command::new(&allowed).status().unwrap().success());
            assert_eq!(errno(Command::new(&another).status()), Some(Errno::ACCESS));
            assert_eq!(errno(TcpListener::bind("127.0.0.1:0")).is_some(), abi >= 4);
        };
        thread::spawn(tries).join().unwrap();
    }

    #[test]
    fn a_process_with_a_network_that_mounts_has_files_and_tcp() {
        let tries = || {
            restrict(&Profile::Passt.rules(), Vec::new()).unwrap();
            fs::read("/proc/self/status").unwrap();
            TcpListener::bind("127.0.0.1:0").map(drop)
        };
        assert_eq!(errno(thread::spawn(tries).join().unwrap()), None);
    }

    #[test]
    fn an_inherited_file_may_be_opened_again_as_it_was() {
        let file = tempfile::tempfile().unwrap();
        let memory = rustix::fs::memfd_create("msb-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("file"), "").unwrap();
        let path_only = open(&scratch.path().join("file"));
        let rules = Rule::inherited().unwrap();
        drop(memory);
        let rights = |file: BorrowedFd<'_>| {
            let identity = |file: BorrowedFd<'_>| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino)).ok();
            let rule = rules.iter().find(|rule| identity(rule.file.as_fd()) == identity(file));
            rule.map(|rule| rule.rights)
        };
        assert_eq!(rights(path_only.as_fd()), None);
        let rights = rights(file.as_fd()).unwrap();
        assert!(rights.contains(AccessFs::ReadFile | AccessFs::WriteFile) && !rights.contains(AccessFs::Execute));
        thread::spawn(|| restrict(&Profile::Krun.rules(), rules)).join().unwrap().unwrap();
    }

    #[test]
    fn the_loader_is_the_one_that_the_program_names() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &[u8]| {
            fs::write(scratch.path().join(name), content).unwrap();
            loader(&File::open(scratch.path().join(name)).unwrap())
        };
        let mut elf = vec![0; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[0x20..0x28].copy_from_slice(&64_u64.to_ne_bytes());
        elf[0x36..0x38].copy_from_slice(&56_u16.to_ne_bytes());
        elf[0x38..0x3a].copy_from_slice(&1_u16.to_ne_bytes());
        assert_eq!(at("static", &elf).unwrap(), None);
        elf[64..68].copy_from_slice(&3_u32.to_ne_bytes());
        elf[72..80].copy_from_slice(&120_u64.to_ne_bytes());
        elf[96..104].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(at("truncated", &elf).is_err());
        elf.extend(b"/ld.so\0rest");
        assert_eq!(at("dynamic", &elf).unwrap(), Some("/ld.so".into()));
        elf[96..104].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert!(at("greedy", &elf).is_err());
        assert_eq!(at("script", b"#!/bin/sh\n").unwrap(), None);
    }
}
