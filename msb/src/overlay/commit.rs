//! The host's half of a commit: a stream of an overlayfs upper becomes part of an upper here.
//!
//! The sender is a guest, so nothing it says is believed: names are single components, what is opened is opened beneath the
//! upper, there are no more files than its disk has room for, and a file costs no memory once it is written. What is here is a
//! draft until all of it has come.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::overlay::beneath::{Dir, Entry as Opened, Name};
use crate::overlay::upper::{Scratch, Writer, upper_of};
use crate::overlay::{Merged, Node, whiteout};
use crate::wire::exec::{Failure, Ready};
use crate::wire::turn::Owed;
use crate::wire::upper::{Attributes, Entry, What};
use crate::wire::{HEADER, Message, Stream};

/// How much the guest may send before this side has taken it, in bytes: what fits into a socket between the two, for
/// vhost-device-vsock mixes up what does not. Without a quarter of it the longest frame still fits.
const WINDOW: u32 = 96 << 10;
/// The deepest directory.
const DEEPEST: usize = 1000;
/// Less than this in a second, and the guest is taken for one that only wants to be waited for.
const BYTES_A_SECOND: u64 = 64 << 10;
/// Each entry counts as this many bytes towards that rate.
const ENTRY_BYTES: u64 = 1 << 10;
/// The longest path, in bytes: `PATH_MAX` without its NUL.
const LONGEST_PATH: usize = 4095;
/// The largest file of an ext4 with blocks of 4 KiB, in bytes. Most of it is holes then: its data has to fit on the disk.
const LARGEST_FILE: u64 = 16 << 40;
/// The least that a file takes on an ext4, in bytes: the smallest inode.
const INODE_BYTES: u64 = 128;
/// The least that a name takes there, in bytes: a directory entry of one to four letters.
const NAME_BYTES: u64 = 12;
/// How long the guest may take before it sends anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is read until a moment, and never waits longer.
pub trait Patient: Read + Write {
    /// Lets the next read wait no longer than that.
    ///
    /// # Errors
    /// What setting it says.
    fn wait_at_most(&mut self, patience: Duration) -> io::Result<()>;
}

impl Patient for std::os::unix::net::UnixStream {
    fn wait_at_most(&mut self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

/// What has come so far, against what there can be.
struct Counted {
    data: u64,
    names: u64,
    files: u64,
    disk: u64,
    started: Instant,
    owed: Owed,
}

/// A directory of the upper that is being filled.
struct Level {
    merged: Merged,
    path: PathBuf,
    attributes: Attributes,
}

/// Sends a message to a guest that may have hung up already: why it did, is in what it sent before, which is there to be read.
///
/// # Errors
/// What writing says, but that nobody reads.
pub fn tell(guest: &mut impl Write, message: &Message) -> io::Result<()> {
    match message.send(guest) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        other => other,
    }
}

/// Takes a whole stream from `guest`, whose disk has `disk` bytes, into the upper of `root`. The hellos are said.
///
/// # Errors
/// Words; the upper is half-changed then.
pub fn receive(guest: &mut impl Patient, root: &Merged, writer: &Writer, disk: u64) -> anyhow::Result<()> {
    let counted =
        Counted { data: 0, names: 0, files: 0, disk, started: Instant::now(), owed: Owed::in_portions_of(WINDOW / 4) };
    let links = writer.scratch()?;
    let mut receiver = Receiver { guest, writer, counted, links };
    tell(receiver.guest, &Message::Credit(Stream::Stdout, WINDOW))?;
    let first = receiver.entry()?;
    let (What::Directory { .. }, Some(attributes), None) = (first.what, first.attributes, first.name) else {
        bail!("guest: the first entry is not the root");
    };
    let mut levels = vec![Level { merged: root.clone(), path: PathBuf::new(), attributes }];
    while let Some(level) = levels.last() {
        let entry = receiver.entry()?;
        if entry.what == What::Leave {
            dress(&upper_of(&level.merged)?.to_entry()?, &level.attributes)?;
            levels.pop();
            continue;
        }
        let name: OsString = entry.name.clone().ok_or_else(|| anyhow!("guest: an entry without a name"))?.into();
        let path = level.path.join(&name);
        if path.as_os_str().len() > LONGEST_PATH {
            bail!("guest: a path longer than {LONGEST_PATH} bytes");
        }
        let deeper = receiver.put(level, &name, &path, entry).with_context(|| format!("{path:?}"))?;
        if let Some(deeper) = deeper {
            levels.push(deeper);
            if levels.len() > DEEPEST {
                bail!("{path:?}: deeper than {DEEPEST} directories");
            }
        }
    }
    Ok(())
}

struct Receiver<'a, G> {
    guest: &'a mut G,
    writer: &'a Writer,
    counted: Counted,
    /// One more name for each file that has several, its number: so a link costs no memory, whatever is at its path by then.
    links: Scratch<'a>,
}

