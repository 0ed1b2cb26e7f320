//! The init systems that msb recognises: one row each.
//!
//! msb-boot decides with these rows whether an image's command is an init. agentd decides with them what PID 1 runs, when it is
//! usable, and how to ask it to power off. The help of msb-boot and the tables of agentd(8) list the same rows. A new init is one
//! row and, if it differs from all others, one more variant of [`Usable`] or [`PowerOff`] with its function in agentd.

use std::fmt;
use std::path::Path;

/// Where `--init auto` looks for an init if the image's command is none, in this order.
pub const SEARCH: [&str; 3] = ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

/// Directories in which any init may be installed.
const DIRECTORIES: [&str; 5] = ["/", "/bin", "/sbin", "/usr/bin", "/usr/sbin"];

/// The signals that mean "power off" or "end" to some init or program. Of an init that is not recognised, PID 1 gets the first
/// one that it catches: the kernel drops signals that PID 1 does not catch.
pub const FALLBACK_SIGNALS: [&str; 6] = ["SIGRTMIN+4", "SIGTERM", "SIGUSR2", "SIGPWR", "SIGQUIT", "SIGINT"];

/// An init system.
#[derive(Debug, PartialEq, Eq)]
pub struct InitSystem {
    /// Its name in documents.
    pub name: &'static str,
    /// File names of commands that start it.
    commands: &'static [&'static str],
    /// Directories besides [`DIRECTORIES`] in which these commands are installed.
    directories: &'static [&'static str],
    /// File names of the program that PID 1 runs, as `/proc/1/exe` has it.
    programs: &'static [&'static str],
    /// Text in the program's file, for a program called `init`: several inits and BusyBox are.
    init_contains: Option<&'static str>,
    /// Prefixes of the file names of multi-call programs that have this init as an applet. Its other applets are not inits.
    multi_call: &'static [&'static str],
    /// When it is usable.
    pub usable: Usable,
    /// How it is asked to power off.
    pub power_off: PowerOff,
}

/// When an init is usable: when what it starts at boot has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usable {
    /// It sends `READY=1` to `$NOTIFY_SOCKET`, as systemd does.
    Notification,
    /// BusyBox: PID 1 waits for its next event and not for an action.
    BusyBoxActions,
    /// sysvinit: it waits for its next event, has entered a runlevel, and none of its children is an action that it waits for.
    SysvinitActions,
    /// openrc-init makes its FIFO.
    OpenRcFifo,
    /// runit: its second stage runs, and the `supervise/control` of each service has a reader.
    RunitServices,
    /// s6-svscan: its control FIFO has a reader, and so has that of each service.
    S6Services,
    /// Finit has set its condition `hook/sys/up`.
    FinitCondition,
    /// It has started: nothing more can be seen.
    Started,
}

