//! The host's half of a commit: the stream of an overlayfs upper is merged into an upper on the host.
//!
//! The sender is a guest and is not trusted: names are single components, files are opened beneath the upper, there are no more of them
//! than fit on the guest's disk, and a file takes no memory once it is written. The caller stages the upper, so nothing is visible
//! before the stream is complete.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use crate::overlay::attributes::{self, Tolerance};
use crate::overlay::beneath::{self, Dir, Name};
use crate::overlay::error::{At, Error};
use crate::overlay::upper::{Scratch, Writer, upper_of};
use crate::overlay::{Merged, Node, user_namespace, whiteout};
use crate::wire::exec::{Failure, Ready};
use crate::wire::sequence::OwedCredit;
use crate::wire::upper::{Attributes, Entry, What};
use crate::wire::{Message, Stream};

/// How much the guest may send before the host has received it, in bytes. It fits into the sockets between the two, since
/// vhost-device-vsock garbles what does not; and the longest frame fits into three quarters of it.
const WINDOW: u32 = 96 << 10;
/// How deep directories may nest.
const MAX_DEPTH: usize = 1000;
/// The minimum rate of a stream, in bytes a second. The connection of a slower guest is closed, so that the host does not wait for it.
const MIN_RATE: u64 = 64 << 10;
/// Each entry counts as this many bytes towards that rate.
const ENTRY_BYTES: u64 = 1 << 10;
/// The longest path, in bytes: `PATH_MAX` without its NUL.
const MAX_PATH: usize = 4095;
/// The largest file of an ext4 with blocks of 4 KiB, in bytes. Its data has to fit on the disk, so most of such a file is holes.
const MAX_FILE: u64 = 16 << 40;
/// The least space that a file takes on an ext4, in bytes: the smallest inode.
const INODE_BYTES: u64 = 128;
/// The least space that a name takes there, in bytes: a directory entry of one to four letters.
const NAME_BYTES: u64 = 12;
/// How long the guest may pause.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a guest whose reads can time out.
pub trait Connection: Read + Write {
    /// Limits how long the next read waits.
    ///
    /// # Errors
    /// The error of setting the limit.
    fn set_read_timeout(&mut self, timeout: Duration) -> io::Result<()>;
}

impl Connection for std::os::unix::net::UnixStream {
    fn set_read_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        Self::set_read_timeout(self, Some(timeout))
    }
}

/// How much has been received, and what limits it.
struct Progress {
    data: u64,
    names: u64,
    files: u64,
    disk: u64,
    started: Instant,
    owed: OwedCredit,
}

/// A directory of the upper whose entries are being received.
struct Level {
    merged: Merged,
    path: PathBuf,
    attributes: Attributes,
}

/// Sends a message to a guest. A closed connection is not an error here: the reason is in what the guest sent before.
///
/// # Errors
/// The error of writing, except EPIPE and ECONNRESET.
pub fn send(guest: &mut impl Write, message: &Message) -> io::Result<()> {
    match message.send(guest) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        other => other,
    }
}

/// Receives a stream from `guest`, whose disk has `disk` bytes, into the upper of `root`. The hellos have been exchanged.
///
/// # Errors
/// [`Error::Content`] for what the guest did wrong, else the error of a system call. The upper is incomplete then.
pub fn receive(guest: &mut impl Connection, root: &Merged, writer: &Writer, disk: u64) -> Result<(), Error> {
    let progress = Progress {
        data: 0,
        names: 0,
        files: 0,
        disk,
        started: Instant::now(),
        owed: OwedCredit::in_batches_of(WINDOW / 4),
    };
    let links = writer.scratch()?;
    let mut receiver = Receiver { guest, writer, progress, links };
    send(receiver.guest, &Message::Credit(Stream::Stdout, WINDOW))?;
    let first = receiver.entry()?;
    let (What::Directory { .. }, Some(attributes), None) = (first.what, first.attributes, first.name) else {
        return Err(guest_error("the first entry is not the root"));
    };
    let mut levels = vec![Level { merged: root.clone(), path: PathBuf::new(), attributes }];
    while let Some(level) = levels.last() {
        let entry = receiver.entry()?;
        if entry.what == What::Leave {
            apply_attributes(&upper_of(&level.merged)?.to_entry()?, &level.attributes)?;
            levels.pop();
            continue;
        }
        let name: OsString = entry.name.clone().ok_or_else(|| guest_error("an entry without a name"))?.into();
        let path = level.path.join(&name);
        if path.as_os_str().len() > MAX_PATH {
            return Err(guest_error(format!("a path longer than {MAX_PATH} bytes")));
        }
        let entered = receiver.put(level, &name, &path, entry).at(|| format!("{path:?}"))?;
        if let Some(entered) = entered {
            levels.push(entered);
            if levels.len() > MAX_DEPTH {
                return Err(Error::Content(format!("{path:?}: deeper than {MAX_DEPTH} directories")));
            }
        }
    }
    Ok(())
}

