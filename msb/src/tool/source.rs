//! Where a tool takes its record from: a name, a file, a pipe, or `$MSB_RECORD`.
//!
//! A stage of the pipe prefers what is piped in. The tools for running VMs leave stdin alone as long as the record is named
//! elsewhere, because it belongs to the command.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rustix::fs::FileType;

use crate::record::{FILE_NAME, Record};
use crate::vm::{name, supervisor};
use crate::{tool::exit, tool::line};

/// The variable that names a record.
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

impl StageRecord {
    /// Takes the record of a stage: `-r`, else what is piped in, else `$MSB_RECORD`. What follows the record on stdin stays
    /// unread.
    ///
    /// # Errors
    /// A source that is missing, empty or holds no record.
    pub fn take(&self, tool: &str) -> anyhow::Result<Record> {
        match self.take_before(tool, |_| false)? {
            (record, None) => Ok(record),
            (_, Some(_)) => bail!("stdin: not a record"),
        }
    }

    /// As [`StageRecord::take`], for a stage that reads values of its own behind the record. If the first value on stdin is
    /// one of those, by `is_own`, the record is that of `$MSB_RECORD`, and the value is returned with it: it was read.
    ///
    /// # Errors
    /// As for [`StageRecord::take`].
    pub fn take_before(&self, tool: &str, is_own: impl Fn(&[u8]) -> bool) -> anyhow::Result<(Record, Option<Vec<u8>>)> {
        let variable = variable();
        match (self.record.as_deref(), kind_of(io::stdin()), variable) {
            (Some("-"), ..) => Ok((stdin()?, None)),
            (Some(name), ..) => Ok((named(name)?, None)),
            (None, Stdin::Terminal | Stdin::Null, Some(name)) => Ok((by_variable(&name)?, None)),
            (None, Stdin::Terminal, None) => bail!(ON_TERMINAL),
            (None, Stdin::Null, None) => bail!(NOTHING),
            (None, kind, variable) => match (line::take_value(io::stdin()).context("stdin")?, variable) {
                (Some(value), Some(name)) if is_own(&value) => Ok((by_variable(&name)?, Some(value))),
                (Some(value), None) if is_own(&value) => {
                    bail!("stdin: an operation, and no record before it (pipe the record in first, or name it with -r)")
                }
                (Some(value), _) => Ok((Record::parse(&value).context("stdin")?, None)),
                (None, _) if kind == Stdin::File => bail!("stdin: {EMPTY}"),
                (None, None) => bail!(NOTHING),
                (None, Some(name)) => {
                    exit::warn(tool, &format!("nothing came on stdin: taking the record of ${VARIABLE}, {name:?}"));
                    Ok((by_variable(&name)?, None))
                }
            },
        }
    }
}

impl VmRecord {
    /// Takes the record of a VM: `name` or `-r`, else `$MSB_RECORD`, else the first value on stdin.
    ///
    /// # Errors
    /// A source that is missing, empty or holds no record.
    pub fn take(&self, name: Option<&str>) -> anyhow::Result<Record> {
        match (name.or(self.record.as_deref()), variable()) {
            (Some("-"), _) | (None, None) => stdin(),
            (Some(name), _) => named(name),
            (None, Some(name)) if name == "-" => stdin(),
            (None, Some(name)) => by_variable(&name),
        }
    }
}

const ON_TERMINAL: &str = "no record: stdin is a terminal (pipe a record in, or name one with -r)";
const NOTHING: &str = "no record on stdin (the previous stage failed, or nothing is piped in: use -r FILE)";
const EMPTY: &str = "it is empty: the tool that wrote it failed";

/// What `$MSB_RECORD` names.
pub fn variable() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|value| !value.is_empty())
}

/// The first value on stdin.
///
/// # Errors
/// A terminal, nothing, or something else than a record.
pub fn stdin() -> anyhow::Result<Record> {
    let kind = kind_of(io::stdin());
    if kind == Stdin::Terminal {
        bail!(ON_TERMINAL);
    }
    match line::take_value(io::stdin()).context("stdin")? {
        Some(value) => Record::parse(&value).context("stdin"),
        None if kind == Stdin::File => bail!("stdin: {EMPTY}"),
        None => bail!(NOTHING),
    }
}

fn by_variable(name: &str) -> anyhow::Result<Record> {
    named(name).with_context(|| format!("${VARIABLE}"))
}

/// The record of a running VM by its name, or one in a file. A word without a slash is a VM first: a file of that name may
/// lie in any directory that somebody works in.
///
/// # Errors
/// [`Lost`] for a VM whose run directory was removed; else what is wrong with the name or the file.
pub fn named(name: &str) -> anyhow::Result<Record> {
    let file = locate(name)?;
    let text = fs::read(&file).map_err(|error| anyhow!("record {name:?}: {error}"))?;
    let Some(value) = line::first_value(&text) else { bail!("record {name:?}: {EMPTY}") };
    Record::parse(value).with_context(|| format!("{name:?}"))
}

/// The files that a name may stand for, the first of which exists is meant.
pub fn places(name: &str) -> Vec<PathBuf> {
    let of_vm = name::run_dir(name).ok().filter(|_| is_word(name));
    of_vm.map(|dir| dir.join(FILE_NAME)).into_iter().chain([PathBuf::from(name)]).collect()
}

fn is_word(name: &str) -> bool {
    name::check(name).is_ok()
}

fn locate(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(place) = places(name).into_iter().find(|place| place.exists() && !place.is_dir()) {
        return Ok(place);
    }
    if !is_word(name) {
        // Reading says what is wrong.
        return Ok(name.into());
    }
    match name::run_dir(name) {
        Ok(dir) => match supervisor::holder(&dir) {
            Some(pid) if !dir.exists() => Err(Lost { name: name.into(), dir, pid }.into()),
            Some(_) => bail!("record {name:?}: the VM of that name is not up yet"),
            None => bail!(
                "record {name:?}: no such file, and no VM of that name is running in {:?}",
                dir.parent().unwrap_or(Path::new("/"))
            ),
        },
        Err(error) => bail!("record {name:?}: no such file, and nowhere to look for a VM of that name: {error}"),
    }
}

/// A VM that runs, but whose run directory was removed. Nothing but its supervisor can be reached.
#[derive(Debug, thiserror::Error)]
#[error(
    "vm {name:?}: it runs, but its run directory {dir:?} was removed, so it cannot be reached (stop it: msb-stop {name})"
)]
pub struct Lost {
    /// The VM's name.
    pub name: String,
    /// Its run directory.
    pub dir: PathBuf,
    /// Its supervisor.
    pub pid: i32,
}

/// What stdin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stdin {
    /// Somebody types.
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
    fn stdin_is_told_from_nothing() {
        let open = |path: &str| fs::File::open(path).unwrap();
        assert_eq!(kind_of(open("/dev/null")), Stdin::Null);
        assert_eq!(kind_of(open("/dev/zero")), Stdin::Stream);
        assert_eq!(kind_of(open("/proc/self/exe")), Stdin::File);
        assert_eq!(kind_of(io::pipe().unwrap().0), Stdin::Stream);
        assert_eq!(kind_of(std::os::unix::net::UnixStream::pair().unwrap().0), Stdin::Stream);
    }

    #[test]
    fn a_word_is_a_vm_first_and_a_path_never() {
        for path in ["./worker", "a/b", "/x", "-", "..", "a b"] {
            assert_eq!(places(path), [PathBuf::from(path)], "{path}");
        }
        let Ok(dir) = name::run_dir("worker") else { return };
        assert_eq!(places("worker"), [dir.join(FILE_NAME), "worker".into()]);
    }
}
