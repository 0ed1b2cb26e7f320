//! Where a tool takes its record from: a name, a file, a pipe, or `$MSB_RECORD`.
//!
//! A stage of the pipe prefers a record on stdin. The tools for running VMs do not read stdin if the record is named
//! elsewhere, because stdin belongs to the command.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::FileType;

use crate::record::{self, FILE_NAME, Record};
use crate::vm::{name, supervisor};
use crate::{tool::exit, tool::line};

/// The environment variable that names a record.
pub const VARIABLE: &str = "MSB_RECORD";

/// `-r` of a stage of the pipe.
#[derive(Clone, Debug, Default, Args)]
pub struct StageRecord {
    /// The record: the name of a running VM, a file, or - for stdin [default: stdin if a record is piped in, else $MSB_RECORD]
    #[arg(short = 'r', long = "record", value_name = "NAME|FILE")]
    pub record: Option<String>,
}

/// `-r` of a tool for running VMs.
#[derive(Clone, Debug, Default, Args)]
pub struct VmRecord {
    /// The record: the name of a running VM, a file, or - for stdin [default: NAME, else $MSB_RECORD, else stdin]
    #[arg(short = 'r', long = "record", value_name = "NAME|FILE")]
    pub record: Option<String>,
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The caller named no record, and stdin is a terminal.
    #[error("no record: stdin is a terminal (pipe a record in, or name one with -r)")]
    Terminal,
    /// Nothing came on stdin: the previous stage failed.
    #[error("no record on stdin (the previous stage failed, or nothing is piped in: use -r FILE)")]
    Nothing,
    /// A file is empty: the tool that wrote it failed.
    #[error("{source_name}: it is empty: the tool that wrote it failed")]
    Empty {
        /// The file as a message names it.
        source_name: String,
    },
    /// An operation of the stage came before any record.
    #[error("stdin: an operation, and no record before it (pipe the record in first, or name it with -r)")]
    OperationFirst,
    /// Stdin cannot be read.
    #[error("stdin: {0}")]
    Stdin(io::Error),
    /// A file cannot be read.
    #[error("record {name:?}: {error}")]
    File {
        /// Its name as the caller gave it.
        name: String,
        /// The reason.
        error: io::Error,
    },
    /// The source holds something else than a record.
    #[error("{source_name}: {error}")]
    NotARecord {
        /// The source as a message names it.
        source_name: String,
        /// The reason.
        error: record::Error,
    },
    /// A VM has that name, and has not printed its record yet.
    #[error("record {0:?}: the VM of that name is not up yet")]
    NotUp(String),
    /// Neither a file nor a VM has that name.
    #[error("record {name:?}: no such file, and no VM of that name is running in {dir:?}")]
    NoSuch {
        /// The name.
        name: String,
        /// The directory of run directories.
        dir: PathBuf,
    },
    /// No file has that name, and the directory of VMs is unknown.
    #[error("record {name:?}: no such file, and nowhere to look for a VM of that name: {error}")]
    NoRunDirectory {
        /// The name.
        name: String,
        /// Why it is unknown.
        error: io::Error,
    },
    /// The VM of that name runs, and cannot be reached.
    #[error("{0}")]
    Lost(Lost),
    /// One of the others, for the record that `$MSB_RECORD` names.
    #[error("${VARIABLE}: {0}")]
    Variable(Box<SourceError>),
}

impl SourceError {
    /// The VM that runs and cannot be reached, if that is the reason.
    pub fn lost(&self) -> Option<&Lost> {
        match self {
            Self::Lost(lost) => Some(lost),
            Self::Variable(error) => error.lost(),
            _ => None,
        }
    }
}

impl StageRecord {
    /// Reads the record of a stage: that of `-r`, else the one on stdin, else that of `$MSB_RECORD`. What follows the record on
    /// stdin stays unread.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn take(&self, tool: &str) -> Result<Record, SourceError> {
        self.take_before(tool, |_| false).map(|(record, _)| record)
    }

    /// As [`StageRecord::take`], for a stage that reads values of its own after the record. If `is_own` accepts the first value
    /// on stdin, the record is that of `$MSB_RECORD`, and the value is returned with it.
    ///
    /// # Errors
    /// As for [`StageRecord::take`].
    pub fn take_before(
        &self,
        tool: &str,
        is_own: impl Fn(&[u8]) -> bool,
    ) -> Result<(Record, Option<Vec<u8>>), SourceError> {
        match (self.record.as_deref(), kind_of(io::stdin()), variable()) {
            (Some("-"), ..) => Ok((stdin()?, None)),
            (Some(name), ..) => Ok((named(name)?, None)),
            (None, Stdin::Terminal | Stdin::Null, Some(name)) => Ok((by_variable(&name)?, None)),
            (None, Stdin::Terminal, None) => Err(SourceError::Terminal),
            (None, Stdin::Null, None) => Err(SourceError::Nothing),
            (None, kind, variable) => match (line::take_value(io::stdin()).map_err(SourceError::Stdin)?, variable) {
                (Some(value), Some(name)) if is_own(&value) => Ok((by_variable(&name)?, Some(value))),
                (Some(value), None) if is_own(&value) => Err(SourceError::OperationFirst),
                (Some(value), _) => Ok((parse(STDIN, &value)?, None)),
                (None, _) if kind == Stdin::File => Err(SourceError::Empty { source_name: STDIN.into() }),
                (None, None) => Err(SourceError::Nothing),
                (None, Some(name)) => {
                    exit::warn(tool, &format!("nothing came on stdin: taking the record of ${VARIABLE}, {name:?}"));
                    Ok((by_variable(&name)?, None))
                }
            },
        }
    }
}

