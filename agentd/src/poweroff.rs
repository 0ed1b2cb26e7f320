//! Asking the init that has PID 1 to power the machine off, in its own language. Which one that is, is told by the program that
//! PID 1 runs.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::libc;

use crate::sys;

const INIT: i32 = 1;
/// How long sysvinit waits for what inittab starts, at most.
const SYSV_WAIT: Duration = Duration::from_secs(3);

/// The language of an init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    /// A signal that means it.
    Signal(i32),
    /// A request on a FIFO (`initctl`'s), for runlevel 0.
    SysV(&'static str),
    /// Files whose modes say what to do, and SIGCONT (`runit-init(8)`).
    Runit,
    /// Unknown: systemd's signal where PID 1 catches it, and TERM.
    Unknown,
}

/// How it was asked, and how it may be asked again.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// In words.
    pub how: String,
    /// Whether TERM is worth a try where nothing happens: what is not known may understand that.
    pub may_try_term: bool,
}

/// Asks. Services have a part of the `grace` to end by themselves, where it is not the init that knows how long.
///
/// # Errors
/// What writing to its FIFO or its files says; a signal does not fail.
pub fn ask(grace: Duration) -> io::Result<Asked> {
    let program = fs::read_link("/proc/1/exe")?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let language = language(&name, is_fifo, |path| Path::new(path).exists());
    let mut may_try_term = false;
    let how = match language {
        Language::Signal(signal) => {
            sys::signal_process(INIT, signal);
            format!("{name}, by {}", signal_name(signal))
        }
        Language::SysV(fifo) => {
            request_runlevel_0(Path::new(fifo), SYSV_WAIT.min(grace / 3))?;
            format!("{name}, by {fifo}")
        }
        Language::Runit => {
            let [stop, reboot] = runit_files();
            make_with_mode(stop, 0o100)?;
            make_with_mode(reboot, 0)?;
            sys::signal_process(INIT, libc::SIGCONT);
            format!("{name}, by {stop}")
        }
        Language::Unknown => {
            let poweroff = libc::SIGRTMIN() + 4;
            may_try_term = catches(&fs::read_to_string("/proc/1/status")?, poweroff);
            let signal = if may_try_term { poweroff } else { libc::SIGTERM };
            sys::signal_process(INIT, signal);
            format!("{name}, by {}", signal_name(signal))
        }
    };
    Ok(Asked { how, may_try_term })
}

/// Sends TERM, for an init that did not understand.
pub fn ask_by_term() {
    sys::signal_process(INIT, libc::SIGTERM);
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(name) => name.as_str().to_owned(),
        Err(_) => format!("SIGRTMIN+{}", signal - libc::SIGRTMIN()),
    }
}

fn language(name: &str, is_fifo: impl Fn(&'static str) -> bool, exists: impl Fn(&'static str) -> bool) -> Language {
    match name {
        // systemd(1), "SIGNALS".
        "systemd" => Language::Signal(libc::SIGRTMIN() + 4),
        // BusyBox's init.c and Finit, which follows it: USR1 halts, USR2 powers off, TERM reboots.
        "busybox" | "finit" => Language::Signal(libc::SIGUSR2),
        "runit" => Language::Runit,
        // s6-svscan runs a script of that name, where s6-linux-init put one; by itself it ends its services on TERM.
        "s6-svscan" if exists("/proc/1/cwd/.s6-svscan/SIGUSR1") => Language::Signal(libc::SIGUSR1),
        "s6-svscan" => Language::Signal(libc::SIGTERM),
        "init" => match ["/run/initctl", "/dev/initctl"].into_iter().find(|path| is_fifo(path)) {
            Some(fifo) => Language::SysV(fifo),
            None => Language::Unknown,
        },
        _ => Language::Unknown,
    }
}

fn is_fifo(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Whether a process catches a signal, or waits for it in a signalfd, by its `/proc/PID/status`.
pub fn catches(status: &str, signal: i32) -> bool {
    is_in_mask(status, "SigCgt:", signal) || is_in_mask(status, "SigBlk:", signal)
}

/// Whether a process ignores a signal, by its `/proc/PID/status`.
pub fn ignores(status: &str, signal: i32) -> bool {
    is_in_mask(status, "SigIgn:", signal)
}

fn is_in_mask(status: &str, mask: &str, signal: i32) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix(mask));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Writes what `telinit -t WAIT 0` writes: `struct init_request` of sysvinit's `initreq.h`, 384 bytes. Of what inittab starts,
/// whoever lives `wait` after TERM gets KILL; sysvinit looks once a second, and kills at once for a wait of 0.
fn request_runlevel_0(fifo: &Path, wait: Duration) -> io::Result<()> {
    const MAGIC: i32 = 0x0309_1969;
    const RUNLEVEL: i32 = 1;
    let mut request = [0u8; 384];
    let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX).max(1);
    for (place, word) in [MAGIC, RUNLEVEL, i32::from(b'0'), seconds].into_iter().enumerate() {
        request[place * 4..place * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    // Without a reader, opening fails rather than waits.
    let mut fifo = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    fifo.write_all(&request)
}

/// Debian's runit keeps them in /run, the original in /etc. The second says whether to boot again.
fn runit_files() -> [&'static str; 2] {
    if Path::new("/run/runit.stopit").exists() {
        ["/run/runit.stopit", "/run/runit.reboot"]
    } else {
        ["/etc/runit/stopit", "/etc/runit/reboot"]
    }
}

fn make_with_mode(path: &str, mode: u32) -> io::Result<()> {
    File::options().append(true).create(true).mode(mode).custom_flags(libc::O_NOFOLLOW).open(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_init_is_asked_in_its_own_language() {
        for (name, there, expected) in [
            ("systemd", "", Language::Signal(libc::SIGRTMIN() + 4)),
            ("busybox", "", Language::Signal(libc::SIGUSR2)),
            ("finit", "", Language::Signal(libc::SIGUSR2)),
            ("runit", "", Language::Runit),
            ("s6-svscan", "", Language::Signal(libc::SIGTERM)),
            ("s6-svscan", "/proc/1/cwd/.s6-svscan/SIGUSR1", Language::Signal(libc::SIGUSR1)),
            ("init", "/run/initctl", Language::SysV("/run/initctl")),
            ("init", "/dev/initctl", Language::SysV("/dev/initctl")),
            ("init", "", Language::Unknown),
            ("tini", "/run/initctl", Language::Unknown),
        ] {
            assert_eq!(language(name, |path| path == there, |path| path == there), expected, "{name} {there}");
        }
    }

    #[test]
    fn a_signal_is_caught_or_waited_for() {
        let status = "Name:\tx\nSigBlk:\t0000002000000000\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert!(catches(status, 38));
        assert!(catches(status, 15));
        assert!(!catches(status, 1));
        assert!(!catches("", 15));
        assert!(ignores(status, 1) && !ignores(status, 15) && !ignores("", 1));
    }

    #[test]
    fn a_request_for_runlevel_0_is_the_struct_of_sysvinit() {
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("initctl");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(request_runlevel_0(&fifo, Duration::ZERO).is_err(), "nobody reads");
        let mut reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        request_runlevel_0(&fifo, Duration::from_secs(3)).unwrap();
        let mut got = [0u8; 400];
        assert_eq!(io::Read::read(&mut reader, &mut got).unwrap(), 384);
        assert_eq!(got[..16], [0x69, 0x19, 0x09, 0x03, 1, 0, 0, 0, b'0', 0, 0, 0, 3, 0, 0, 0]);
    }
}