struct Receiver<'a, G> {
    guest: &'a mut G,
    writer: &'a Writer,
    progress: Progress,
    /// A hardlink to each file that has several names, named by its number. So a link takes no memory, and its target need not be at
    /// its first path any more.
    links: Scratch<'a>,
}

impl<G: Connection> Receiver<'_, G> {
    fn entry(&mut self) -> Result<Entry, Error> {
        match self.message()? {
            Message::Entry(entry) => {
                self.progress.add(&entry.what)?;
                Ok(*entry)
            }
            _ => Err(guest_error("a message out of turn")),
        }
    }

    /// Receives a message, and gives the guest credit for it.
    fn message(&mut self) -> Result<Message, Error> {
        let progress = &mut self.progress;
        let sent = progress.data + progress.names * ENTRY_BYTES;
        let allowed = TIMEOUT + Duration::from_secs(sent / MIN_RATE);
        let left = allowed.checked_sub(progress.started.elapsed()).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| guest_error("it sends too slowly"))?;
        self.guest.set_read_timeout(left.min(TIMEOUT))?;
        let message = Message::receive(self.guest).map_err(guest_error)?;
        let message = message.ok_or_else(|| guest_error("it closed the connection before it had sent everything"))?;
        // A guest that fails during its boot sends Ready with an error.
        if let Message::Failure(Failure { message, .. }) | Message::Ready(Ready { error: Some(message), .. }) = &message
        {
            return Err(guest_error(crate::record::printable(message)));
        }
        if let Some(owed) = progress.owed.add(message.frame_length()) {
            send(self.guest, &Message::Credit(Stream::Stdout, owed))?;
        }
        Ok(message)
    }

    /// Makes an entry in the directory of `level`. Returns the level of a directory, whose entries follow.
    fn put(&mut self, level: &Level, name: &OsStr, path: &Path, entry: Entry) -> Result<Option<Level>, Error> {
        let (parent, name) = (&level.merged, Name::new(name)?);
        let attributes = entry.attributes;
        let attributes = || attributes.as_ref().ok_or_else(|| guest_error("an entry without attributes"));
        let writer = self.writer;
        match entry.what {
            What::Leave => unreachable!("taken by the caller"),
            What::Directory { opaque } => {
                let attributes = attributes()?.clone();
                let merged = open_directory(writer, parent, name, opaque)?;
                return Ok(Some(Level { merged, path: path.to_owned(), attributes }));
            }
            What::Whiteout => writer.remove(parent, name)?,
            What::File { size } => {
                if size > MAX_FILE {
                    return Err(guest_error(format!("a file of {size} bytes, which its file system cannot hold")));
                }
                let mode = Mode::RUSR | Mode::WUSR;
                let file = writer.replace(upper_of(parent)?, name, |work, staged| work.create(staged, mode));
                self.receive_data(&file?, size)?;
                let made = existing(parent, name)?;
                apply_attributes(&made, attributes()?)?;
                if let Some(number) = entry.number {
                    let name = link_name(number);
                    self.links.dir.link(Name::new(name.as_ref())?, &made).at(|| "guest: its number")?;
                }
            }
            What::Symlink { target } => {
                let target: OsString = target.into();
                self.make(parent, name, attributes()?, |work, staged| work.symlink(staged, &target))?;
            }
            What::Link { to } => {
                let first = self.links.dir.entry(Name::new(link_name(to).as_ref())?)?;
                let first = first.ok_or_else(|| guest_error("a link to a file that did not come"))?;
                writer.replace_with_link(upper_of(parent)?, name, &first)?;
            }
            What::Hardlink { .. } => return Err(guest_error("an entry of a copy")),
            What::Device { block, major, minor } => {
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let device = crate::overlay::device::number(major, minor)
                    .ok_or_else(|| guest_error(format!("Linux has no device {major}:{minor}")))?;
                if kind == FileType::CharacterDevice && device == 0 {
                    return Err(guest_error("a device 0/0, which is a whiteout"));
                }
                let make = |work: &Dir, staged: Name<'_>| work.mknod(staged, kind, Mode::empty(), device);
                match self.make(parent, name, attributes()?, make) {
                    // Only root of the host can make one.
                    Err(error) if !user_namespace::is_initial() && is_not_permitted(&error) => {}
                    made => made?,
                }
            }
            What::Fifo | What::Socket => {
                let kind = if entry.what == What::Fifo { FileType::Fifo } else { FileType::Socket };
                self.make(parent, name, attributes()?, |work, staged| work.mknod(staged, kind, Mode::empty(), 0))?;
            }
        }
        Ok(None)
    }

    fn make(
        &self,
        parent: &Merged,
        name: Name<'_>,
        attributes: &Attributes,
        make: impl FnOnce(&Dir, Name<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.writer.replace(upper_of(parent)?, name, make)?;
        apply_attributes(&existing(parent, name)?, attributes)
    }

    fn receive_data(&mut self, file: &File, size: u64) -> Result<(), Error> {
        file.set_len(size)?;
        let mut at = 0u64;
        while at < size {
            match self.message()? {
                Message::Data(Stream::Stdout, bytes) if !bytes.is_empty() && bytes.len() as u64 <= size - at => {
                    self.progress.data += bytes.len() as u64;
                    if self.progress.data > self.progress.disk {
                        return Err(guest_error("more data than its disk can hold"));
                    }
                    file.write_all_at(&bytes, at)?;
                    at += bytes.len() as u64;
                }
                Message::Hole(length) if length > 0 && length <= size - at => at += length,
                _ => return Err(guest_error("a message out of turn")),
            }
        }
        Ok(())
    }
}