impl<G: Patient> Receiver<'_, G> {
    fn entry(&mut self) -> anyhow::Result<Entry> {
        match self.message()? {
            Message::Entry(entry) => {
                self.counted.add(&entry.what)?;
                Ok(*entry)
            }
            _ => bail!("guest: a message out of turn"),
        }
    }

    /// The next message. The guest is given credit for it, so that it never fills what is between.
    fn message(&mut self) -> anyhow::Result<Message> {
        let counted = &mut self.counted;
        let sent = counted.data + counted.names * ENTRY_BYTES;
        let patience = PATIENCE + Duration::from_secs(sent / BYTES_A_SECOND);
        let left = patience.checked_sub(counted.started.elapsed()).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| anyhow!("guest: it sends too slowly"))?;
        self.guest.wait_at_most(left.min(PATIENCE))?;
        let message = Message::receive(self.guest).map_err(|error| anyhow!("guest: {error}"))?;
        let message = message.ok_or_else(|| anyhow!("guest: it hung up before it had sent all"))?;
        // The second one: a machine that cannot even start.
        if let Message::Failure(Failure { message, .. }) | Message::Ready(Ready { error: Some(message), .. }) = &message
        {
            bail!("guest: {}", crate::record::printable(message));
        }
        let length = match &message {
            Message::Data(_, bytes) => HEADER + bytes.len(),
            other => other.to_frame().len(),
        };
        if let Some(owed) = counted.owed.add(length) {
            tell(self.guest, &Message::Credit(Stream::Stdout, owed))?;
        }
        Ok(message)
    }

    /// Puts one entry into the directory of `level`. `Some`: it is a directory, and what follows is in it.
    fn put(&mut self, level: &Level, name: &OsStr, path: &Path, entry: Entry) -> anyhow::Result<Option<Level>> {
        let (parent, name) = (&level.merged, Name::new(name)?);
        let attributes = entry.attributes;
        let dressed = || attributes.as_ref().ok_or_else(|| anyhow!("guest: an entry without attributes"));
        let writer = self.writer;
        match entry.what {
            What::Leave => unreachable!("taken by the caller"),
            What::Directory { opaque } => {
                let attributes = dressed()?.clone();
                let merged = open_directory(writer, parent, name, opaque)?;
                return Ok(Some(Level { merged, path: path.to_owned(), attributes }));
            }
            What::Whiteout => writer.remove(parent, name)?,
            What::File { size } => {
                if size > LARGEST_FILE {
                    bail!("guest: a file of {size} bytes, which its file system cannot hold");
                }
                let file =
                    writer.place(upper_of(parent)?, name, |work, aside| work.create(aside, Mode::RUSR | Mode::WUSR));
                self.fill(&file?, size)?;
                let made = present(parent, name)?;
                dress(&made, dressed()?)?;
                if let Some(number) = entry.number {
                    self.links.dir.link(Name::new(link_name(number).as_ref())?, &made).context("guest: its number")?;
                }
            }
            What::Symlink { target } => {
                let target: OsString = target.into();
                self.make(parent, name, dressed()?, |work, aside| work.symlink(aside, &target))?;
            }
            What::Link { to } => {
                let first = self.links.dir.entry(Name::new(link_name(to).as_ref())?)?;
                let first = first.ok_or_else(|| anyhow!("guest: a link to a file that did not come"))?;
                writer.place_link(upper_of(parent)?, name, &first)?;
            }
            What::Device { block, major, minor } => {
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let device = crate::overlay::device::number(major, minor)
                    .ok_or_else(|| anyhow!("guest: Linux has no device {major}:{minor}"))?;
                if kind == FileType::CharacterDevice && device == 0 {
                    bail!("guest: a whiteout that says that it is a device");
                }
                self.make(parent, name, dressed()?, |work, aside| work.mknod(aside, kind, Mode::empty(), device))?;
            }
            What::Fifo | What::Socket => {
                let kind = if entry.what == What::Fifo { FileType::Fifo } else { FileType::Socket };
                self.make(parent, name, dressed()?, |work, aside| work.mknod(aside, kind, Mode::empty(), 0))?;
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
    ) -> anyhow::Result<()> {
        self.writer.place(upper_of(parent)?, name, make)?;
        dress(&present(parent, name)?, attributes)
    }

    fn fill(&mut self, file: &File, size: u64) -> anyhow::Result<()> {
        file.set_len(size)?;
        let mut at = 0u64;
        while at < size {
            match self.message()? {
                Message::Data(Stream::Stdout, bytes) if !bytes.is_empty() && bytes.len() as u64 <= size - at => {
                    self.counted.data += bytes.len() as u64;
                    if self.counted.data > self.counted.disk {
                        bail!("guest: more data than its disk can hold");
                    }
                    file.write_all_at(&bytes, at)?;
                    at += bytes.len() as u64;
                }
                Message::Hole(length) if length > 0 && length <= size - at => at += length,
                _ => bail!("guest: a message out of turn"),
            }
        }
        Ok(())
    }
}

impl Counted {
    /// Counts an entry of a stream.
    fn add(&mut self, what: &What) -> anyhow::Result<()> {
        match what {
            What::Leave => return Ok(()),
            // Names alone: overlayfs makes all its whiteouts names of one file.
            What::Link { .. } | What::Whiteout => {}
            _ => self.files += 1,
        }
        self.names += 1;
        if self.files > self.disk / INODE_BYTES || self.names > self.disk / NAME_BYTES {
            bail!("guest: more files than its disk can hold");
        }
        Ok(())
    }
}

fn link_name(number: u64) -> OsString {
    format!("{number:x}").into()
}

/// The directory `name`, in the upper and ready for what is in it.
fn open_directory(writer: &Writer, parent: &Merged, name: Name<'_>, opaque: bool) -> anyhow::Result<Merged> {
    let there = parent.lookup(name)?;
    match there {
        Some(Node::Dir(merged)) if !opaque => {
            if merged.upper.is_some() {
                return Ok(merged);
            }
            let dir = writer.copy_up_dir(upper_of(parent)?, name, &merged.top().0.to_entry()?)?;
            Ok(merged.copied_up(Arc::new(dir)))
        }
        there => {
            if there.is_some() {
                writer.remove(parent, name)?;
            }
            writer.make_dir(parent, name, Mode::RWXU)?;
            match parent.lookup(name)? {
                Some(Node::Dir(merged)) => Ok(merged),
                _ => bail!("it was made, and is not there"),
            }
        }
    }
}

fn present(parent: &Merged, name: Name<'_>) -> anyhow::Result<Opened> {
    upper_of(parent)?.entry(name)?.ok_or_else(|| anyhow!("it was made, and is not there"))
}

/// Gives a file its looks, in the order in which the kernel does not undo them.
fn dress(file: &Opened, attributes: &Attributes) -> anyhow::Result<()> {
    file.set_owner(Some(attributes.uid.get()), Some(attributes.gid.get()))?;
    for name in file.xattr_names()?.iter().filter(|name| !whiteout::is_private_xattr(name)) {
        let wanted = attributes.xattrs.iter().any(|(wanted, _)| OsString::from(wanted.clone()) == *name);
        // A directory's old ones; security modules of this host have their own.
        if !wanted && !name.as_bytes().starts_with(b"security.") {
            file.remove_xattr(name)?;
        }
    }
    for (name, value) in &attributes.xattrs {
        let (name, value) = (OsString::from(name.clone()), OsString::from(value.clone()));
        if whiteout::is_private_xattr(&name) {
            bail!("guest: xattr {name:?} is overlayfs's own");
        }
        file.set_xattr(&name, value.as_bytes(), XattrFlags::empty()).with_context(|| format!("xattr {name:?}"))?;
    }
    if file.file_type() != FileType::Symlink {
        file.set_mode(Mode::from_raw_mode(attributes.mode & 0o7777))?;
    }
    let (seconds, nanoseconds) = attributes.mtime;
    if nanoseconds >= 1_000_000_000 {
        // Two of these numbers would mean "now" and "leave it as it is" (utimensat(2)).
        bail!("guest: {nanoseconds} nanoseconds are more than a second has");
    }
    let time = Timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as _ };
    Ok(file.set_times(&Timestamps { last_access: time, last_modification: time })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::owner::Id;
    use crate::wire::exec::Text;

    /// A guest that has said all it will ever say, and what comes of writing to it.
    struct Said(io::Cursor<Vec<u8>>, Option<io::ErrorKind>);

    impl Read for Said {
        fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
            self.0.read(block)
        }
    }

    impl Write for Said {
        fn write(&mut self, block: &[u8]) -> io::Result<usize> {
            self.1.map_or(Ok(block.len()), |kind| Err(kind.into()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Patient for Said {
        fn wait_at_most(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn entry(name: Option<&str>, what: What) -> Message {
        let stat = rustix::fs::stat("/proc/self").unwrap();
        let id = |number: u32| Id::new(number.into()).unwrap();
        let (uid, gid) = (id(stat.st_uid), id(stat.st_gid));
        let attributes = Attributes { mode: 0o755, uid, gid, mtime: (1, 2), xattrs: Vec::new() };
        let name = name.map(Text::from);
        Message::Entry(Box::new(Entry { name, what, attributes: Some(attributes), number: Some(7) }))
    }

    fn directory(name: Option<&str>) -> Message {
        entry(name, What::Directory { opaque: false })
    }

    fn file(name: &str) -> Message {
        entry(Some(name), What::File { size: 0 })
    }

    /// What comes of a stream: its error, and the tree's names.
    fn take(messages: &[Message], disk: u64) -> (Result<(), String>, Vec<PathBuf>) {
        take_in(tempfile::tempdir().unwrap().path(), messages, None, disk)
    }

    fn take_in(
        scratch: &Path,
        messages: &[Message],
        written: Option<io::ErrorKind>,
        disk: u64,
    ) -> (Result<(), String>, Vec<PathBuf>) {
        for name in ["root/lower", "root/upper", "root/work"] {
            std::fs::create_dir_all(scratch.join(name)).unwrap();
        }
        let root = scratch.join("root");
        let merged = Merged::open(&[root.join("lower")], Some(&root.join("upper"))).unwrap();
        let writer = Writer::open(&root.join("work"), false).unwrap();
        let mut guest = Said(io::Cursor::new(messages.iter().flat_map(Message::to_frame).collect()), written);
        let taken = receive(&mut guest, &merged, &writer, disk).map_err(|error| format!("{error:#}"));
        let mut found = Vec::new();
        let mut pending = vec![scratch.to_owned()];
        while let Some(dir) = pending.pop() {
            for child in std::fs::read_dir(dir).unwrap() {
                let child = child.unwrap();
                if child.file_type().unwrap().is_dir() {
                    pending.push(child.path());
                }
                found.push(child.path().strip_prefix(scratch).unwrap().to_owned());
            }
        }
        found.retain(|path| {
            ![Path::new("root"), Path::new("root/lower"), Path::new("root/upper"), Path::new("root/work")]
                .contains(&path.as_path())
        });
        found.sort();
        (taken, found)
    }

    #[test]
    fn what_a_guest_said_before_it_hung_up_is_the_error() {
        let failure = || Message::Failure(Failure { code: 1, message: "mount: no".into() });
        let ready = Message::Ready(Ready { error: Some("mount: no".into()), ..Ready::default() });
        for (messages, written, expected) in [
            (vec![failure()], io::ErrorKind::BrokenPipe, "guest: mount: no"),
            (vec![ready], io::ErrorKind::ConnectionReset, "guest: mount: no"),
            (vec![directory(None), failure()], io::ErrorKind::BrokenPipe, "guest: mount: no"),
            (vec![], io::ErrorKind::BrokenPipe, "guest: it hung up before it had sent all"),
            (vec![failure()], io::ErrorKind::TimedOut, "timed out"),
        ] {
            let (taken, _) = take_in(tempfile::tempdir().unwrap().path(), &messages, Some(written), 1 << 20);
            assert_eq!(taken.unwrap_err(), expected, "{messages:?}");
        }
    }

    #[test]
    fn a_stream_becomes_a_tree() {
        let data = Message::Data(Stream::Stdout, b"data".to_vec());
        let stream = [
            directory(None),
            directory(Some("d")),
            entry(Some("f"), What::File { size: 14 }),
            Message::Hole(10),
            data,
            entry(None, What::Leave),
            entry(Some("l"), What::Link { to: 7 }),
            entry(None, What::Leave),
        ];
        let (taken, found) = take(&stream, 1 << 20);
        assert_eq!(taken, Ok(()));
        assert_eq!(found, ["root/upper/d", "root/upper/d/f", "root/upper/l"].map(PathBuf::from));
    }

    #[test]
    fn no_stream_leaves_the_upper_or_says_more_than_its_disk_holds() {
        let data = || Message::Data(Stream::Stdout, vec![0; 1000]);
        let to_etc = || entry(Some("way"), What::Symlink { target: "../..".into() });
        for (stream, words) in [
            (vec![entry(Some("f"), What::Fifo)], "not the root"),
            (vec![directory(None), entry(Some(".."), What::Fifo)], "Invalid argument"),
            (vec![directory(None), entry(Some("a/b"), What::Fifo)], "Invalid argument"),
            (vec![directory(None), entry(None, What::Fifo)], "without a name"),
            (vec![directory(None), entry(Some("l"), What::Link { to: 9 })], "did not come"),
            (vec![directory(None), entry(Some("f"), What::File { size: 999 }), data()], "out of turn"),
            (vec![directory(None), entry(Some("f"), What::File { size: 9 }), Message::Hole(10)], "out of turn"),
            (vec![directory(None), entry(Some("f"), What::File { size: 9999 }), data(), data()], "more data"),
            (vec![directory(None), to_etc(), directory(Some("d"))], "hung up"),
            (vec![directory(None), Message::Credit(Stream::Stdin, 1)], "out of turn"),
            (vec![Message::Ready(Ready { error: Some("no disk\x1b[m".into()), ..Ready::default() })], "guest: no disk"),
            (vec![Message::Ready(Ready::default())], "out of turn"),
            (vec![directory(None); 3000], "without a name"),
            (
                vec![directory(None), entry(Some("f"), What::Fifo), entry(Some("l"), What::Link { to: 7 })],
                "did not come",
            ),
            (vec![directory(None), entry(Some("f"), What::File { size: (16 << 40) + 1 })], "cannot hold"),
            (vec![directory(None), file("f"), file("g")], "its number"),
            ([vec![directory(None)], vec![directory(Some(&"x".repeat(250))); 17]].concat(), "longer than 4095"),
            ([vec![directory(None)], vec![directory(Some("d")); 3000]].concat(), "deeper"),
        ] {
            let disk = if ["deeper", "longer than 4095"].contains(&words) { 1 << 20 } else { 1500 };
            let (taken, found) = take(&stream, disk);
            let error = taken.unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
            assert!(found.iter().all(|path| path.starts_with("root/upper")), "{found:?}");
        }
    }

    #[test]
    fn there_are_no_more_files_and_names_than_the_disk_has_room_for() {
        // The root is a file and a name, too.
        for (what, least) in [(What::Fifo, 128), (What::Whiteout, 12), (What::Link { to: 7 }, 12)] {
            for (count, fits) in [(100, true), (101, false)] {
                let mut stream = vec![directory(None), file("first")];
                stream.extend((3..=count).map(|n| entry(Some(&n.to_string()), what.clone())));
                stream.push(entry(None, What::Leave));
                let (taken, _) = take(&stream, 100 * least);
                assert_eq!(taken.is_ok(), fits, "{what:?} {count}: {taken:?}");
                assert!(fits || taken.unwrap_err().contains("more files"));
            }
        }
    }

    #[test]
    fn a_link_is_to_the_file_of_its_number_whatever_is_at_its_path_by_then() {
        let other = |message| match message {
            Message::Entry(mut entry) => {
                entry.number = Some(8);
                Message::Entry(entry)
            }
            other => other,
        };
        let stream = [
            directory(None),
            entry(Some("f"), What::File { size: 5 }),
            Message::Data(Stream::Stdout, b"first".to_vec()),
            other(file("f")),
            entry(Some("l"), What::Link { to: 7 }),
            entry(Some("l"), What::Link { to: 7 }),
            entry(Some("m"), What::Link { to: 8 }),
            entry(None, What::Leave),
        ];
        let scratch = tempfile::tempdir().unwrap();
        let (taken, _) = take_in(scratch.path(), &stream, None, 1 << 20);
        assert_eq!(taken, Ok(()));
        let read = |name| std::fs::read_to_string(scratch.path().join("root/upper").join(name)).unwrap();
        assert_eq!([read("l"), read("f"), read("m")], ["first", "", ""]);
        assert_eq!(std::fs::read_dir(scratch.path().join("root/work")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_behind_a_symlink_of_the_stream_is_not_followed() {
        let stream = [
            directory(None),
            entry(Some("way"), What::Symlink { target: "/".into() }),
            directory(Some("way")),
            entry(Some("f"), What::Fifo),
            entry(None, What::Leave),
            entry(None, What::Leave),
        ];
        let (taken, found) = take(&stream, 1 << 20);
        assert_eq!(taken, Ok(()));
        assert_eq!(found, ["root/upper/way", "root/upper/way/f"].map(PathBuf::from));
    }
}
