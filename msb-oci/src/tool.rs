//! The other tools, which do all that is done with a VM.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// The store, where the caller gives no environment that says where it is.
const HOME: &str = "/var/lib/msb";

/// A command that runs the tool `name` of this installation.
///
/// # Errors
/// It is not installed.
pub(crate) fn command(name: &str) -> anyhow::Result<Command> {
    let program = find(name).with_context(|| format!("{name} is missing (install it beside msb-oci)"))?;
    let mut command = Command::new(program);
    if std::env::var_os("MSB_HOME").is_none() && std::env::var_os("HOME").is_none() {
        command.env("MSB_HOME", HOME);
    }
    // Where VMs are must not depend on the environment, which differs from one call of the runtime to the next.
    command.env_remove("MSB_RUN").env_remove("MSB_RECORD").env_remove("MSB_NETWORK");
    Ok(command)
}

fn find(name: &str) -> Option<PathBuf> {
    msb::program::find(name, &["/usr/local/bin", "/usr/bin"])
}

/// Runs a command, and returns its output.
///
/// # Errors
/// It cannot be run, or fails; then with what it wrote on stderr.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let name = name.rsplit('/').next().unwrap_or_default();
    let output = command.stdin(std::process::Stdio::null()).output().with_context(|| name.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}", message(name, &error, &output.status.to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The message of a tool that has failed, on one line and with the tool's name once.
pub(crate) fn message(name: &str, error: &str, status: &str) -> String {
    let lines: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => format!("{name}: {status}"),
        [first, rest @ ..] => {
            let first = first.strip_prefix(&format!("{name}: ")).unwrap_or(first);
            [&[format!("{name}: {first}")], rest.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>().as_slice()]
                .concat()
                .join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_names_the_tool_once() {
        assert_eq!(message("t", "t: a\n  b\n\n", "exit status: 1"), "t: a; b");
        assert_eq!(message("t", "a", "exit status: 1"), "t: a");
        assert_eq!(message("t", "", "exit status: 1"), "t: exit status: 1");
    }
}
