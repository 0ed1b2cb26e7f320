//! When an init is usable: when what it starts at boot has started. systemd says so itself; of others PID 1's own system calls, or
//! the FIFOs of their services, tell. agentd(8) has the list.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use msb::vm::inits::Usable;
use nix::libc::{self, c_long};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pid_1;

/// Where systemd says that it has started, as the value of `$NOTIFY_SOCKET` (`sd_notify(3)`): a name outside the file system, so
/// nothing is left of it.
pub const NOTIFY_SOCKET: &str = "@msb-init";

/// How often the FIFOs of services are tried: no event says that one has got a reader.
pub const TICK: Duration = Duration::from_millis(50);

/// How long systemctl may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most units that are named, and the most that is read of their list, in bytes.
const MAX_UNITS: usize = 5;
const MAX_LIST: usize = 64 << 10;
/// The most services that are looked at.
const MAX_SERVICES: usize = 1000;

/// What tells that an init is usable.
#[derive(Debug)]
pub enum Sign {
    /// That it waits for something: nothing more is known of it.
    Started,
    /// A message on this socket.
    Notified(UnixDatagram),
    /// A system call that PID 1 is in: it waits for its next event.
    Call(fn(c_long) -> Result<(), String>),
    /// The same of sysvinit, and since when it has waited without any child.
    SysV(Cell<Option<Instant>>),
    /// What its services have in the file system.
    Look(fn() -> Result<(), String>),
}

impl Sign {
    /// The sign of the init that PID 1 is now.
    pub fn of_pid_1() -> Self {
        let Ok((init, _)) = pid_1::init_system() else { return Self::Started };
        match init.usable {
            Usable::BusyBoxActions => Self::Call(busybox),
            Usable::SysvinitActions => Self::SysV(Cell::new(None)),
            Usable::OpenRcFifo => Self::Call(openrc),
            Usable::RunitServices => Self::Look(runit),
            Usable::S6Services => Self::Look(s6),
            Usable::FinitCondition => Self::Look(finit),
            // The socket is bound before systemd starts, or another process has it.
            Usable::Notification | Usable::Started => Self::Started,
        }
    }

    /// The sign of systemd: its own message.
    ///
    /// # Errors
    /// What `bind(2)` says.
    pub fn of_systemd() -> io::Result<Self> {
        let name = NOTIFY_SOCKET.strip_prefix('@').unwrap_or(NOTIFY_SOCKET);
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self::Notified(socket))
    }

    /// What becomes readable when there is something to look at.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Notified(socket) => Some(socket.as_fd()),
            _ => None,
        }
    }

    /// Looks whether the init is usable now, in this system call. Once it has said so itself, it does not say it again.
    ///
    /// # Errors
    /// What is missing.
    pub fn look(&self, call: Option<c_long>) -> Result<(), String> {
        match (self, call) {
            (Self::Started, _) => Ok(()),
            (Self::Notified(socket), _) => notified(socket),
            (Self::Call(look), Some(call)) => look(call),
            (Self::SysV(alone), Some(call)) => sysvinit(call, alone),
            (Self::Call(_) | Self::SysV(_), None) => Err("what it starts at boot still runs".into()),
            (Self::Look(look), _) => look(),
        }
    }

    /// Words about what is missing, for an init that did not become usable, where asking it says more.
    pub fn explain(&self, missing: String) -> String {
        match self {
            Self::Notified(_) => match systemctl(&["list-jobs"], 1) {
                Ok(units) if !units.is_empty() => format!("{missing} ({})", some_of(&units)),
                _ => missing,
            },
            _ => missing,
        }
    }

    /// A warning about an init that is usable, though not all that it starts has started.
    pub fn warning(&self) -> Option<String> {
        let Self::Notified(_) = self else { return None };
        match systemctl(&["list-units", "--state=failed", "--full"], 0) {
            Ok(units) if units.is_empty() => None,
            Ok(units) => Some(format!("systemd is degraded: {} failed", some_of(&units))),
            Err(error) => {
                crate::say(&format!("systemctl: {error}"));
                None
            }
        }
    }
}

