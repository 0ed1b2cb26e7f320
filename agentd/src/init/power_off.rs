//! Asking the init that is PID 1 to power the machine off: in the way that the table of inits names, or with a signal that it catches.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use msb::record::signal;
use msb::vm::inits::{FALLBACK_SIGNALS, PowerOff};
use nix::libc;

use super::pid_1;
use crate::process::catches;
use crate::sys;

/// The longest that sysvinit waits for the processes of inittab between TERM and KILL.
const SYSVINIT_WAIT: Duration = Duration::from_secs(3);

/// What is sent to PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// A signal that means "power off".
    Signal(&'static str),
    /// A request for runlevel 0, on this FIFO.
    Runlevel0(&'static str),
    /// The modes of runit's files, and SIGCONT.
    RunitFiles,
    /// A signal that PID 1 catches.
    CaughtSignal,
}

/// How PID 1 was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// The program, and what was sent to it.
    pub how: String,
    /// Whether SIGTERM is worth a try if nothing happens: an init that was not recognised may understand it.
    pub may_try_term: bool,
}

/// Asks PID 1 to power off. sysvinit gives its services a third of `grace` to end; other inits decide that for themselves.
/// `stop_signal` is the image's.
///
/// # Errors
/// Those of writing to its FIFO or files. Sending a signal does not fail.
pub fn ask(grace: Duration, stop_signal: i32) -> io::Result<Asked> {
    let (init, name) = pid_1::init_system()?;
    let mut may_try_term = false;
    let means = match request(init.power_off, is_fifo, |path| Path::new(path).exists()) {
        Request::Signal(name) => {
            sys::signal_process(pid_1::PID, signal::number(name).unwrap_or(libc::SIGTERM));
            name.to_owned()
        }
        Request::Runlevel0(fifo) => {
            request_runlevel_0(Path::new(fifo), SYSVINIT_WAIT.min(grace / 3))?;
            fifo.to_owned()
        }
        Request::RunitFiles => {
            let [stop, reboot] = runit_files();
            make_with_mode(stop, 0o100)?;
            make_with_mode(reboot, 0)?;
            sys::signal_process(pid_1::PID, libc::SIGCONT);
            stop.to_owned()
        }
        Request::CaughtSignal => {
            let signal = caught_signal(&fs::read_to_string("/proc/1/status")?, stop_signal);
            may_try_term = signal != libc::SIGTERM;
            sys::signal_process(pid_1::PID, signal);
            signal_name(signal)
        }
    };
    Ok(Asked { how: format!("{name} with {means}"), may_try_term })
}

/// Sends SIGTERM to an init that did not react to another signal.
pub fn ask_with_term() {
    sys::signal_process(pid_1::PID, libc::SIGTERM);
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(name) => name.as_str().to_owned(),
        Err(_) => format!("SIGRTMIN+{}", signal - libc::SIGRTMIN()),
    }
}

fn request(
    power_off: PowerOff,
    is_fifo: impl Fn(&'static str) -> bool,
    scan_directory_has: impl Fn(&str) -> bool,
) -> Request {
    match power_off {
        PowerOff::Signal(signal) => Request::Signal(signal),
        PowerOff::Runlevel0(fifos) => match fifos.into_iter().find(|fifo| is_fifo(fifo)) {
            Some(fifo) => Request::Runlevel0(fifo),
            None => Request::CaughtSignal,
        },
        PowerOff::RunitFiles => Request::RunitFiles,
        PowerOff::S6Script { signal, .. } if scan_directory_has(&format!("/proc/1/cwd/.s6-svscan/{signal}")) => {
            Request::Signal(signal)
        }
        PowerOff::S6Script { otherwise, .. } => Request::Signal(otherwise),
        PowerOff::CaughtSignal => Request::CaughtSignal,
    }
}

/// The signal for a PID 1 that was not recognised: the image's stop signal if PID 1 catches that, else the first of
/// [`FALLBACK_SIGNALS`] that it catches.
fn caught_signal(status: &str, stop_signal: i32) -> i32 {
    // An image that names no signal has SIGTERM, which has its place in the list.
    let own = Some(stop_signal).filter(|&signal| signal != libc::SIGTERM);
    let fallback = FALLBACK_SIGNALS.iter().filter_map(|name| signal::number(name));
    own.into_iter().chain(fallback).find(|&signal| catches(status, signal)).unwrap_or(libc::SIGTERM)
}

fn is_fifo(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Writes what `telinit -t WAIT 0` writes: `struct init_request` of sysvinit's `initreq.h`, 384 bytes. sysvinit sends TERM to the
/// processes of inittab and KILL after `wait`. It checks once a second, and would kill at once for a wait of 0.
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

/// The files that tell runit to stop, and whether to reboot. Debian's runit has them in /run, the original in /etc.
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
    use msb::vm::inits::{INIT_SYSTEMS, OTHER};

    use super::*;

    #[test]
    fn each_init_is_asked_as_the_table_says() {
        let script = "/proc/1/cwd/.s6-svscan/SIGUSR1";
        for (name, there, expected) in [
            ("systemd", "", Request::Signal("SIGRTMIN+4")),
            ("BusyBox or Toybox", "", Request::Signal("SIGUSR2")),
            ("Finit", "", Request::Signal("SIGUSR2")),
            ("runit", "", Request::RunitFiles),
            ("s6-svscan", "", Request::Signal("SIGTERM")),
            ("s6-svscan", script, Request::Signal("SIGUSR1")),
            ("sysvinit", "/run/initctl", Request::Runlevel0("/run/initctl")),
            ("sysvinit", "/dev/initctl", Request::Runlevel0("/dev/initctl")),
            ("sysvinit", "", Request::CaughtSignal),
            ("openrc-init", "/run/initctl", Request::CaughtSignal),
        ] {
            let init = INIT_SYSTEMS.iter().find(|init| init.name == name).unwrap();
            let request = request(init.power_off, |path| path == there, |path| path == there);
            assert_eq!(request, expected, "{name} {there}");
        }
        assert_eq!(request(OTHER.power_off, |_| true, |_| true), Request::CaughtSignal);
    }

    #[test]
    fn every_signal_in_the_table_exists() {
        let in_rows = INIT_SYSTEMS.iter().filter_map(|init| match init.power_off {
            PowerOff::Signal(signal) => Some(vec![signal]),
            PowerOff::S6Script { signal, otherwise } => Some(vec![signal, otherwise]),
            _ => None,
        });
        for name in in_rows.flatten().chain(FALLBACK_SIGNALS) {
            assert!(signal::number(name).is_some(), "{name}");
        }
        assert_eq!(signal::number("SIGRTMIN"), Some(libc::SIGRTMIN()));
    }

    #[test]
    fn an_init_that_is_not_recognised_gets_a_signal_that_it_catches() {
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
            assert_eq!(caught_signal(&status(caught), stop_signal), expected, "{caught:?} {stop_signal}");
        }
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