impl Progress {
    /// Counts an entry of a stream.
    fn add(&mut self, what: &What) -> Result<(), Error> {
        match what {
            What::Leave => return Ok(()),
            // Only names: overlayfs hardlinks its whiteouts.
            What::Link { .. } | What::Whiteout => {}
            _ => self.files += 1,
        }
        self.names += 1;
        if self.files > self.disk / INODE_BYTES || self.names > self.disk / NAME_BYTES {
            return Err(guest_error("more files than its disk can hold"));
        }
        Ok(())
    }
}

fn guest_error(message: impl std::fmt::Display) -> Error {
    Error::Content(format!("guest: {message}"))
}

fn link_name(number: u64) -> OsString {
    format!("{number:x}").into()
}

/// The directory `name` in the upper, copied up or made.
fn open_directory(writer: &Writer, parent: &Merged, name: Name<'_>, opaque: bool) -> Result<Merged, Error> {
    match parent.lookup(name)? {
        Some(Node::Dir(merged)) if !opaque => {
            if merged.upper.is_some() {
                return Ok(merged);
            }
            let dir = writer.copy_up_dir(upper_of(parent)?, name, &merged.top().0.to_entry()?)?;
            Ok(merged.copied_up(Arc::new(dir)))
        }
        existing => {
            if existing.is_some() {
                writer.remove(parent, name)?;
            }
            writer.make_dir(parent, name, Mode::RWXU)?;
            match parent.lookup(name)? {
                Some(Node::Dir(merged)) => Ok(merged),
                _ => Err(Error::Host("it was made and has vanished".into())),
            }
        }
    }
}

/// The kernel's answer for a device node in a user namespace.
fn is_not_permitted(error: &Error) -> bool {
    matches!(error, Error::System(error) if Errno::from_io_error(error) == Some(Errno::PERM))
}

fn existing(parent: &Merged, name: Name<'_>) -> Result<beneath::Entry, Error> {
    upper_of(parent)?.entry(name)?.ok_or_else(|| Error::Host("it was made and has vanished".into()))
}

/// Applies the attributes that the guest sent. Xattrs that it did not send are removed.
fn apply_attributes(file: &beneath::Entry, sent: &Attributes) -> Result<(), Error> {
    let (seconds, nanoseconds) = sent.mtime;
    if nanoseconds >= 1_000_000_000 {
        // utimensat(2) gives two such numbers a meaning of their own: UTIME_NOW and UTIME_OMIT.
        return Err(guest_error(format!("{nanoseconds} nanoseconds are more than a second")));
    }
    let time = Timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as _ };
    let times = Some(Timestamps { last_access: time, last_modification: time });
    let (uid, gid, mode) = (sent.uid.get(), sent.gid.get(), sent.mode & 0o7777);
    let applied = attributes::Attributes { uid, gid, mode, times };
    applied.apply(file, file.stat(), || {
        for name in file.xattr_names()?.iter().filter(|name| !whiteout::is_private_xattr(name)) {
            let was_sent = sent.xattrs.iter().any(|(other, _)| OsString::from(other.clone()) == *name);
            // Security modules of this host set xattrs of their own.
            if !was_sent && !name.as_bytes().starts_with(b"security.") {
                file.remove_xattr(name)?;
            }
        }
        for (name, value) in &sent.xattrs {
            let (name, value) = (OsString::from(name.clone()), OsString::from(value.clone()));
            if whiteout::is_private_xattr(&name) {
                return Err(guest_error(format!("xattr {name:?} is one of overlayfs itself")));
            }
            let set = attributes::set_xattr(file, &name, value.as_bytes(), Tolerance::Nothing);
            set.at(|| format!("xattr {name:?}"))?;
        }
        // An ACL that was removed has changed the mode, too.
        Ok(true)
    })
}

#[cfg(test)]
mod tests;