/// Takes what systemd has said. It sends READY=1 when the jobs of its first transaction, which the default target is, are done
/// (systemd(1), "NOTIFY_SOCKET"), also if some failed.
fn notified(socket: &UnixDatagram) -> Result<(), String> {
    let mut message = [0; 4096];
    while let Ok(length) = socket.recv(&mut message) {
        if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
    Err("systemd's jobs at boot are not done".into())
}

/// BusyBox waits for each sysinit and wait action of inittab with wait(2), and for its next event with a sleep or for a signal.
fn busybox(call: c_long) -> Result<(), String> {
    match call {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_rt_sigtimedwait | libc::SYS_rt_sigsuspend => Ok(()),
        _ => Err(running("a sysinit or wait action of /etc/inittab", &children().unwrap_or_default())),
    }
}

/// sysvinit waits on its FIFO all the time, also while an action runs whose end it awaits. So it is usable when it has entered a
/// runlevel, which is in its title then (`init [2]`), waits there, and has none of those among its children, and none that has not
/// executed anything yet, is about to, or has ended and is not reaped.
///
/// It may miss the end of an action, which it notices when its wait is over; until then it has no child. So with none at all, as no
/// respawn action runs either, it has to be that way for longer.
fn sysvinit(call: c_long, alone: &Cell<Option<Instant>>) -> Result<(), String> {
    let waits = match call {
        libc::SYS_pselect6 | libc::SYS_ppoll => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select | libc::SYS_poll | libc::SYS_pause => true,
        _ => false,
    };
    let inittab = fs::read("/etc/inittab").unwrap_or_default();
    let awaited = awaited_actions(&String::from_utf8_lossy(&inittab));
    let mut children = children().map_err(|error| error.to_string())?;
    let has_children = !children.is_empty();
    children.retain(|child| {
        // In the middle of an exec there are no arguments.
        let has_begun = !child.is_fork_of_pid_1 && !child.arguments.is_empty();
        child.is_zombie || !has_begun || is_one_of(&child.arguments, &awaited)
    });
    let has_runlevel = fs::read("/proc/1/cmdline").is_ok_and(|title| title.contains(&b'['));
    if !waits || !has_runlevel || !children.is_empty() {
        alone.set(None);
        return Err(running("an action of /etc/inittab", &children));
    }
    let since = alone.get().unwrap_or_else(Instant::now);
    alone.set(Some(since));
    if has_children || since.elapsed() > SYSV_WAIT {
        Ok(())
    } else {
        Err("sysvinit may have missed the end of an action of /etc/inittab".to_owned())
    }
}

/// A little more than sysvinit waits at a time: 5 seconds.
const SYSV_WAIT: Duration = Duration::from_secs(6);

/// What the scripts of those actions become if OpenRC is behind sysvinit.
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

/// Whether a command line runs one of these programs, itself, as a script, or by way of the shell that sysvinit takes for a line
/// with special characters: `/bin/sh -c "exec PROGRAM …"`. Also if it runs what such a program becomes.
fn is_one_of(arguments: &[String], programs: &[String]) -> bool {
    let program = |argument: &str| argument.split_whitespace().find(|&word| word != "exec").map(str::to_owned);
    let mut first = arguments.iter().take(3).filter_map(|argument| program(argument));
    first.any(|argument| argument == OPENRC || programs.contains(&argument))
}

/// openrc-init makes its FIFO when it has run the runlevels.
fn openrc(call: c_long) -> Result<(), String> {
    match call {
        libc::SYS_mknodat => Ok(()),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod => Ok(()),
        _ => Err(running("openrc", &children().unwrap_or_default())),
    }
}

/// runit's second stage is runsvdir, which is told the directory of its services.
fn runit() -> Result<(), String> {
    let children = children().map_err(|error| error.to_string())?;
    match children.iter().find(|child| child.name == "runsvdir") {
        Some(runsvdir) => {
            let services = runsvdir.arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
            all_supervised(Path::new(services.map_or("/etc/service", String::as_str)))
        }
        None => Err(running("runit's first stage", &children)),
    }
}

/// s6-svscan is in the directory of its services.
fn s6() -> Result<(), String> {
    let services = Path::new("/proc/1/cwd");
    if !has_reader(&services.join(".s6-svscan/control")) {
        return Err("s6-svscan does not listen".into());
    }
    all_supervised(services)
}

/// Finit says in a condition that it has started everything.
fn finit() -> Result<(), String> {
    let is_up = Path::new("/run/finit/cond/hook/sys/up").exists();
    if is_up { Ok(()) } else { Err("Finit's condition hook/sys/up is not set".into()) }
}

/// Whether each service has a supervisor that listens, as `s6-svok(8)` and `sv(8)` see it.
fn all_supervised(services: &Path) -> Result<(), String> {
    let entries = fs::read_dir(services).map_err(|error| format!("the directory of services: {error}"))?;
    for entry in entries.take(MAX_SERVICES).filter_map(Result::ok) {
        let (name, path) = (entry.file_name(), entry.path());
        let is_service = !name.as_encoded_bytes().starts_with(b".") && path.join("run").exists();
        if is_service && !has_reader(&path.join("supervise/control")) {
            return Err(format!("service {name:?} has no supervisor"));
        }
    }
    Ok(())
}

/// Whether somebody has a FIFO open for reading (`fifo(7)`).
fn has_reader(fifo: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(fifo).is_ok_and(|meta| meta.file_type().is_fifo())
        && File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo).is_ok()
}

