//! `msb-mount -- CMD`: a program that runs in the root, in a mount namespace of its own, and the unmount after it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, anyhow};
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::program::OWN_EXECUTABLE;
use msb::tool::exit::{self, warn};
use msb::tool::interrupt::{self, DeferExit, Guard};
use msb::tool::output::Output;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::config::Config;
use crate::{background, mountpoint};

/// The code of a signal that the kernel sends (`asm-generic/siginfo.h`). The terminal's signals are such, and reach the program too.
const SI_KERNEL: i32 = 0x80;

/// What is mounted in the root, by its path there and on the host. A path that the root does not have is made if the root is writable.
const HOST_MOUNTS: &[(&str, &str)] = &[("dev", "/dev"), ("proc", "/proc"), ("sys", "/sys")];
/// Where the program finds the host's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A program to run.
#[derive(Debug)]
pub(crate) struct InRoot<'a> {
    pub(crate) line: &'a [OsString],
    /// Whether it runs in the host's tree with the mount point as its working directory, and not with the mount as its root.
    pub(crate) is_in_place: bool,
}

/// Gives this process a mount namespace of its own. Later mounts of the host are visible in it, and ours are not on the host.
pub(crate) fn unshare_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("cannot make a mount namespace")
}

/// Mounts, runs the program, unmounts, and returns the program's exit code, or 128 plus the number of the signal that ended it.
pub(crate) fn run(
    config: &Config,
    program: &InRoot<'_>,
    output: &Output,
    guard: Guard,
    begun: DeferExit,
) -> anyhow::Result<u8> {
    let parent = rustix::process::getpid().as_raw_nonzero().to_string();
    let server = match background::spawn(config, None, &["--with-parent", &parent]) {
        Ok(Some((server, _))) => server,
        Ok(None) => {
            config.undo();
            return Ok(exit::TOOL_FAILED);
        }
        Err(error) => {
            config.undo();
            return Err(error);
        }
    };
    let ran = (|| {
        if let Some(number) = interrupt::signal() {
            warn("msb-mount", "interrupted");
            return Ok(u8::try_from(number).map_or(exit::FAILED, |number| exit::SIGNAL_BASE + number));
        }
        if !program.is_in_place {
            fill(&config.mountpoint, config.access.is_read_only).context("cannot prepare the root")?;
        }
        // From here on signals are passed on.
        drop(guard);
        let signals = receive_signals()?;
        wait(start(program, &config.mountpoint)?, &signals)
    })();
    let unmounted = end(&config.mountpoint, server);
    // A record without an upper has got one for this program alone, unless the record is asked for.
    let put = match &output.output {
        Some(_) => output.put(&config.record, String::new),
        None => {
            config.undo();
            Ok(())
        }
    };
    begun.finish();
    let code = ran?;
    unmounted?;
    put?;
    Ok(code)
}

/// Mounts /dev, /proc, /sys, /run and resolv.conf in a root. Its symlinks are followed inside it.
fn fill(root: &Path, is_read_only: bool) -> io::Result<()> {
    let dir = Dir::open(root)?;
    for (name, from) in HOST_MOUNTS {
        if let Some(at) = mount_point(&dir, Path::new(name), false, is_read_only)? {
            rustix::mount::mount_bind_recursive(*from, at.proc_path())?;
        }
    }
    if let Some(at) = mount_point(&dir, Path::new("run"), false, is_read_only)? {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", at.proc_path(), "tmpfs", flags, c"mode=0755")?;
    }
    if Path::new(RESOLV_CONF).exists()
        && let Some(at) = mount_point(&dir, Path::new(&RESOLV_CONF[1..]), true, is_read_only)?
    {
        rustix::mount::mount_bind(RESOLV_CONF, at.proc_path())?;
    }
    Ok(())
}

/// What to mount on in a root. It is made if it is missing and the root is writable; `None` if it cannot be.
fn mount_point(root: &Dir, path: &Path, is_file: bool, is_read_only: bool) -> io::Result<Option<Entry>> {
    match root.entry_in_root(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_read_only => {}
        found => return Ok(found.ok().filter(|found| found.is_dir() != is_file)),
    }
    let above = path.parent().unwrap_or(Path::new(""));
    let name = Name::new(path.file_name().unwrap_or_default())?;
    let made = root.descend(above).and_then(|above| match is_file {
        true => above.create(name, Mode::from_raw_mode(0o644)).map(drop),
        false => above.mkdir(name, Mode::from_raw_mode(0o755)).map(drop),
    });
    // A symlink without a target is left alone.
    Ok(made.and_then(|()| root.entry_in_root(path)).ok())
}

/// Starts this tool again, as the program: chroot(2) between fork and exec would need code that is not safe.
fn start(program: &InRoot<'_>, root: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(OWN_EXECUTABLE);
    command.arg0("msb-mount").arg("--enter").args(program.is_in_place.then_some("--in-place"));
    command.arg(root).arg("--").args(program.line);
    command.spawn().context("cannot start the program")
}

/// Becomes the program, with `root` as its root or as its working directory.
pub(crate) fn enter(root: &Path, program: &InRoot<'_>) -> anyhow::Result<u8> {
    let (name, arguments) = program.line.split_first().context("no program")?;
    // It does not outlive the tool that unmounts its root.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if program.is_in_place {
        std::env::set_current_dir(root)?;
    } else {
        std::os::unix::fs::chroot(root)?;
        std::env::set_current_dir("/")?;
    }
    let error = Command::new(name).args(arguments).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    Err(exit::coded(code, format!("{name:?}: {error}")).into())
}

/// Waits for a program, and passes on the signals that this process gets.
fn wait(mut child: Child, signals: &SignalFd) -> anyhow::Result<u8> {
    loop {
        if let Some(status) = child.try_wait()? {
            let code = status.code().or_else(|| status.signal().map(|signal| i32::from(exit::SIGNAL_BASE) + signal));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED));
        }
        let Some(info) = signals.read_signal()? else { continue };
        let number = info.ssi_signo.cast_signed();
        if number != Signal::SIGCHLD as i32
            && info.ssi_code != SI_KERNEL
            && let Some(signal) = rustix::process::Signal::from_named_raw(number)
        {
            let _ = rustix::process::kill_process(Pid::from_child(&child), signal);
        }
    }
}

/// Blocks the signals that are passed on, and that of a child's end.
fn receive_signals() -> anyhow::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        signals.add(signal);
    }
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(SignalFd::new(&signals)?)
}

/// Unmounts the root, from processes that the program has left too, and waits for the end of its server.
fn end(root: &Path, server: Pid) -> anyhow::Result<()> {
    let gone = |error| anyhow!("mount point {root:?}: {error}");
    let server = rustix::process::pidfd_open(server, PidfdFlags::empty()).map_err(gone)?;
    mountpoint::write_back(root);
    match rustix::mount::unmount(root, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => warn("msb-mount", &gone(error).to_string()),
    }
    background::end(&server).map_err(|error| anyhow!("mount point {root:?}: {error}"))
}
