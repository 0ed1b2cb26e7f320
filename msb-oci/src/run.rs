//! `run`: all of a container's life in the foreground.

use anyhow::Context;

use crate::args::{Create, Delete, Global};
use crate::{create, delete, start};

/// Runs a container. Returns the status of its command.
///
/// # Errors
/// Why it could not be created or started.
pub(crate) fn run(global: &Global, args: &Create) -> anyhow::Result<u8> {
    let mut stand_in = create::create(global, args)?;
    let started = start::start(global, &args.id);
    let status = match &started {
        Ok(()) => Some(stand_in.wait().context("process of the container")?),
        Err(_) => None,
    };
    let deleted = delete::delete(global, &Delete { id: args.id.clone(), force: true });
    started.and(deleted)?;
    Ok(status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::KILLED))
}
