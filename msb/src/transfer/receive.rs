//! The receiving end: messages become a file or a tree.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::target::{self, Target};
use super::{MAX_DEPTH, at};
use crate::overlay::attributes::{self, Tolerance};
use crate::overlay::beneath::{self, Dir, Name};
use crate::overlay::{device, whiteout};
use crate::wire::upper::{Attributes, Entry, What};
use crate::wire::{Message, Stream};

/// The longest path, in bytes: `PATH_MAX` without its NUL.
const MAX_PATH: usize = 4095;
/// How many directories that were made are remembered.
const MAX_MADE: usize = 1 << 20;

/// Where messages come from.
pub trait Incoming {
    /// The stream that data belongs to.
    const STREAM: Stream;

    /// Receives a message; `None` at the end of the stream.
    ///
    /// # Errors
    /// The connection's, or why the peer sends no more.
    fn receive(&mut self) -> io::Result<Option<Message>>;
}

/// What the receiver takes over from the source, besides type, content, name, permissions and modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Owners, and the attributes of directories that exist.
    pub archive: bool,
    /// Device nodes.
    pub devices: bool,
    /// Set-id bits, and xattrs outside of `user.`. With them a sender decides about privileges on this machine.
    pub privileges: bool,
}

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Files of any type.
    pub files: u64,
    /// Bytes of content, without holes.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub devices_left_out: u64,
}

/// A directory whose entries are being received.
struct Level {
    dir: Dir,
    path: PathBuf,
    /// What it gets when it is complete.
    attributes: Option<Attributes>,
}

/// Receives a copy to `path` in `root`, see [`target::find`]. In a directory it gets `name`; without one, the name that the sender gives
/// it. A sender that is not trusted would choose which file is replaced.
///
/// # Errors
/// What cannot be made, what the peer did wrong, and the connection's. What is complete by then stays.
pub fn receive(
    incoming: &mut impl Incoming,
    root: &Dir,
    path: &Path,
    name: Option<&OsStr>,
    contents: bool,
    rules: Rules,
) -> io::Result<Received> {
    let mut receiver = Receiver { incoming, rules, received: Received::default(), made: HashSet::new() };
    let Some(first) = receiver.entry()? else { return Err(protocol("the stream is empty")) };
    let sent = first.name.clone().map(OsString::from).ok_or_else(|| protocol("an entry without a name"))?;
    let name = name.map_or(sent, OsStr::to_owned);
    let is_dir = matches!(first.what, What::Directory { .. });
    let (parent, name) =
        match target::find(root, path, &name, is_dir, contents).map_err(at(format_args!("{path:?}")))? {
            Target::As(parent, name) => (parent, name),
            Target::Into(dir) => {
                let attributes = first.attributes.filter(|_| rules.archive);
                return receiver.tree(Level { dir, path: PathBuf::new(), attributes });
            }
        };
    let shown = path.to_owned();
    match receiver.put(&parent, &name, Path::new(""), first, None).map_err(at(format_args!("{shown:?}")))? {
        Some(level) => receiver.tree(level),
        None => receiver.end(),
    }
}

struct Receiver<'a, I> {
    incoming: &'a mut I,
    rules: Rules,
    received: Received,
    /// The directories that were made, by device and inode: up to [`MAX_MADE`] of them may come once more, with other attributes.
    made: HashSet<(u64, u64)>,
}

