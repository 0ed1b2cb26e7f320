//! The journal of a fold: the steps that move what is staged above an upper into it. It is written before the first step, and a step
//! that is done is not done again. So a run that is killed is completed by the next process that locks the upper, and what such a
//! process sees is the old upper or the new one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, RenameFlags, Stat, Timespec, Timestamps};

use super::attributes::{Attributes, copy_xattrs};
use super::beneath::{Dir, Entry, Name};
use super::whiteout;

/// The directory of the work directory that has what is staged, and after a fold what the upper had in its place.
pub const STAGED: &str = "msb.upper";
/// The journal there.
const JOURNAL: &str = "msb.journal";
/// The journal while it is written.
const UNFINISHED: &str = "msb.journal.new";
/// The first line of a journal, and the last one: a change of the format changes it.
const MARK: &[u8] = b"msb fold 1";

/// Seconds and nanoseconds of the last access and of the last modification.
pub type Times = [i64; 4];

/// A step. Its path is that of a file in the upper, and of the staged one. Inode numbers tell which of the two is where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The staged file `new` changes places with what the upper has, `old`.
    Place {
        /// The path.
        path: PathBuf,
        /// The inode number of the staged file.
        new: u64,
        /// That of the upper's, if it has one.
        old: Option<u64>,
    },
    /// The file `new` of the upper goes to where it was staged.
    Return {
        /// The path.
        path: PathBuf,
        /// Its inode number.
        new: u64,
    },
    /// The staged whiteout `new` changes places with the upper's file `old`, and is removed.
    Remove {
        /// The path.
        path: PathBuf,
        /// The inode number of the whiteout.
        new: u64,
        /// That of the file.
        old: u64,
    },
    /// The directory of the upper gets the attributes of the staged one.
    Attributes {
        /// The path.
        path: PathBuf,
        /// The times that the staged one had before steps changed them.
        times: Times,
    },
}

impl Step {
    /// The step that undoes this one, apart from the times of a directory.
    pub fn reverse(&self) -> Self {
        match self.clone() {
            Self::Place { path, new, old: Some(old) } => Self::Place { path, new: old, old: Some(new) },
            Self::Place { path, new, old: None } => Self::Return { path, new },
            Self::Return { path, new } => Self::Place { path, new, old: None },
            Self::Remove { path, old, .. } => Self::Place { path, new: old, old: None },
            same @ Self::Attributes { .. } => same,
        }
    }

