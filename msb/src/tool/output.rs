//! What a tool prints: a record for the next stage, or a line for a person.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::record::Record;
use crate::store::publish;
use crate::tool::exit::{ReaderGone, warn};
use crate::tool::line;

/// The flags that say where a record goes.
#[derive(Clone, Debug, Default, Args)]
pub struct Output {
    /// Write the record to FILE, which is created or replaced only on success [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Print the record on a terminal too, in place of a summary
    #[arg(long)]
    pub json: bool,

    /// Print errors and warnings only
    #[arg(short, long)]
    pub quiet: bool,
}

impl Output {
    /// Checks that there is a place for the record, before anything is done.
    ///
    /// # Errors
    /// A directory that does not exist, or a FILE that is one.
    pub fn check(&self) -> anyhow::Result<()> {
        let Some(file) = &self.output else { return Ok(()) };
        if file.is_dir() {
            bail!("output {file:?}: a directory");
        }
        let file = std::path::absolute(file).with_context(|| format!("output {file:?}"))?;
        let parent = file.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            bail!("output {file:?}: no directory {parent:?} (make it first)");
        }
        Ok(())
    }

    /// Hands the record on: to the file, to stdout, or, if stdout is a terminal, to a person as `summary`, which may be empty.
    ///
    /// # Errors
    /// [`ReaderGone`] if stdout is a pipe without a reader; else what writing says.
    pub fn put(&self, record: &Record, summary: impl FnOnce() -> String) -> anyhow::Result<()> {
        let is_terminal = io::stdout().is_terminal();
        match &self.output {
            Some(file) => write(file, &text(record)?).with_context(|| format!("output {file:?}"))?,
            None if !is_terminal || self.json => return line::put(record),
            None => {}
        }
        if is_terminal && !self.quiet { print(&summary()) } else { Ok(()) }
    }

    /// A message that a person may want and need not have, as `tool: message` on stderr.
    pub fn say(&self, tool: &str, message: &str) {
        if !self.quiet {
            warn(tool, message);
        }
    }
}

fn text(record: &Record) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    Ok(text)
}

fn print(summary: &str) -> anyhow::Result<()> {
    if summary.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{summary}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        other => other.context("stdout"),
    }
}

/// A regular file is replaced by rename, also behind a symlink; a device or a pipe is written to.
fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    match fs::metadata(file) {
        Ok(meta) if !meta.is_file() => File::options().write(true).open(file)?.write_all(text),
        Ok(_) => publish::write_file(&file.canonicalize()?, text, 0o666),
        Err(_) => publish::write_file(&std::path::absolute(file)?, text, 0o666),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_behind_a_symlink_and_a_device_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("vm.json"), dir.path().join("link"));
        write(&file, b"one").unwrap();
        std::os::unix::fs::symlink("vm.json", &link).unwrap();
        write(&link, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(link.is_symlink());
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(fs::metadata("/dev/null").is_ok_and(|meta| !meta.is_file()));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_is_refused_at_once() {
        let output = |path: &Path| Output { output: Some(path.to_owned()), ..Output::default() }.check();
        let dir = tempfile::tempdir().unwrap();
        assert!(output(&dir.path().join("new")).is_ok());
        assert!(output(Path::new("/dev/null")).is_ok());
        assert!(output(dir.path()).unwrap_err().to_string().contains("a directory"));
        assert!(output(&dir.path().join("a/b")).unwrap_err().to_string().contains("no directory"));
    }
}
