//! Where lines go: stdout, or a file that gets its name at the end.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::record::path::absolute;
use msb::store::publish;
use msb::tool::exit::OutputError;
use msb::tool::interrupt::DeferExit;
use serde::Serialize;

/// The output.
pub(crate) enum Output {
    /// Stdout, with text on a terminal.
    Stdout { out: BufWriter<io::Stdout>, is_text: bool },
    /// A file, which has another name until it is complete. A device or a pipe is written to as it is.
    File { out: BufWriter<File>, staging: Option<Staging>, to: PathBuf },
}

/// The name of a file that is not complete. An interrupted tool removes it before it ends.
pub(crate) struct Staging {
    path: PathBuf,
    _deferred: DeferExit,
}

impl Output {
    /// Stdout, or the file `to`.
    ///
    /// # Errors
    /// The error of creating the file.
    pub(crate) fn open(to: Option<&Path>, json: bool) -> anyhow::Result<Self> {
        let Some(to) = to else {
            let is_text = !json && io::stdout().is_terminal();
            return Ok(Self::Stdout { out: BufWriter::new(io::stdout()), is_text });
        };
        let open = || -> io::Result<_> {
            let to = match fs::metadata(to) {
                Ok(meta) if !meta.is_file() => return Ok((File::options().write(true).open(to)?, None, to.to_owned())),
                // The target of a symlink is replaced.
                Ok(_) => to.canonicalize()?,
                Err(_) => absolute(to)?,
            };
            let staging = Staging { path: publish::staging_path(&to), _deferred: DeferExit::new() };
            Ok((File::create_new(&staging.path)?, Some(staging), to))
        };
        let (file, staging, to) = open().with_context(|| format!("output {to:?}"))?;
        Ok(Self::File { out: BufWriter::new(file), staging, to })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn put(&mut self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let mut line = match self {
            Self::Stdout { is_text: true, .. } => text().into_bytes(),
            _ => serde_json::to_vec(value)?,
        };
        line.push(b'\n');
        match self {
            Self::Stdout { out, .. } => out.write_all(&line).map_err(OutputError::of_stdout)?,
            Self::File { out, to, .. } => out.write_all(&line).with_context(|| format!("output {to:?}"))?,
        }
        Ok(())
    }

    /// Completes the output.
    ///
    /// # Errors
    /// Those of writing and renaming.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        match &mut self {
            Self::Stdout { out, .. } => out.flush().map_err(OutputError::of_stdout)?,
            Self::File { out, staging, to } => {
                let done = out.flush().and_then(|()| match &*staging {
                    Some(staging) => out.get_ref().sync_all().and_then(|()| fs::rename(&staging.path, &*to)),
                    None => Ok(()),
                });
                done.with_context(|| format!("output {to:?}"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { staging: Some(staging), .. } = self {
            // After a rename it is gone already.
            let _ = fs::remove_file(&staging.path);
        }
    }
}
