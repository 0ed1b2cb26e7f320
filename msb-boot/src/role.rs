//! This program's roles other than the one that a user calls. It starts itself in them; the first argument names the role.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use msb::jail::Jail;
use msb::jail::process::tie_to_parent;
use msb::wire::exec::DEFAULT_PATH;

use crate::inherited_fd::InheritedFd;
use crate::notice::TOOL;

const SUPERVISOR: &str = msb::vm::supervisor::ROLE;
const VMM: &str = "--as-vmm";
const GATE: &str = "--as-gate";
const RELAY: &str = "--as-relay";
const RESOLVER: &str = "--as-resolver";

/// This program's file, even if another release has replaced it on the disk.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// What this process is to do.
pub(crate) enum Role {
    /// Supervise a VM, which uses these descriptors of the caller.
    Supervisor(Vec<InheritedFd>),
    /// Be the VMM that this JSON text describes. The process is killed when the supervisor dies.
    Vmm(String),
    /// Be the gate that this JSON text describes. The process is killed when the supervisor dies.
    Gate(String),
    /// Be the relay that this JSON text describes. The process is killed when the supervisor dies.
    Relay(String),
    /// Be the resolver that this JSON text describes. The process is killed when the supervisor dies.
    Resolver(String),
}

/// The role that the arguments name; `None` for a call by a user.
pub(crate) fn role() -> Option<Role> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?;
    if ![SUPERVISOR, VMM, GATE, RELAY, RESOLVER].iter().any(|known| role == *known) {
        return None;
    }
    // The kernel named the process after the path's last component, so ps(1) would show "exe".
    let _ = rustix::thread::set_name(c"msb-boot");
    if role == SUPERVISOR {
        let numbers = args.filter_map(|number| number.to_str()?.parse().ok());
        return Some(Role::Supervisor(numbers.map(InheritedFd::inherited).collect()));
    }
    if tie_to_parent().is_err() {
        std::process::exit(1);
    }
    let description = args.next()?.into_string().ok()?;
    if role == VMM {
        return Some(Role::Vmm(description));
    }
    if role == GATE {
        return Some(Role::Gate(description));
    }
    if role == RELAY {
        return Some(Role::Relay(description));
    }
    Some(Role::Resolver(description))
}

/// The command that starts a supervisor, which takes its configuration from `stdin` and keeps the descriptors `fds`.
pub(crate) fn supervisor(stdin: Stdio, fds: impl Iterator<Item = InheritedFd>) -> Command {
    let mut command = in_role(SUPERVISOR);
    command.args(fds.map(|fd| fd.to_string()));
    command.current_dir("/").stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The command that starts `program` in a jail. Its environment holds PATH only.
///
/// # Errors
/// A path in the jail that is not UTF-8.
pub(crate) fn jailed(jail: &Jail, program: &Path) -> io::Result<Command> {
    let mut command = jail.command(program)?;
    command.arg0(TOOL).env("PATH", DEFAULT_PATH);
    Ok(command)
}

/// The command that starts the VMM that the JSON text describes.
pub(crate) fn vmm(description: &str) -> Command {
    let mut command = in_role(VMM);
    command.arg(OsStr::new(description));
    command
}

/// The command that starts the gate that the JSON text describes.
pub(crate) fn gate(description: &str) -> Command {
    let mut command = in_role(GATE);
    command.arg(description);
    command
}

/// The command that starts the relay that the JSON text describes.
pub(crate) fn relay(description: &str) -> Command {
    let mut command = in_role(RELAY);
    command.arg(description);
    command
}

/// The command that starts the resolver that the JSON text describes.
pub(crate) fn resolver(description: &str) -> Command {
    let mut command = in_role(RESOLVER);
    command.arg(description);
    command
}

fn in_role(role: &str) -> Command {
    let mut command = Command::new(OWN_EXECUTABLE);
    command.arg0(TOOL).arg(role).env_clear().env("PATH", DEFAULT_PATH);
    command
}