impl<I: Incoming> Receiver<'_, I> {
    fn entry(&mut self) -> io::Result<Option<Entry>> {
        match self.incoming.receive()? {
            Some(Message::Entry(entry)) => Ok(Some(*entry)),
            Some(_) => Err(protocol("a message out of turn")),
            None => Ok(None),
        }
    }

    /// Receives everything in a directory, and the end of the stream.
    fn tree(mut self, first: Level) -> io::Result<Received> {
        let base = first.dir.try_clone()?;
        let mut levels = vec![first];
        while let Some(level) = levels.last() {
            let entry = self.entry()?.ok_or_else(|| protocol("it ends in a directory"))?;
            if entry.what == What::Leave {
                if let Some(attributes) = &level.attributes {
                    self.apply(&level.dir.to_entry()?, attributes).map_err(at(format_args!("{:?}", level.path)))?;
                }
                levels.pop();
                continue;
            }
            let name: OsString = entry.name.clone().ok_or_else(|| protocol("an entry without a name"))?.into();
            let path = level.path.join(&name);
            if path.as_os_str().len() > MAX_PATH {
                return Err(protocol("a path that is too long"));
            }
            let entered =
                self.put(&level.dir, &name, &path, entry, Some(&base)).map_err(at(format_args!("{path:?}")))?;
            if let Some(entered) = entered {
                levels.push(entered);
                if levels.len() > MAX_DEPTH {
                    return Err(io::Error::other(format!("{path:?}: deeper than {MAX_DEPTH} directories")));
                }
            }
        }
        self.end()
    }

    fn end(self) -> io::Result<Received> {
        match self.incoming.receive()? {
            None => Ok(self.received),
            Some(_) => Err(protocol("a message after the end")),
        }
    }

    /// Makes an entry in `dir`. Returns the level of a directory, whose entries follow. Links lead to files beneath `base`.
    fn put(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        path: &Path,
        entry: Entry,
        base: Option<&Dir>,
    ) -> io::Result<Option<Level>> {
        let name = Name::new(name)?;
        let there = dir.entry(name)?;
        let attributes = entry.attributes;
        if let What::Directory { .. } = entry.what {
            let (made, attributes) = match there {
                Some(there) if there.is_dir() => {
                    let takes_attributes = self.rules.archive || self.made.contains(&identity(&there));
                    (there.into_dir()?, attributes.filter(|_| takes_attributes))
                }
                Some(_) => return Err(io::Error::other("a file is there, and the source has a directory")),
                None => {
                    let made = dir.mkdir(name, Mode::RWXU)?;
                    if self.made.len() < MAX_MADE {
                        self.made.insert(identity(&made.to_entry()?));
                    }
                    (made, Some(attributes.unwrap_or_else(plain_directory)))
                }
            };
            self.received.files += 1;
            return Ok(Some(Level { dir: made, path: path.to_owned(), attributes }));
        }
        if there.is_some_and(|there| there.is_dir()) {
            return Err(io::Error::other("a directory is there, and the source has a file"));
        }
        let attributes = || attributes.as_ref().ok_or_else(|| protocol("an entry without attributes"));
        match entry.what {
            What::Directory { .. } | What::Leave => return Err(protocol("a directory that ends before it begins")),
            What::Whiteout | What::Link { .. } => return Err(protocol("an entry of a commit")),
            What::File { size } => self.file(dir, name, size, attributes()?)?,
            What::Symlink { target } => {
                let target: OsString = target.into();
                self.make(dir, name, attributes()?, |staged| dir.symlink(staged, &target))?;
            }
            What::Hardlink { path } => {
                let first =
                    open_link(base.ok_or_else(|| protocol("a link to nothing"))?, Path::new(&OsString::from(path)))?;
                Staged::make(dir, |staged| dir.link(staged, &first))?.publish(name)?;
            }
            What::Device { .. } if !self.rules.devices => {
                self.received.devices_left_out += 1;
                return Ok(None);
            }
            What::Device { block, major, minor } => {
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let number =
                    device::number(major, minor).ok_or_else(|| protocol("a device that Linux does not have"))?;
                self.make(dir, name, attributes()?, |staged| dir.mknod(staged, kind, Mode::empty(), number))?;
            }
            What::Fifo => {
                self.make(dir, name, attributes()?, |staged| dir.mknod(staged, FileType::Fifo, Mode::empty(), 0))?;
            }
            What::Socket => return Ok(None),
        }
        self.received.files += 1;
        Ok(None)
    }

    fn file(&mut self, dir: &Dir, name: Name<'_>, size: u64, attributes: &Attributes) -> io::Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        match dir.create_unnamed(mode) {
            Ok(unnamed) => {
                let unnamed = beneath::Entry::of_open(self.content(unnamed, size)?)?;
                self.apply(&unnamed, attributes)?;
                match dir.link(name, &unnamed) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        Staged::make(dir, |staged| dir.link(staged, &unnamed))?.publish(name)
                    }
                    other => other,
                }
            }
            // A file system without such files.
            Err(error) if is_unsupported(&error) => {
                let mut made = None;
                let staged = Staged::make(dir, |staged| dir.create(staged, mode).map(|file| made = Some(file)))?;
                let file = made.ok_or(Errno::NOENT)?;
                let entry = beneath::Entry::of_open(self.content(file, size)?)?;
                self.apply(&entry, attributes)?;
                staged.publish(name)
            }
            Err(error) => Err(error),
        }
    }

    fn content(&mut self, file: File, size: u64) -> io::Result<File> {
        file.set_len(size)?;
        let mut at = 0u64;
        while at < size {
            match self.incoming.receive()? {
                Some(Message::Data(stream, bytes))
                    if stream == I::STREAM && !bytes.is_empty() && bytes.len() as u64 <= size - at =>
                {
                    file.write_all_at(&bytes, at)?;
                    at += bytes.len() as u64;
                    self.received.bytes += bytes.len() as u64;
                }
                Some(Message::Hole(length)) if length > 0 && length <= size - at => at += length,
                Some(_) => return Err(protocol("a message out of turn")),
                None => return Err(protocol("it ends in a file")),
            }
        }
        Ok(file)
    }

    fn make(
        &self,
        dir: &Dir,
        name: Name<'_>,
        attributes: &Attributes,
        make: impl Fn(Name<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let staged = Staged::make(dir, make)?;
        self.apply(&dir.entry(Name::new(&staged.name)?)?.ok_or(Errno::NOENT)?, attributes)?;
        staged.publish(name)
    }

    fn apply(&self, file: &beneath::Entry, sent: &Attributes) -> io::Result<()> {
        let (seconds, nanoseconds) = sent.mtime;
        if nanoseconds >= 1_000_000_000 {
            // utimensat(2) gives two such numbers a meaning of their own.
            return Err(protocol("a time with more nanoseconds than a second has"));
        }
        let time = Timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as _ };
        let current = file.stat_now()?;
        let (uid, gid) =
            if self.rules.archive { (sent.uid.get(), sent.gid.get()) } else { (current.st_uid, current.st_gid) };
        let mode = sent.mode & if self.rules.privileges { 0o7777 } else { 0o1777 };
        let times = Some(Timestamps { last_access: time, last_modification: time });
        attributes::Attributes { uid, gid, mode, times }.apply(file, &current, || {
            for (name, value) in &sent.xattrs {
                let (name, value) = (OsString::from(name.clone()), OsString::from(value.clone()));
                let is_wanted = self.rules.privileges || name.as_bytes().starts_with(b"user.");
                if is_wanted && !whiteout::is_private_xattr(&name) {
                    attributes::set_xattr(file, &name, value.as_bytes(), Tolerance::Refused)
                        .map_err(at(format_args!("xattr {name:?}")))?;
                }
            }
            Ok::<_, io::Error>(true)
        })
    }
}