/// A child of PID 1.
#[derive(Debug)]
struct Process {
    name: String,
    arguments: Vec<String>,
    /// Whether it has not executed anything yet.
    is_fork_of_pid_1: bool,
    /// Whether it has ended, and PID 1 has not taken note.
    is_zombie: bool,
}

/// The children of PID 1 but for this process.
fn children() -> io::Result<Vec<Process>> {
    let mut children = Vec::new();
    let init = fs::read_link("/proc/1/exe")?;
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((1, is_zombie)) = parent_in(&stat) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let text = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let arguments = text("cmdline").split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let is_fork_of_pid_1 = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == init);
        children.push(Process { name: text("comm").trim_end().to_owned(), arguments, is_fork_of_pid_1, is_zombie });
    }
    Ok(children)
}

/// The parent in a line of `/proc/PID/stat`, and whether the process is a zombie: the first two fields behind the name, which may hold
/// anything.
fn parent_in(stat: &str) -> Option<(u32, bool)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    Some((fields.next()?.parse().ok()?, is_zombie))
}

fn running(what: &str, children: &[Process]) -> String {
    match children.iter().find(|child| !child.is_zombie) {
        Some(child) if !child.arguments.is_empty() => format!("{what} still runs: {}", child.arguments.join(" ")),
        _ => format!("{what} still runs"),
    }
}

/// The units in a list of systemctl's: the word at this place of each line.
fn systemctl(arguments: &[&str], place: usize) -> io::Result<Vec<String>> {
    let program = ["/usr/bin/systemctl", "/bin/systemctl"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let Some(program) = program else { return Ok(Vec::new()) };
    let mut child = Command::new(program)
        .args(arguments)
        .args(["--plain", "--no-legend", "--no-pager"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let list = read_list(&mut child);
    // One that has ended does not mind.
    let _ = child.kill();
    child.wait()?;
    let text = String::from_utf8_lossy(&list?).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(place)).map(str::to_owned).collect())
}

/// What a program prints until it ends, within limits.
fn read_list(child: &mut Child) -> io::Result<Vec<u8>> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(Vec::new()) };
    let deadline = Instant::now() + PATIENCE;
    let mut list = Vec::new();
    let mut buffer = [0; 4096];
    while list.len() < MAX_LIST {
        let left =
            PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stdout.read(&mut buffer)? {
            0 => break,
            length => list.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(list)
}

fn some_of(units: &[String]) -> String {
    let more = units.len().saturating_sub(MAX_UNITS);
    let mut names: Vec<&str> = units.iter().take(MAX_UNITS).map(String::as_str).collect();
    let rest = format!("{more} more");
    if more > 0 {
        names.push(&rest);
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_usable_when_it_has_said_so() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let sign = Sign::Notified(ours);
        assert!(sign.look(None).is_err());
        theirs.send(b"STATUS=x READY=1\nREADY=10").unwrap();
        assert!(sign.look(None).is_err());
        theirs.send(b"X=1").unwrap();
        theirs.send(b"READY=1\nSTATUS=Startup finished").unwrap();
        assert_eq!(sign.look(None), Ok(()));
    }

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

    #[test]
    fn a_service_is_supervised_when_its_fifo_has_a_reader() {
        let scratch = tempfile::tempdir().unwrap();
        let services = scratch.path();
        assert_eq!(all_supervised(services), Ok(()));
        fs::create_dir_all(services.join("one/supervise")).unwrap();
        fs::create_dir(services.join(".hidden")).unwrap();
        fs::write(services.join(".hidden/run"), "").unwrap();
        assert_eq!(all_supervised(services), Ok(()), "no run file");
        fs::write(services.join("one/run"), "").unwrap();
        assert_eq!(all_supervised(services), Err("service \"one\" has no supervisor".into()));
        let fifo = services.join("one/supervise/control");
        fs::write(&fifo, "").unwrap();
        assert!(all_supervised(services).is_err(), "a file, not a FIFO");
        fs::remove_file(&fifo).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(all_supervised(services).is_err(), "without a reader");
        let _reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        assert_eq!(all_supervised(services), Ok(()));
    }

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("12 (a) b) (c) S 1 12 7 0 -1"), Some((1, false)));
        assert_eq!(parent_in("12 (sh) S 77 12"), Some((77, false)));
        assert_eq!(parent_in("12 (sh) Z 1 12"), Some((1, true)));
        assert_eq!(parent_in(""), None);
    }

    #[test]
    fn of_many_units_some_are_named() {
        let units = |count: usize| (0..count).map(|number| format!("u{number}")).collect::<Vec<_>>();
        assert_eq!(some_of(&units(1)), "u0");
        assert_eq!(some_of(&units(5)), "u0, u1, u2, u3, u4");
        assert_eq!(some_of(&units(7)), "u0, u1, u2, u3, u4, 2 more");
    }
}
