//! Asking the init that has PID 1 to power the machine off, in its own language: by the kind of init that it is, and else by the
//! signals that it catches.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::libc;

use crate::kind::Kind;
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
    /// Unknown: a signal that PID 1 catches.
    Unknown,
}

/// How it was asked, and how it may be asked again.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// In words.
    pub how: String,
    /// Whether TERM is worth a try if nothing happens: an init that is not known may understand it.
    pub may_try_term: bool,
}

/// Asks. Services have a part of the `grace` to end by themselves, unless it is the init that decides how long. `stop_signal`
/// is the one that the image wants to be stopped by.
///
/// # Errors
/// What writing to its FIFO or its files says; a signal does not fail.
pub fn ask(grace: Duration, stop_signal: i32) -> io::Result<Asked> {
    let (kind, name) = Kind::of_pid_1()?;
    let language = language(kind, is_fifo, |path| Path::new(path).exists());
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
            let signal = understood(&fs::read_to_string("/proc/1/status")?, stop_signal);
            may_try_term = signal != libc::SIGTERM;
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

fn language(kind: Kind, is_fifo: impl Fn(&'static str) -> bool, exists: impl Fn(&'static str) -> bool) -> Language {
    match kind {
        // systemd(1), "SIGNALS".
        Kind::Systemd => Language::Signal(libc::SIGRTMIN() + 4),
        // BusyBox's init.c and Finit, which follows it: USR1 halts, USR2 powers off, TERM reboots.
        Kind::BusyBox | Kind::Finit => Language::Signal(libc::SIGUSR2),
        Kind::Runit => Language::Runit,
        // s6-svscan runs a script of that name, where s6-linux-init put one; by itself it ends its services on TERM.
        Kind::S6 if exists("/proc/1/cwd/.s6-svscan/SIGUSR1") => Language::Signal(libc::SIGUSR1),
        Kind::S6 => Language::Signal(libc::SIGTERM),
        Kind::SysV => match ["/run/initctl", "/dev/initctl"].into_iter().find(|path| is_fifo(path)) {
            Some(fifo) => Language::SysV(fifo),
            None => Language::Unknown,
        },
        Kind::OpenRc | Kind::Other => Language::Unknown,
    }
}

/// The signal that an unknown PID 1 may understand as a wish that it ends: the image's own if it catches that, else the first that
/// it catches of systemd's for a power-off, TERM, BusyBox's for a power-off, PWR, QUIT and INT, which shells catch for themselves.
/// The kernel drops what PID 1 does not catch.
fn understood(status: &str, stop_signal: i32) -> i32 {
    let systemd = libc::SIGRTMIN() + 4;
    // Of an image that says nothing it is TERM, which is one of several.
    let own = Some(stop_signal).filter(|&signal| signal != libc::SIGTERM);
    let usual = [systemd, libc::SIGTERM, libc::SIGUSR2, libc::SIGPWR, libc::SIGQUIT, libc::SIGINT];
    own.into_iter().chain(usual).find(|&signal| catches(status, signal)).unwrap_or(libc::SIGTERM)
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
        for (kind, there, expected) in [
            (Kind::Systemd, "", Language::Signal(libc::SIGRTMIN() + 4)),
            (Kind::BusyBox, "", Language::Signal(libc::SIGUSR2)),
            (Kind::Finit, "", Language::Signal(libc::SIGUSR2)),
            (Kind::Runit, "", Language::Runit),
            (Kind::S6, "", Language::Signal(libc::SIGTERM)),
            (Kind::S6, "/proc/1/cwd/.s6-svscan/SIGUSR1", Language::Signal(libc::SIGUSR1)),
            (Kind::SysV, "/run/initctl", Language::SysV("/run/initctl")),
            (Kind::SysV, "/dev/initctl", Language::SysV("/dev/initctl")),
            (Kind::SysV, "", Language::Unknown),
            (Kind::OpenRc, "/run/initctl", Language::Unknown),
            (Kind::Other, "/run/initctl", Language::Unknown),
        ] {
            assert_eq!(language(kind, |path| path == there, |path| path == there), expected, "{kind:?} {there}");
        }
    }

    #[test]
    fn an_unknown_init_is_asked_by_a_signal_that_it_catches() {
        let status = |caught: &[i32]| {
            let mask = caught.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
            format!("SigBlk:\t0000000000000000\nSigCgt:\t{mask:016x}\n")
        };
        use libc::{SIGCHLD, SIGHUP, SIGINT, SIGPWR, SIGQUIT, SIGTERM, SIGUSR2};
        for (caught, stop_signal, expected) in [
            (&[SIGTERM][..], SIGTERM, SIGTERM),
            (&[], SIGTERM, SIGTERM),
            (&[SIGCHLD, SIGHUP], SIGTERM, SIGTERM),
            (&[SIGTERM, SIGINT], SIGTERM, SIGTERM),
            (&[SIGINT, SIGUSR2], SIGTERM, SIGUSR2),
            (&[SIGUSR2, SIGPWR], SIGTERM, SIGUSR2),
            (&[SIGPWR, SIGQUIT], SIGTERM, SIGPWR),
            (&[SIGINT, SIGQUIT], SIGTERM, SIGQUIT),
            (&[SIGINT, SIGCHLD], SIGTERM, SIGINT),
            (&[38, SIGTERM], SIGTERM, 38),
            (&[38, SIGTERM, SIGQUIT], SIGQUIT, SIGQUIT),
            (&[37, SIGTERM], 37, 37),
            (&[SIGTERM], SIGQUIT, SIGTERM),
        ] {
            assert_eq!(understood(&status(caught), stop_signal), expected, "{caught:?} {stop_signal}");
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