    /// Does the step, unless it is done.
    fn run(&self, staged: &Dir, upper: &Dir) -> io::Result<()> {
        let path = match self {
            Self::Attributes { path, times } => {
                return take_attributes(&staged.descend(path)?, &upper.descend(path)?, times);
            }
            Self::Place { path, .. } | Self::Return { path, .. } | Self::Remove { path, .. } => path,
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = Name::new(path.file_name().unwrap_or_default())?;
        let (staged, upper) = (staged.descend(parent)?, upper.descend(parent)?);
        let there = upper.entry(name)?.map(|entry| entry.stat().st_ino);
        match *self {
            Self::Place { new, .. } if there == Some(new) => Ok(()),
            Self::Place { .. } if there.is_some() => staged.rename(name, &upper, name, RenameFlags::EXCHANGE),
            Self::Place { .. } => staged.rename(name, &upper, name, RenameFlags::NOREPLACE),
            Self::Return { new, .. } if there == Some(new) => upper.rename(name, &staged, name, RenameFlags::NOREPLACE),
            Self::Return { .. } => Ok(()),
            Self::Remove { new, .. } => {
                match there {
                    None => return Ok(()),
                    Some(there) if there == new => {}
                    Some(_) => staged.rename(name, &upper, name, RenameFlags::EXCHANGE)?,
                }
                upper.unlink(name)
            }
            Self::Attributes { .. } => unreachable!("returned above"),
        }
    }
}

/// Gives a directory of the upper the attributes of a staged one. What overlayfs itself has set stays.
fn take_attributes(from: &Dir, to: &Dir, times: &Times) -> io::Result<()> {
    let (from, to) = (from.to_entry()?, to.to_entry()?);
    let has = |entry: &Entry| -> io::Result<Vec<OsString>> {
        Ok(entry.xattr_names()?.into_iter().filter(|name| !whiteout::is_private_xattr(name)).collect())
    };
    let wanted = has(&from)?;
    for name in has(&to)?.iter().filter(|name| !wanted.contains(name)) {
        to.remove_xattr(name)?;
    }
    let [seconds, nanoseconds, modified, modified_nanoseconds] = *times;
    let times = Timestamps {
        last_access: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        last_modification: Timespec { tv_sec: modified, tv_nsec: modified_nanoseconds },
    };
    let attributes = Attributes { times: Some(times), ..Attributes::of(from.stat()) };
    attributes.apply(&to, to.stat(), || copy_xattrs(&from, &to, |_| true))
}

/// The times of a file.
pub fn times(stat: &Stat) -> Times {
    [stat.st_atime as _, stat.st_atime_nsec as _, stat.st_mtime as _, stat.st_mtime_nsec as _]
}

/// Runs steps.
///
/// # Errors
/// The error of a system call, with the path.
pub fn run(steps: &[Step], staged: &Dir, upper: &Dir) -> io::Result<()> {
    steps.iter().try_for_each(|step| {
        step.run(staged, upper).map_err(|error| {
            let (Step::Place { path, .. }
            | Step::Return { path, .. }
            | Step::Remove { path, .. }
            | Step::Attributes { path, .. }) = step;
            io::Error::new(error.kind(), format!("{path:?}: {error}"))
        })
    })
}

/// Writes the journal of steps for the upper at `upper` into its work directory, in place of one that is there. What is staged has been
/// synced. The upper's inode number tells it from another one that is at its path later.
///
/// # Errors
/// The error of writing; what was there stays then.
pub fn write(work: &Dir, upper: &Path, steps: &[Step]) -> io::Result<()> {
    let (journal, unfinished) = (name(JOURNAL)?, name(UNFINISHED)?);
    let written = (|| {
        let inode = Dir::open(upper)?.stat()?.st_ino;
        let mut file = work.create(unfinished, Mode::RUSR | Mode::WUSR)?;
        file.write_all(&encode(upper, inode, steps))?;
        // The steps follow the name of the journal to the disk, as all changes of names do; only its data does not.
        file.sync_data()?;
        work.rename(unfinished, work, journal, RenameFlags::empty())
    })();
    if written.is_err() {
        let _ = work.unlink(unfinished);
    }
    written
}

/// Removes the journal: all its steps are done.
///
/// # Errors
/// The error of unlinking.
pub fn remove(work: &Dir) -> io::Result<()> {
    work.unlink(name(JOURNAL)?)
}

/// Whether a run was killed between its first step and its last.
///
/// # Errors
/// The error of opening.
pub fn exists(work: &Dir) -> io::Result<bool> {
    Ok(work.entry(name(JOURNAL)?)?.is_some())
}

/// Completes a run that was killed between its first step and its last. The caller has the exclusive lock on the work directory.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a journal of another release, or if the upper is not at its path; else the error of a system call.
pub fn recover(work: &Dir) -> io::Result<()> {
    let Some(entry) = work.entry(name(JOURNAL)?)? else { return Ok(()) };
    let recover = || -> io::Result<()> {
        if entry.file_type() != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = Vec::new();
        File::read_to_end(&mut entry.open_to_read()?, &mut text)?;
        let (upper, inode, steps) = decode(&text).ok_or(io::ErrorKind::InvalidData)?;
        let at = |error: io::Error| io::Error::new(error.kind(), format!("upper {upper:?}: {error}"));
        let top = Dir::open(&upper).map_err(at)?;
        if top.stat()?.st_ino != inode {
            return Err(at(io::Error::new(io::ErrorKind::InvalidData, "another directory is there")));
        }
        run(&steps, &work.dir(name(STAGED)?)?, &top)?;
        remove(work)
    };
    recover().map_err(|error| {
        // A caller that finds no work directory does without a lock.
        let kind = if error.kind() == io::ErrorKind::NotFound { io::ErrorKind::InvalidData } else { error.kind() };
        let advice = format!("removing {JOURNAL} leaves the upper half changed");
        io::Error::new(kind, format!("an interrupted patch cannot be completed: {error} ({advice})"))
    })
}

fn name(text: &'static str) -> io::Result<Name<'static>> {
    Name::new(OsStr::new(text))
}

/// Words, each with a NUL behind it.
fn encode(upper: &Path, inode: u64, steps: &[Step]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut put = |word: &[u8]| {
        text.extend_from_slice(word);
        text.push(0);
    };
    put(MARK);
    put(upper.as_os_str().as_bytes());
    put(inode.to_string().as_bytes());
    for step in steps {
        let (letter, path, numbers) = match step {
            Step::Place { path, new, old } => ("p", path, [Some(*new), *old].into_iter().flatten().collect()),
            Step::Return { path, new } => ("t", path, vec![*new]),
            Step::Remove { path, new, old } => ("r", path, vec![*new, *old]),
            Step::Attributes { path, times } => ("a", path, times.map(i64::cast_unsigned).to_vec()),
        };
        put(letter.as_bytes());
        put(numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ").as_bytes());
        put(path.as_os_str().as_bytes());
    }
    put(MARK);
    text
}

fn decode(text: &[u8]) -> Option<(PathBuf, u64, Vec<Step>)> {
    let path = |word: &[u8]| PathBuf::from(OsString::from_vec(word.to_vec()));
    let numbers = |word: &[u8]| -> Option<Vec<u64>> {
        std::str::from_utf8(word).ok()?.split(' ').map(|number| number.parse().ok()).collect()
    };
    let mut words = text.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    words.next().filter(|word| *word == MARK)?;
    let upper = path(words.next()?);
    let &[inode] = numbers(words.next()?)?.as_slice() else { return None };
    let mut steps = Vec::new();
    loop {
        let letter = words.next()?;
        if letter == MARK {
            return words.next().is_none().then_some((upper, inode, steps));
        }
        let (numbers, path) = (numbers(words.next()?)?, path(words.next()?));
        steps.push(match (letter, numbers.as_slice()) {
            (b"p", &[new]) => Step::Place { path, new, old: None },
            (b"p", &[new, old]) => Step::Place { path, new, old: Some(old) },
            (b"t", &[new]) => Step::Return { path, new },
            (b"r", &[new, old]) => Step::Remove { path, new, old },
            (b"a", &[a, b, c, d]) => Step::Attributes { path, times: [a, b, c, d].map(u64::cast_signed) },
            _ => return None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_as_it_was_written_and_a_cut_one_is_refused() {
        let path = |text: &str| PathBuf::from(text);
        let steps = [
            Step::Place { path: path("a b\nc"), new: 7, old: None },
            Step::Place { path: path("msb fold 1"), new: 8, old: Some(9) },
            Step::Remove { path: path("d/e"), new: 10, old: 11 },
            Step::Return { path: path("d/f"), new: 12 },
            Step::Attributes { path: path("d"), times: [-1, 0, i64::MAX, 999_999_999] },
            Step::Attributes { path: path(""), times: [0; 4] },
        ];
        let text = encode(Path::new("/up/per"), 6, &steps);
        assert_eq!(decode(&text), Some((path("/up/per"), 6, steps.to_vec())));
        for end in 0..text.len() {
            assert_eq!(decode(&text[..end]), None, "{end}");
        }
    }
}
