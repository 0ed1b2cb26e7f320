//! Images that another tool keeps: those of podman (`containers-storage:`) and of a docker daemon (`docker-daemon:`). The tool
//! itself, or skopeo, writes the image as an archive into a pipe.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, bail};
use msb::tool::exit::printable;

use crate::archive::Files;
use crate::budget::Budget;
use crate::source::Keeper;
use crate::store::Store;

/// How much of what a tool says is kept, in bytes.
const MAX_MESSAGES: u64 = 1 << 16;

/// The commands that write a docker archive of an image to stdout, in the order in which they are tried.
fn commands(keeper: Keeper, name: &str) -> [Vec<String>; 2] {
    let own: &[&str] = match keeper {
        Keeper::ContainersStorage => &["podman", "save", "-q", "--format", "docker-archive", "--", name],
        Keeper::DockerDaemon => &["docker", "save", "--", name],
    };
    let source = format!("{}{name}", keeper.prefix());
    let skopeo = ["skopeo", "copy", "-q", &source, "docker-archive:/dev/stdout"];
    [own.iter().map(|&word| word.to_owned()).collect(), skopeo.map(str::to_owned).into()]
}

/// Reads an image of another tool.
///
/// # Errors
/// A message if no tool is there, or what the tool says.
pub(crate) fn archive(keeper: Keeper, name: &str, store: &Store, budget: &Budget) -> anyhow::Result<Files> {
    let commands = commands(keeper, name);
    let Some((mut child, program)) = start(&commands)? else {
        bail!("neither {} nor {} is on PATH (install one, or pull from a registry)", commands[0][0], commands[1][0]);
    };
    let messages = child.stderr.take().map(|stderr| {
        thread::spawn(move || {
            let (mut text, mut stderr) = (Vec::new(), stderr);
            let _ = stderr.by_ref().take(MAX_MESSAGES).read_to_end(&mut text);
            // A full pipe would hold the tool up.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let stdout = child.stdout.take().context("its output")?;
    let mut archive = BufReader::with_capacity(1 << 18, stdout);
    let files = Files::stream(&mut archive, &store.scratch("archive"), budget);
    let has_ended = archive.fill_buf().is_ok_and(<[u8]>::is_empty);
    // If reading failed before the end, the closed pipe stops the tool.
    drop(archive);
    let status = child.wait()?;
    let messages = messages.and_then(|thread| thread.join().ok()).unwrap_or_default();
    // A tool that failed explains a broken archive. A tool that was stopped does not explain why reading failed.
    match files {
        Err(error) if status.success() || !has_ended => Err(error),
        _ if !status.success() => {
            let last = messages.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            bail!("{program:?} failed: {}", printable(last.trim()))
        }
        files => files,
    }
}

/// Starts the first command whose program exists.
fn start(commands: &[Vec<String>]) -> anyhow::Result<Option<(Child, &str)>> {
    for command in commands {
        let (program, arguments) = command.split_first().context("an empty command")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return Ok(Some((other.with_context(|| format!("{program:?}"))?, program))),
        }
    }
    Ok(None)
}
