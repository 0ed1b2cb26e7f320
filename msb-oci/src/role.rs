//! Roles of this program other than the one that a user calls. It starts itself in them; the first argument names the role, and the second
//! describes what to do.

use std::process::{Command, ExitCode};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The command that starts a role.
///
/// # Errors
/// A description that is not JSON.
pub(crate) fn in_role(role: &str, description: &impl Serialize) -> anyhow::Result<Command> {
    let mut command = Command::new(msb::program::OWN_EXECUTABLE);
    command.arg(role).arg(serde_json::to_string(description)?);
    Ok(command)
}

/// Runs a role with the description on the command line.
pub(crate) fn run<T: DeserializeOwned>(role: impl FnOnce(T) -> ExitCode) -> ExitCode {
    // The kernel named the process after the path's last component, so ps(1) would show "exe".
    let _ = rustix::thread::set_name(c"msb-oci");
    match serde_json::from_str(&std::env::args().nth(2).unwrap_or_default()) {
        Ok(description) => role(description),
        Err(error) => {
            eprintln!("msb-oci: description of a role: {error}");
            ExitCode::FAILURE
        }
    }
}