impl VmRecord {
    /// Reads the record of a VM: that of `name` or `-r`, else that of `$MSB_RECORD`, else the first value on stdin.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn take(&self, name: Option<&str>) -> Result<Record, SourceError> {
        match (name.or(self.record.as_deref()), variable()) {
            (Some("-"), _) | (None, None) => stdin(),
            (Some(name), _) => named(name),
            (None, Some(name)) if name == "-" => stdin(),
            (None, Some(name)) => by_variable(&name),
        }
    }
}

/// Stdin as a message names it.
const STDIN: &str = "stdin";

/// The value of `$MSB_RECORD`, unless it is empty.
pub fn variable() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|value| !value.is_empty())
}

/// Reads the record on stdin, the first value there.
///
/// # Errors
/// See [`SourceError`].
pub fn stdin() -> Result<Record, SourceError> {
    let kind = kind_of(io::stdin());
    if kind == Stdin::Terminal {
        return Err(SourceError::Terminal);
    }
    match line::take_value(io::stdin()).map_err(SourceError::Stdin)? {
        Some(value) => parse(STDIN, &value),
        None if kind == Stdin::File => Err(SourceError::Empty { source_name: STDIN.into() }),
        None => Err(SourceError::Nothing),
    }
}

fn parse(source_name: &str, text: &[u8]) -> Result<Record, SourceError> {
    Record::parse(text).map_err(|error| SourceError::NotARecord { source_name: source_name.into(), error })
}

fn by_variable(name: &str) -> Result<Record, SourceError> {
    named(name).map_err(|error| SourceError::Variable(Box::new(error)))
}

/// Reads the record of a running VM by its name, or the one in a file. A name without a slash is a VM first, because any
/// directory may hold a file of that name.
///
/// # Errors
/// [`SourceError::Lost`] for a VM whose run directory was removed; otherwise what is wrong with the name or the file.
pub fn named(name: &str) -> Result<Record, SourceError> {
    let file = locate(name)?;
    let text = fs::read(&file).map_err(|error| SourceError::File { name: name.into(), error })?;
    let Some(value) = line::first_value(&text) else {
        return Err(SourceError::Empty { source_name: format!("record {name:?}") });
    };
    parse(&format!("{name:?}"), value)
}

/// The files that a name may refer to; the first one that exists is meant.
pub fn candidates(name: &str) -> Vec<PathBuf> {
    let of_vm = name::run_dir(name).ok().filter(|_| is_vm_name(name));
    of_vm.map(|dir| dir.join(FILE_NAME)).into_iter().chain([PathBuf::from(name)]).collect()
}

fn is_vm_name(name: &str) -> bool {
    name::check(name).is_ok()
}

fn locate(name: &str) -> Result<PathBuf, SourceError> {
    if let Some(file) = candidates(name).into_iter().find(|file| file.exists() && !file.is_dir()) {
        return Ok(file);
    }
    if !is_vm_name(name) {
        // The caller's attempt to read it gives the reason.
        return Ok(name.into());
    }
    let (dir, name) = (name::run_dir(name), name.to_owned());
    match dir {
        Ok(dir) => Err(match supervisor::holder(&dir) {
            Some(pid) if !dir.exists() => SourceError::Lost(Lost { name, dir, pid }),
            Some(_) => SourceError::NotUp(name),
            None => SourceError::NoSuch { name, dir: dir.parent().unwrap_or(Path::new("/")).to_owned() },
        }),
        Err(error) => Err(SourceError::NoRunDirectory { name, error }),
    }
}

/// A VM that runs, but whose run directory was removed: only its supervisor can be reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "vm {name:?}: it runs, but its run directory {dir:?} was removed, so it cannot be reached (stop it: msb-stop {name})"
)]
pub struct Lost {
    /// The VM's name.
    pub name: String,
    /// Its run directory.
    pub dir: PathBuf,
    /// The process ID of its supervisor.
    pub pid: i32,
}

/// The kind of file that stdin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stdin {
    /// A terminal.
    Terminal,
    /// `/dev/null`, or closed.
    Null,
    /// A regular file.
    File,
    /// A pipe, a socket, or a device.
    Stream,
}

fn kind_of(fd: impl AsFd) -> Stdin {
    if fd.as_fd().is_terminal() {
        return Stdin::Terminal;
    }
    match rustix::fs::fstat(&fd) {
        Err(_) => Stdin::Null,
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Stdin::File,
            FileType::CharacterDevice if stat.st_rdev == rustix::fs::makedev(1, 3) => Stdin::Null,
            _ => Stdin::Stream,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_stdin_is_recognized() {
        let open = |path: &str| fs::File::open(path).unwrap();
        assert_eq!(kind_of(open("/dev/null")), Stdin::Null);
        assert_eq!(kind_of(open("/dev/zero")), Stdin::Stream);
        assert_eq!(kind_of(open("/proc/self/exe")), Stdin::File);
        assert_eq!(kind_of(io::pipe().unwrap().0), Stdin::Stream);
        assert_eq!(kind_of(std::os::unix::net::UnixStream::pair().unwrap().0), Stdin::Stream);
    }

    #[test]
    fn a_name_is_a_vm_first_and_a_path_is_not() {
        for path in ["./worker", "a/b", "/x", "-", "..", "a b"] {
            assert_eq!(candidates(path), [PathBuf::from(path)], "{path}");
        }
        let Ok(dir) = name::run_dir("worker") else { return };
        assert_eq!(candidates("worker"), [dir.join(FILE_NAME), "worker".into()]);
    }
}
