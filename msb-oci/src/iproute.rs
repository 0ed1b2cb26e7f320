//! ip(8) and tc(8), which change the interfaces of this thread's network namespace.

use std::process::Command;

use anyhow::{Context, bail};

use crate::tool;

/// Runs ip(8).
///
/// # Errors
/// It is missing, or fails.
pub(crate) fn ip(args: &[&str]) -> anyhow::Result<()> {
    output("ip", args).map(drop)
}

/// Runs tc(8).
///
/// # Errors
/// It is missing, or fails.
pub(crate) fn tc(args: &[&str]) -> anyhow::Result<()> {
    output("tc", args).map(drop)
}

/// Runs ip(8) with `-json`, and reads the list that it prints.
///
/// # Errors
/// It is missing, or fails, or prints something else.
pub(crate) fn list<T: serde::de::DeserializeOwned>(args: &[&str]) -> anyhow::Result<Vec<T>> {
    let text = output("ip", &[&["-json"], args].concat())?;
    // It prints nothing for an empty list.
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).with_context(|| format!("ip {}", args.join(" ")))
}

fn output(name: &str, args: &[&str]) -> anyhow::Result<String> {
    let found = msb::program::find(name, &["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    let Some(program) = found else { bail!("{name} is missing (apt-get install iproute2)") };
    tool::output(Command::new(program).args(args))
}
