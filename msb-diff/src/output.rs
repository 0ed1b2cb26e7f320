//! Where lines go: stdout, or a file that is renamed to its name at the end.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::store::publish;
use msb::tool::exit::OutputError;
use serde::Serialize;

/// The output.
pub(crate) enum Output {
    /// Stdout, with text on a terminal.
    Stdout { out: BufWriter<io::Stdout>, is_text: bool },
    /// A file, under the name of its staging file.
    File { out: BufWriter<File>, staging: PathBuf, to: PathBuf },
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
        let to = msb::record::path::absolute(to)?;
        let staging = publish::staging_path(&to);
        let out = File::create_new(&staging).with_context(|| format!("output {to:?}"))?;
        Ok(Self::File { out: BufWriter::new(out), staging, to })
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
                let done = out.flush().and_then(|()| out.get_ref().sync_all()).and_then(|()| fs::rename(&staging, &to));
                done.with_context(|| format!("output {to:?}"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { staging, .. } = self {
            // After a rename it is gone already.
            let _ = fs::remove_file(staging);
        }
    }
}