/// How an init is asked to power off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// With this signal.
    Signal(&'static str),
    /// With a request for runlevel 0 on the first of these that is a FIFO; without any, as [`PowerOff::CaughtSignal`].
    Runlevel0([&'static str; 2]),
    /// With the modes of two files, and SIGCONT (`runit-init(8)`).
    RunitFiles,
    /// With a signal for which s6-svscan runs a script in `.s6-svscan`, where s6-linux-init has put one; without it, s6-svscan ends
    /// its services on the other signal.
    S6Script {
        /// The signal, and the name of the script.
        signal: &'static str,
        /// The signal without a script.
        otherwise: &'static str,
    },
    /// With the image's stop signal if PID 1 catches it, else with the first of [`FALLBACK_SIGNALS`] that it catches; then with
    /// SIGTERM.
    CaughtSignal,
}

/// A row without anything of its own.
const NONE: InitSystem = InitSystem {
    name: "",
    commands: &[],
    directories: &[],
    programs: &[],
    init_contains: None,
    multi_call: &[],
    usable: Usable::Started,
    power_off: PowerOff::CaughtSignal,
};

/// The init systems. Of two that match, the first is taken.
pub static INIT_SYSTEMS: [InitSystem; 7] = [
    // systemd(1), "SIGNALS".
    InitSystem {
        name: "systemd",
        commands: &["systemd"],
        directories: &["/lib/systemd", "/usr/lib/systemd"],
        programs: &["systemd"],
        usable: Usable::Notification,
        power_off: PowerOff::Signal("SIGRTMIN+4"),
        ..NONE
    },
    InitSystem {
        name: "sysvinit",
        commands: &["init"],
        init_contains: Some("/initctl"),
        usable: Usable::SysvinitActions,
        power_off: PowerOff::Runlevel0(["/run/initctl", "/dev/initctl"]),
        ..NONE
    },
    // BusyBox's init.c: USR1 halts, USR2 powers off, TERM reboots.
    InitSystem {
        name: "BusyBox or Toybox",
        commands: &["init", "linuxrc"],
        init_contains: Some("BusyBox v"),
        multi_call: &["busybox", "toybox"],
        usable: Usable::BusyBoxActions,
        power_off: PowerOff::Signal("SIGUSR2"),
        ..NONE
    },
    InitSystem {
        name: "openrc-init",
        commands: &["openrc-init"],
        programs: &["openrc-init"],
        usable: Usable::OpenRcFifo,
        ..NONE
    },
    InitSystem {
        name: "runit",
        commands: &["runit", "runit-init"],
        directories: &["/lib/runit", "/usr/lib/runit"],
        programs: &["runit", "runit-init"],
        usable: Usable::RunitServices,
        power_off: PowerOff::RunitFiles,
        ..NONE
    },
    InitSystem {
        name: "s6-svscan",
        commands: &["s6-svscan", "s6-linux-init"],
        programs: &["s6-svscan"],
        usable: Usable::S6Services,
        power_off: PowerOff::S6Script { signal: "SIGUSR1", otherwise: "SIGTERM" },
        ..NONE
    },
    // It takes BusyBox's signals.
    InitSystem {
        name: "Finit",
        commands: &["finit"],
        programs: &["finit"],
        usable: Usable::FinitCondition,
        power_off: PowerOff::Signal("SIGUSR2"),
        ..NONE
    },
];

/// Any other program: an init for containers, a script, an application.
pub static OTHER: InitSystem = InitSystem { name: "any other", ..NONE };

/// Whether an image's command is an init: a path to one of the commands in a directory where that is installed.
pub fn is_init_command(path: &Path) -> bool {
    let (Some(dir), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else { return false };
    INIT_SYSTEMS.iter().any(|init| {
        (DIRECTORIES.contains(&dir) || init.directories.contains(&dir))
            && init.commands.iter().any(|command| name == *command)
    })
}

/// The init system of a running program: the file name of `/proc/PID/exe`, the bytes of `/proc/PID/cmdline`, and the file's
/// content, which is used only if [`needs_content`].
pub fn recognise(program: &str, cmdline: &[u8], content: &[u8]) -> &'static InitSystem {
    let contains = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
    let matches = |init: &&InitSystem| {
        init.programs.contains(&program)
            || init.init_contains.is_some_and(|text| needs_content(program) && contains(text))
            || (init.multi_call.iter().any(|prefix| program.starts_with(prefix))
                && init.commands.iter().any(|command| applet(cmdline, init.multi_call) == command.as_bytes()))
    };
    INIT_SYSTEMS.iter().find(matches).unwrap_or(&OTHER)
}

/// Whether [`recognise`] needs the content of a program with this file name.
pub fn needs_content(program: &str) -> bool {
    program == "init"
}

/// The applet that a multi-call program runs: the base name of its first argument, or of the second if the first is the program's
/// own name.
fn applet<'a>(cmdline: &'a [u8], multi_call: &[&str]) -> &'a [u8] {
    let mut arguments = cmdline.split(|&byte| byte == 0).map(|argument| {
        let argument = argument.strip_prefix(b"-").unwrap_or(argument);
        argument.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    });
    let first = arguments.next().unwrap_or_default();
    let is_own_name = multi_call.iter().any(|prefix| first.starts_with(prefix.as_bytes()));
    if is_own_name { arguments.next().unwrap_or_default() } else { first }
}

impl fmt::Display for Usable {
    /// Writes when the init is usable, as agentd(8) says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Notification => {
                "it sends READY=1 (sd_notify(3)): the jobs of the default target are done, even if some failed"
            }
            Self::BusyBoxActions => "the sysinit and wait actions of /etc/inittab have ended",
            Self::SysvinitActions => "the sysinit, bootwait and wait actions of /etc/inittab have ended",
            Self::OpenRcFifo => "it makes its FIFO, after the runlevels",
            Self::RunitServices => "stage 2 runs, and each service has a supervisor",
            Self::S6Services => "it listens, and each service has a supervisor",
            Self::FinitCondition => "its condition hook/sys/up is set",
            Self::Started => "it has started",
        })
    }
}

