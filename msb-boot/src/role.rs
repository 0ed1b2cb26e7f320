//! This program's roles other than the one that a user calls. It starts itself in them; the first argument names the role.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use msb::jail::Jail;
use msb::jail::process::tie_to_parent;
use msb::program::OWN_EXECUTABLE;
use msb::wire::exec::DEFAULT_PATH;

use crate::inherited_fd::InheritedFd;
use crate::notice::TOOL;

const SUPERVISOR: &str = msb::vm::supervisor::ROLE;
pub(crate) const VMM: &str = "--as-vmm";
pub(crate) const GATE: &str = "--as-gate";
pub(crate) const CHANNEL: &str = "--as-channel";
pub(crate) const RELAY: &str = "--as-relay";
pub(crate) const RESOLVER: &str = "--as-resolver";

/// What this process is to do.
pub(crate) enum Role {
    /// Supervise a VM, which uses these descriptors of the caller.
    Supervisor(Vec<InheritedFd>),
    /// Be the VMM that this JSON text describes. The process is killed when the supervisor dies.
    Vmm(String),
    /// Be the gate that this JSON text describes. The process is killed when the supervisor dies.
    Gate(String),
    /// Be the multiplexer that this JSON text describes. The process is killed when the supervisor dies.
    Channel(String),
    /// Be the relay that this JSON text describes. The process is killed when the supervisor dies.
    Relay(String),
    /// Be the resolver that this JSON text describes. The process is killed when the supervisor dies.
    Resolver(String),
}

/// The role that the arguments name; `None` for a call by a user.
pub(crate) fn role() -> Option<Role> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?.into_string().ok()?;
    if ![SUPERVISOR, VMM, CHANNEL, GATE, RELAY, RESOLVER].contains(&role.as_str()) {
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
    Some(match role.as_str() {
        VMM => Role::Vmm(description),
        CHANNEL => Role::Channel(description),
        GATE => Role::Gate(description),
        RELAY => Role::Relay(description),
        _ => Role::Resolver(description),
    })
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

/// The command that starts a role that the JSON text describes: the VMM, or one of its helper processes.
pub(crate) fn described(role: &str, description: &str) -> Command {
    let mut command = in_role(role);
    command.arg(description).current_dir("/");
    command
}

fn in_role(role: &str) -> Command {
    let mut command = Command::new(OWN_EXECUTABLE);
    command.arg0(TOOL).arg(role).env_clear().env("PATH", DEFAULT_PATH);
    command
}
