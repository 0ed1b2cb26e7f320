//! `start`: starts the command of a created container.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, bail};
use rustix::fs::OFlags;

use crate::args::Global;
use crate::hooks;
use crate::state::{StateDir, Status};

/// Starts the command.
///
/// # Errors
/// The container is not in the state "created".
pub(crate) fn start(global: &Global, id: &str) -> anyhow::Result<()> {
    let locked = StateDir::of(&global.root()?, id)?.lock()?;
    let container = locked.dir.load()?;
    let status = locked.dir.status(&container);
    if status != Status::Created {
        bail!("container {id:?}: it cannot be started, because it is {}", status.as_str());
    }
    if !container.is_sandbox {
        let fifo = locked.dir.start_fifo();
        // Without a reader the container has just ended, which is not an error of this command.
        match File::options().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(fifo) {
            Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NXIO) => {}
            other => other.and_then(|mut fifo| fifo.write_all(&[1])).context("start")?,
        }
    }
    // After the byte: if this process is killed in between, the container can be started again. The other way round it never could.
    locked.dir.mark_started().context("start")?;
    // The container runs, whatever these hooks say.
    let document = locked.dir.document(&container, Status::Running);
    if let Err(error) = hooks::run("poststart", &container.poststart, &document) {
        crate::log::write(global, "warning", &format!("{error:#}"));
    }
    Ok(())
}
