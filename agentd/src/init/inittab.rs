//! Inits with an `/etc/inittab`: when the actions that they wait for at boot have ended.

use std::cell::Cell;
use std::fs;
use std::time::{Duration, Instant};

use nix::libc::{self, c_long};

use super::children::{self, still_running};

/// BusyBox waits for each sysinit and wait action with wait(2), and for its next event with a sleep or for a signal.
///
/// # Errors
/// What still runs.
pub fn busybox(call: c_long) -> Result<(), String> {
    match call {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_rt_sigtimedwait | libc::SYS_rt_sigsuspend => Ok(()),
        _ => Err(still_running("a sysinit or wait action of /etc/inittab", &children::of_pid_1().unwrap_or_default())),
    }
}

/// sysvinit waits on its FIFO all the time, even while an action runs whose end it waits for. So it is usable when it waits, has entered
/// a runlevel, which its title shows (`init [2]`), and none of its children is such an action, is in the middle of a fork or exec, or is
/// a zombie.
///
/// sysvinit may miss the end of an action until its wait times out. It has no child meanwhile, so without any child, that is without
/// respawn actions too, this state has to last longer than its wait. `alone` holds since when it has lasted.
///
/// # Errors
/// What still runs.
pub fn sysvinit(call: c_long, alone: &Cell<Option<Instant>>) -> Result<(), String> {
    let waits = match call {
        libc::SYS_pselect6 | libc::SYS_ppoll => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select | libc::SYS_poll | libc::SYS_pause => true,
        _ => false,
    };
    let inittab = fs::read("/etc/inittab").unwrap_or_default();
    let awaited = awaited_actions(&String::from_utf8_lossy(&inittab));
    let mut children = children::of_pid_1().map_err(|error| error.to_string())?;
    let has_children = !children.is_empty();
    children.retain(|child| {
        // There are no arguments in the middle of an exec.
        let has_begun = !child.is_fork_of_init && !child.arguments.is_empty();
        child.is_zombie || !has_begun || is_one_of(&child.arguments, &awaited)
    });
    let has_runlevel = fs::read("/proc/1/cmdline").is_ok_and(|title| title.contains(&b'['));
    if !waits || !has_runlevel || !children.is_empty() {
        alone.set(None);
        return Err(still_running("an action of /etc/inittab", &children));
    }
    let since = alone.get().unwrap_or_else(Instant::now);
    alone.set(Some(since));
    if has_children || since.elapsed() > SYSV_WAIT {
        Ok(())
    } else {
        Err("sysvinit may have missed the end of an action of /etc/inittab".to_owned())
    }
}

/// Longer than sysvinit's wait, which is 5 seconds.
const SYSV_WAIT: Duration = Duration::from_secs(6);

/// The program that the scripts of these actions execute if OpenRC is behind sysvinit.
const OPENRC: &str = "/sbin/openrc";

/// The programs of the actions that sysvinit waits for (`inittab(5)`).
fn awaited_actions(inittab: &str) -> Vec<String> {
    let program = |line: &str| {
        let mut fields = line.trim().splitn(4, ':');
        let (_, _, action, process) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let program = process.trim_start_matches(['+', '@']).split_whitespace().next()?;
        (!line.trim_start().starts_with('#') && ["sysinit", "bootwait", "wait"].contains(&action))
            .then(|| program.to_owned())
    };
    inittab.lines().filter_map(program).collect()
}

/// Whether a command line runs one of these programs: directly, as a script, or through the shell that sysvinit uses for a line with
/// special characters, `/bin/sh -c "exec PROGRAM …"`. OpenRC counts too.
fn is_one_of(arguments: &[String], programs: &[String]) -> bool {
    let program = |argument: &str| argument.split_whitespace().find(|&word| word != "exec").map(str::to_owned);
    let mut first = arguments.iter().take(3).filter_map(|argument| program(argument));
    first.any(|argument| argument == OPENRC || programs.contains(&argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_waits_for_its_actions_by_wait_and_for_events_otherwise() {
        assert!(busybox(libc::SYS_wait4).is_err());
        assert!(busybox(libc::SYS_openat).is_err());
        assert!(busybox(libc::SYS_nanosleep).is_ok());
        assert!(busybox(libc::SYS_rt_sigtimedwait).is_ok());
    }

    #[test]
    fn inittabs_awaited_actions_are_known_by_their_programs() {
        let inittab = "# x::wait:/bin/comment\nid:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\n\
            l2:2:wait:/etc/init.d/rc 2\nb::bootwait:+/sbin/b -x\n1:23:respawn:/sbin/getty tty1\nbad:line\n  l3:3:wait:@/l3\n";
        let awaited = awaited_actions(inittab);
        assert_eq!(awaited, ["/etc/init.d/rcS", "/etc/init.d/rc", "/sbin/b", "/l3"]);
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, expected) in [
            ("/bin/sh /etc/init.d/rc 2", true),
            ("/sbin/b -x", true),
            ("/bin/sh -e /etc/init.d/rcS", true),
            ("/sbin/getty tty1", false),
            ("vi a b /l3", false),
            ("/etc/init.d/rc2", false),
            ("/sbin/openrc default", true),
        ] {
            assert_eq!(is_one_of(&words(line), &awaited), expected, "{line}");
        }
        let shell = |line: &str| ["/bin/sh", "-c", line].map(str::to_owned);
        assert!(is_one_of(&shell("exec /l3 >/dev/null 2>&1"), &awaited));
        assert!(!is_one_of(&shell("exec /bin/other /l3"), &awaited));
    }
}