impl fmt::Display for PowerOff {
    /// How the init is asked, as in agentd(8) and in the help of msb-boot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => f.write_str(signal),
            Self::Runlevel0([first, second]) => write!(f, "runlevel 0 on {first} or {second}"),
            Self::RunitFiles => f.write_str("/run/runit.stopit or /etc/runit/stopit, and SIGCONT"),
            Self::S6Script { signal, otherwise } => {
                write!(f, "{signal} if its scan directory has that script, else {otherwise}")
            }
            Self::CaughtSignal => f.write_str("a signal that it catches, the image's stop signal first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_command_is_an_init_by_its_name_and_directory() {
        for (path, expected) in [
            ("/init", true),
            ("/sbin/init", true),
            ("/linuxrc", true),
            ("/usr/lib/systemd/systemd", true),
            ("/lib/runit/runit", true),
            ("/bin/s6-svscan", true),
            ("/usr/sbin/openrc-init", true),
            ("/usr/bin/systemd", true),
            ("init", false),
            ("/app/init", false),
            ("/lib/systemd/systemd-logind", false),
            ("/bin/sh", false),
            ("/", false),
        ] {
            assert_eq!(is_init_command(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_running_init_is_recognised_by_its_program_and_a_multi_call_program_by_its_applet() {
        for (program, cmdline, expected) in [
            ("systemd", "/sbin/init\0", "systemd"),
            ("openrc-init", "/sbin/openrc-init\0", "openrc-init"),
            ("runit", "runit\0", "runit"),
            ("runit-init", "/sbin/runit-init\0", "runit"),
            ("s6-svscan", "s6-svscan\0/etc/s6\0", "s6-svscan"),
            ("finit", "/sbin/init\0", "Finit"),
            ("busybox", "/sbin/init\0", "BusyBox or Toybox"),
            ("busybox", "init\0\0\0\0\0\0\0", "BusyBox or Toybox"),
            ("busybox", "/linuxrc\0", "BusyBox or Toybox"),
            ("busybox", "-init\0", "BusyBox or Toybox"),
            ("busybox", "/bin/busybox\0init\0", "BusyBox or Toybox"),
            ("busybox-static", "busybox.static\0/sbin/init\0", "BusyBox or Toybox"),
            ("toybox", "toybox\0init\0", "BusyBox or Toybox"),
            ("busybox", "/bin/sh\0/init\0", "any other"),
            ("busybox", "/bin/busybox\0sh\0/init\0", "any other"),
            ("busybox", "/bin/busybox\0", "any other"),
            ("busybox", "sleep\x00100\0", "any other"),
            ("busybox", "", "any other"),
            ("dash", "/bin/sh\0/sbin/init\0", "any other"),
            ("tini", "init\0", "any other"),
        ] {
            assert_eq!(recognise(program, cmdline.as_bytes(), b"").name, expected, "{program} {cmdline:?}");
        }
        for (content, expected) in [
            (&b"\0/run/initctl\0"[..], "sysvinit"),
            (b"BusyBox v1.36.1\0", "BusyBox or Toybox"),
            (b"something else", "any other"),
            (b"", "any other"),
        ] {
            assert_eq!(recognise("init", b"/sbin/init\0", content).name, expected, "{content:?}");
            // A program with another name may mention an init.
            assert_eq!(recognise("tini", b"/sbin/init\0", content).name, "any other", "{content:?}");
        }
    }

    #[test]
    fn agentd_8_lists_each_init_as_the_table_has_it() {
        let page = include_str!("../../../man/agentd.8");
        let page = page.replace("T{\n", "").replace("\nT}", "").replace("\\fB", "").replace("\\fR", "");
        let lines: Vec<&str> = page.lines().collect();
        for init in INIT_SYSTEMS.iter().chain([&OTHER]) {
            for row in [format!("{}|{}", init.name, init.usable), format!("{}|{}", init.name, init.power_off)] {
                assert!(lines.contains(&row.as_str()), "man/agentd.8 lacks the row {row:?}");
            }
        }
        let text = lines.join(" ");
        for signal in FALLBACK_SIGNALS {
            assert!(text.contains(signal), "man/agentd.8 lacks {signal}");
        }
        for path in SEARCH {
            assert!(text.contains(path), "man/agentd.8 lacks {path}");
        }
    }
}
