//! `kill`: a signal for the command in the guest.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::record::signal;
use serde_json::Value;

use crate::args::{Global, Kill};
use crate::process::{self, Identity};
use crate::state::{Container, StateDir, Status};
use crate::tool;

const KILL: i32 = 9;
/// How long a guest may take for a signal.
const ANSWER: Duration = Duration::from_secs(2);
/// The longest list of commands, in bytes.
const MAX_LIST: u64 = 16 << 20;

/// Sends the signal.
///
/// # Errors
/// The container has ended, in the message that callers look for.
pub(crate) fn kill(global: &Global, args: &Kill) -> anyhow::Result<()> {
    let dir = StateDir::of(&global.root()?, &args.id)?;
    let container = dir.load()?;
    let Some(number) = signal::number(&args.signal) else {
        bail!("unknown signal {:?} (give a name or a number)", args.signal);
    };
    let status = dir.status(&container);
    match (status, &container.stand_in) {
        (Status::Stopped, _) if args.all => Ok(()),
        (Status::Stopped, _) => bail!("container not running"),
        (Status::Creating, _) | (_, None) => bail!("container {:?}: it is still being created", args.id),
        (_, Some(stand_in)) if container.is_sandbox => end_sandbox(stand_in, number),
        // Nothing runs yet that could handle another signal.
        (Status::Created, Some(stand_in)) => Ok(process::kill(stand_in, ANSWER)?),
        (_, Some(stand_in)) if number == KILL => kill_command(&dir, &container, stand_in, args.all),
        _ => signal_command(&dir, &container, number, args.all),
    }
}

fn end_sandbox(stand_in: &Identity, number: i32) -> anyhow::Result<()> {
    if number == KILL {
        return Ok(process::kill(stand_in, ANSWER)?);
    }
    let number = nix::sys::signal::Signal::try_from(number).context("a pod's sandbox takes no such signal")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stand_in.pid), number).context("container not running")
}

/// KILL ends the container in any case: if the guest does not end the command, the VM is ended.
fn kill_command(dir: &StateDir, container: &Container, stand_in: &Identity, all: bool) -> anyhow::Result<()> {
    if dir.status(container) == Status::Paused {
        crate::cgroup::Freezer::of(&container.cgroup).set(false)?;
    }
    let sent = signal_command(dir, container, KILL, all);
    if sent.is_err() || !process::has_ended_within(stand_in, ANSWER)? {
        process::kill(stand_in, ANSWER)?;
        // This does not end the VM of a pod, so the command is killed, too.
        if let Some(command) = &container.command {
            process::kill(command, ANSWER)?;
        }
    }
    Ok(())
}

/// Ends the command of a container in its pod's VM. The VM keeps running.
pub(crate) fn end_in_pod(dir: &StateDir, container: &Container) {
    let is_running = |command: &&Identity| process::is_alive(command);
    if let Some(command) = container.command.as_ref().filter(is_running) {
        let sent = signal_command(dir, container, KILL, false);
        if sent.is_err() || !process::has_ended_within(command, ANSWER).unwrap_or(false) {
            let _ = process::kill(command, ANSWER);
        }
    }
}

/// Sends a signal to the container's command, or to all commands in its own VM.
fn signal_command(dir: &StateDir, container: &Container, number: i32, all: bool) -> anyhow::Result<()> {
    let record = dir.record_for(container);
    // In a pod's VM only the container's command is signalled: its further commands end with it, and the list has other containers'
    // commands, too.
    let ids = if all && container.member.is_none() {
        let mut list = tool::command("msb-exec")?;
        running(&within(list.args(["--list", "-r"]).arg(&record), ANSWER)?)
    } else {
        container.exec_id.into_iter().collect()
    };
    for id in &ids {
        let mut send = tool::command("msb-exec")?;
        send.arg("-r").arg(&record).args(["--signal", &number.to_string(), &id.to_string()]);
        within(&mut send, ANSWER)?;
    }
    Ok(())
}

/// The ids of running commands in what `msb-exec --list` prints, the oldest first.
fn running(list: &str) -> Vec<u32> {
    let lines = list.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut ids: Vec<u32> = lines
        .filter(|line| line.get("exit").is_none())
        .filter_map(|line| u32::try_from(line.get("id")?.as_u64()?).ok())
        .collect();
    ids.sort_unstable();
    ids
}

/// The output of a tool that may hang with its guest.
fn within(command: &mut Command, timeout: Duration) -> anyhow::Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("msb-exec")?;
    let stdout = child.stdout.take().context("msb-exec")?;
    // A list may be longer than what a pipe holds.
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.take(MAX_LIST).read_to_end(&mut text).map(|_| text)
    });
    let identity = Identity::of(child.id().cast_signed())?;
    if !process::has_ended_within(&identity, timeout)? {
        child.kill()?;
        child.wait()?;
        bail!("the guest does not answer");
    }
    if !child.wait()?.success() {
        bail!("container not running");
    }
    let text = reader.join().map_err(|_| anyhow!("msb-exec: its output cannot be read"))??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_is_longer_than_a_pipe_holds_arrives_whole() {
        let mut command = Command::new("head");
        command.args(["-c", "1000000", "/dev/zero"]);
        assert_eq!(within(&mut command, Duration::from_secs(60)).unwrap().len(), 1_000_000);
    }

    #[test]
    fn a_tool_that_hangs_is_an_error() {
        let error = within(Command::new("sleep").arg("1000"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }

    #[test]
    fn commands_that_have_ended_are_left_out_and_the_oldest_comes_first() {
        let list = "{\"id\":7}\n{\"id\":3,\"exit\":{\"code\":0}}\nno json\n{\"id\":4}\n";
        assert_eq!(running(list), [4, 7]);
        assert_eq!(running(""), [0_u32; 0]);
    }
}
