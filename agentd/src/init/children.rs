//! The children of PID 1: what the init has started and not waited for.

use std::fs;
use std::io;

use super::pid_1;
use crate::process::{self, Stat};

/// A child of PID 1.
#[derive(Debug)]
pub struct Child {
    /// Its name, `/proc/PID/comm`.
    pub name: String,
    /// Its arguments, without empty ones. There are none in the middle of an exec.
    pub arguments: Vec<String>,
    /// Whether it has not executed another program yet.
    pub is_fork_of_init: bool,
    /// Whether it has ended and PID 1 has not waited for it.
    pub is_zombie: bool,
}

/// The children of PID 1 except this process.
///
/// # Errors
/// Those of reading `/proc/1/exe`.
pub fn of_pid_1() -> io::Result<Vec<Child>> {
    let init = fs::read_link("/proc/1/exe")?;
    let own = std::process::id().cast_signed();
    let child = |pid: i32| {
        let stat = Stat::read(pid).filter(|stat| stat.parent == pid_1::PID && pid != own)?;
        let text = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let arguments = text("cmdline").split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let is_fork_of_init = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == init);
        let name = text("comm").trim_end().to_owned();
        Some(Child { name, arguments, is_fork_of_init, is_zombie: stat.state == 'Z' })
    };
    Ok(process::pids().filter_map(child).collect())
}

/// The message that something still runs, with the command line of the first child that does.
pub fn still_running(what: &str, children: &[Child]) -> String {
    match children.iter().find(|child| !child.is_zombie) {
        Some(child) if !child.arguments.is_empty() => format!("{what} still runs: {}", child.arguments.join(" ")),
        _ => format!("{what} still runs"),
    }
}
