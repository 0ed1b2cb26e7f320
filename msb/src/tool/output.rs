//! The output of a tool: a record for the next stage, or one line for a person.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::FileType;

use crate::record::Record;
use crate::store::publish;
use crate::tool::exit::{OutputError, warn};
use crate::tool::line;

/// The flags for the output of a record.
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
    /// Checks that FILE can be written, before anything is done.
    ///
    /// # Errors
    /// [`OutputError::IsDirectory`], [`OutputError::NoDirectory`], [`OutputError::File`].
    pub fn check(&self) -> Result<(), OutputError> {
        let Some(file) = &self.output else { return Ok(()) };
        if file.is_dir() {
            return Err(OutputError::IsDirectory(file.clone()));
        }
        let file = std::path::absolute(file).map_err(|error| OutputError::File { file: file.clone(), error })?;
        let parent = file.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            let parent = parent.to_owned();
            return Err(OutputError::NoDirectory { file, parent });
        }
        Ok(())
    }

    /// Whether the record goes into a pipe or a socket, whose reader may act on it before this process ends.
    pub fn is_stream(&self) -> bool {
        let kind = match &self.output {
            Some(file) => fs::metadata(file).map(|meta| FileType::from_raw_mode(meta.mode())),
            None => {
                rustix::fs::fstat(io::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(Into::into)
            }
        };
        matches!(kind, Ok(FileType::Fifo | FileType::Socket))
    }

    /// Writes the record to the file or to stdout. On a terminal, prints `summary` instead, which may be empty.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn put(&self, record: &Record, summary: impl FnOnce() -> String) -> Result<(), OutputError> {
        let is_terminal = io::stdout().is_terminal();
        match &self.output {
            Some(file) => {
                let failed = |error| OutputError::File { file: file.clone(), error };
                write(file, &text(record).map_err(failed)?).map_err(failed)?;
            }
            None if !is_terminal || self.json => return line::put(record),
            None => {}
        }
        if is_terminal && !self.quiet { print(&summary()) } else { Ok(()) }
    }

    /// Prints a message that is neither an error nor a warning as `tool: message` on stderr, unless `--quiet` is given.
    pub fn say(&self, tool: &str, message: &str) {
        if !self.quiet {
            warn(tool, message);
        }
    }
}

fn text(record: &Record) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    Ok(text)
}

fn print(summary: &str) -> Result<(), OutputError> {
    if summary.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{summary}").and_then(|()| stdout.flush()).map_err(OutputError::of_stdout)
}

/// Writes a file. A regular file is replaced by rename, also the target of a symlink; a device or a pipe is written to.
fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    match fs::metadata(file) {
        Ok(meta) if !meta.is_file() => File::options().write(true).open(file)?.write_all(text),
        Ok(_) => publish::write_output(&file.canonicalize()?, text),
        Err(_) => publish::write_output(&std::path::absolute(file)?, text),
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
        // The umask applies, as to any new file.
        fs::write(dir.path().join("other"), b"").unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode();
        assert_eq!(mode("vm.json"), mode("other"));
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused_before_anything_is_done() {
        let output = |path: &Path| Output { output: Some(path.to_owned()), ..Output::default() }.check();
        let dir = tempfile::tempdir().unwrap();
        assert!(output(&dir.path().join("new")).is_ok());
        assert!(output(Path::new("/dev/null")).is_ok());
        assert!(output(dir.path()).unwrap_err().to_string().contains("a directory"));
        assert!(output(&dir.path().join("a/b")).unwrap_err().to_string().contains("no directory"));
    }
}
