//! `exec`: a further command in the guest of a running container.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use msb::store::publish;
use msb::tool::exit;
use oci_spec::runtime::{Process, Spec, User};

use crate::args::{Exec, Global};
use crate::command::{self, Invocation, What};
use crate::console;
use crate::state::{StateDir, Status};

/// What runc exits with if the command of an exec did not start.
pub(crate) const NOT_STARTED: u8 = 255;

/// Runs the command. With --detach it returns when that runs, else with its status.
///
/// # Errors
/// Why it does not run.
pub(crate) fn exec(global: &Global, args: &Exec) -> anyhow::Result<u8> {
    msb::inherited::close(&[]).context("descriptors")?;
    exec_in(global, args).map_err(|error| exit::coded(NOT_STARTED, format!("{error:#}")).into())
}

fn exec_in(global: &Global, args: &Exec) -> anyhow::Result<u8> {
    if args.preserve_fds > 0 {
        bail!("--preserve-fds {}: descriptors cannot be passed to another kernel (use 0)", args.preserve_fds);
    }
    let dir = StateDir::of(&global.root()?, &args.id)?;
    let container = dir.load()?;
    if container.is_sandbox {
        bail!("container {:?}: it holds the namespaces of a pod, and has no VM to run a command in", args.id);
    }
    let status = dir.status(&container);
    if status != Status::Running {
        bail!("container {:?}: no command can run in it, because it is {}", args.id, status.as_str());
    }
    let process = process(args, &container.bundle)?;
    let has_terminal = process.terminal().unwrap_or(false);
    let terminal = match &args.console_socket {
        Some(socket) => Some(console::open(socket, &process)?),
        None if has_terminal && args.detach => bail!("a terminal needs a --console-socket"),
        None => None,
    };
    let file = dir.further_process();
    publish::write_volatile_file(&file, &serde_json::to_vec(&process)?, 0o600).with_context(|| format!("{file:?}"))?;
    let running = command::start(Invocation {
        record: &dir.record_for(&container),
        what: What::Process(&file, container.exec_id.context("the container has no command yet")?),
        terminal,
        is_detached: args.detach,
        cgroup: Some(container.cgroup.clone()),
        start: None,
        end: None,
    });
    let _ = fs::remove_file(&file);
    let mut child = running?.child;
    if let Some(file) = &args.pid_file {
        publish::write_volatile_file(file, child.id().to_string().as_bytes(), 0o644)
            .with_context(|| format!("PID file {file:?}"))?;
    }
    if args.detach {
        return Ok(0);
    }
    let status = child.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_STARTED))
}

/// The process to run: that of --process, or the container's with the changes of the flags.
fn process(args: &Exec, bundle: &Path) -> anyhow::Result<Process> {
    let mut process = match &args.process {
        Some(file) => {
            let text = fs::read(file).with_context(|| format!("{file:?}"))?;
            serde_json::from_slice(&text).with_context(|| format!("{file:?}"))?
        }
        None => {
            let path = bundle.join("config.json");
            let text = fs::read(&path).with_context(|| format!("{path:?}"))?;
            let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("{path:?}"))?;
            let mut process: Process = spec.process().clone().context("the config has no process")?;
            process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty));
            process
        }
    };
    if process.args().as_ref().is_none_or(|args| args.is_empty()) {
        bail!("no command is given (name one, or use --process)");
    }
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &args.user {
        process.set_user(parse_user(user)?);
    }
    if !args.env.is_empty() {
        let own = process.env().iter().flatten().cloned();
        process.set_env(Some(own.chain(args.env.iter().cloned()).collect()));
    }
    Ok(process)
}

fn parse_user(text: &str) -> anyhow::Result<User> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number =
        |text: &str| text.parse::<u32>().with_context(|| format!("--user {text:?}: numbers are expected, as UID:GID"));
    let mut user = User::default();
    user.set_uid(number(uid)?).set_gid(number(gid)?);
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_and_maybe_a_group() {
        for (text, ids) in [("7", (7, 0)), ("7:8", (7, 8))] {
            let user = parse_user(text).unwrap();
            assert_eq!((user.uid(), user.gid()), ids);
        }
        for bad in ["", "root", "1:", "-1"] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
    }
}
