//! Which of the inits that are known here a program is, by its file and its arguments.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// systemd(1).
    Systemd,
    /// BusyBox's or Toybox's `init`.
    BusyBox,
    /// sysvinit's.
    SysV,
    /// OpenRC's own.
    OpenRc,
    /// runit(8).
    Runit,
    /// s6-svscan.
    S6,
    /// Finit.
    Finit,
    /// Anything else: an init for containers, a script, any program.
    Other,
}

impl Kind {
    /// The init that PID 1 is now, and the name of its program.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn of_pid_1() -> io::Result<(Self, String)> {
        let program = fs::read_link("/proc/1/exe")?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut content = Vec::new();
        if name == "init" {
            File::open("/proc/1/exe")?.take(MAX_PROGRAM).read_to_end(&mut content)?;
        }
        Ok((Self::of(&name, &fs::read("/proc/1/cmdline")?, &content), name))
    }

    /// The init whose file has this name, with these arguments, each with a NUL behind it. `content` is the file's, if it is called
    /// init, as many are: a hardlink to BusyBox, too.
    fn of(program: &str, cmdline: &[u8], content: &[u8]) -> Self {
        let has = |text: &[u8]| content.windows(text.len()).any(|window| window == text);
        match program {
            "systemd" => Self::Systemd,
            "finit" => Self::Finit,
            "runit" | "runit-init" => Self::Runit,
            "s6-svscan" => Self::S6,
            "openrc-init" => Self::OpenRc,
            "init" if has(b"/initctl") => Self::SysV,
            "init" if has(b"BusyBox v") => Self::BusyBox,
            // The same file is a shell, which may run a script.
            name if name.starts_with("busybox") || name.starts_with("toybox") => match applet(cmdline).as_bytes() {
                b"init" | b"linuxrc" => Self::BusyBox,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The most that is read of a program, in bytes.
const MAX_PROGRAM: u64 = 8 << 20;

/// The applet that a multi-call program runs: its name is its first argument, or the one behind that.
fn applet(cmdline: &[u8]) -> &OsStr {
    let mut words = cmdline.split(|&byte| byte == 0);
    let mut next = || {
        let word = words.next().unwrap_or_default();
        let word = word.strip_prefix(b"-").unwrap_or(word);
        Path::new(OsStr::from_bytes(word)).file_name().unwrap_or_default()
    };
    match next() {
        name if name.as_bytes().starts_with(b"busybox") || name.as_bytes().starts_with(b"toybox") => next(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_known_by_its_program_and_a_multi_call_program_by_its_applet() {
        for (program, cmdline, expected) in [
            ("systemd", "/sbin/init\0", Kind::Systemd),
            ("openrc-init", "/sbin/openrc-init\0", Kind::OpenRc),
            ("runit", "runit\0", Kind::Runit),
            ("runit-init", "/sbin/runit-init\0", Kind::Runit),
            ("s6-svscan", "s6-svscan\0/etc/s6\0", Kind::S6),
            ("finit", "/sbin/init\0", Kind::Finit),
            ("busybox", "/sbin/init\0", Kind::BusyBox),
            ("busybox", "init\0\0\0\0\0\0\0", Kind::BusyBox),
            ("busybox", "/linuxrc\0", Kind::BusyBox),
            ("busybox", "-init\0", Kind::BusyBox),
            ("busybox", "/bin/busybox\0init\0", Kind::BusyBox),
            ("busybox-static", "busybox.static\0/sbin/init\0", Kind::BusyBox),
            ("toybox", "toybox\0init\0", Kind::BusyBox),
            ("busybox", "/bin/sh\0/init\0", Kind::Other),
            ("busybox", "/bin/busybox\0sh\0/init\0", Kind::Other),
            ("busybox", "/bin/busybox\0", Kind::Other),
            ("busybox", "sleep\x00100\0", Kind::Other),
            ("busybox", "", Kind::Other),
            ("dash", "/bin/sh\0/sbin/init\0", Kind::Other),
            ("tini", "init\0", Kind::Other),
        ] {
            assert_eq!(Kind::of(program, cmdline.as_bytes(), b""), expected, "{program} {cmdline:?}");
        }
        for (content, expected) in [
            (&b"\0/run/initctl\0"[..], Kind::SysV),
            (b"BusyBox v1.36.1\0", Kind::BusyBox),
            (b"something else", Kind::Other),
            (b"", Kind::Other),
        ] {
            assert_eq!(Kind::of("init", b"/sbin/init\0", content), expected, "{content:?}");
        }
    }
}