fn identity(entry: &beneath::Entry) -> (u64, u64) {
    (entry.stat().st_dev, entry.stat().st_ino)
}

/// The attributes of a directory that the stream does not describe.
fn plain_directory() -> Attributes {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    Attributes {
        mode: 0o755,
        uid: Default::default(),
        gid: Default::default(),
        mtime: (now.tv_sec, nanoseconds),
        xattrs: Vec::new(),
    }
}

/// Whether a file system has no files without a name.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT | Errno::NOSYS))
}

/// Opens the file at a path beneath `base`, without following a symlink.
fn open_link(base: &Dir, path: &Path) -> io::Result<beneath::Entry> {
    let name = path.file_name().ok_or_else(|| protocol("a link to nothing"))?;
    let dir = base.descend(path.parent().unwrap_or(Path::new("")))?;
    let first = dir.entry(Name::new(name)?)?.ok_or_else(|| protocol("a link to a file that did not come"))?;
    if first.is_dir() { Err(protocol("a link to a directory")) } else { Ok(first) }
}

fn protocol(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stream of the copy: {message}"))
}

/// A file with a temporary name, which is removed again unless it is published.
struct Staged<'d> {
    dir: &'d Dir,
    name: OsString,
}

impl<'d> Staged<'d> {
    fn make(dir: &'d Dir, mut make: impl FnMut(Name<'_>) -> io::Result<()>) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!(".msb-cp.{}.{number}", std::process::id()));
            match make(Name::new(&name)?) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self { dir, name }),
            }
        }
    }

    /// Gives the file its name, in place of a file that has it.
    fn publish(self, name: Name<'_>) -> io::Result<()> {
        // If both are names of one file, rename(2) does nothing, and the temporary name is removed.
        self.dir.rename(Name::new(&self.name)?, self.dir, name, RenameFlags::empty())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _ = Name::new(&self.name).and_then(|name| self.dir.unlink(name));
    }
}
