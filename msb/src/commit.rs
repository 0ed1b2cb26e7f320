//! The host's half of a commit: a stream of an overlayfs upper becomes part of an upper here.
//!
//! The sender is a guest, so nothing it says is believed: names are single components, what is opened is opened beneath the
//! upper, and its numbers end where the disk does from which it reads. What is here is a draft until all of it has come.

use std::collections::HashMap;
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
use crate::overlay::upper::{Writer, upper_of};
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
/// A file more counts as much as that many bytes.
const ENTRY_BYTES: u64 = 1 << 10;
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
    entries: u64,
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

/// Takes a whole stream from `guest`, whose disk has `disk` bytes, into the upper of `root`. The hellos are said.
///
/// # Errors
/// Words; the upper is half-changed then.
pub fn receive(guest: &mut impl Patient, root: &Merged, writer: &Writer, disk: u64) -> anyhow::Result<()> {
    let counted =
        Counted { data: 0, entries: 0, disk, started: Instant::now(), owed: Owed::in_portions_of(WINDOW / 4) };
    let upper = upper_of(root)?.try_clone()?;
    let mut receiver = Receiver { guest, writer, upper, counted, links: HashMap::new() };
    Message::Credit(Stream::Stdout, WINDOW).send(receiver.guest)?;
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
    /// The upper's own root.
    upper: Dir,
    counted: Counted,
    /// Files with several names, by number: a path to one of them, in the upper.
    links: HashMap<u64, PathBuf>,
}

impl<G: Patient> Receiver<'_, G> {
    fn entry(&mut self) -> anyhow::Result<Entry> {
        match self.message()? {
            Message::Entry(entry) => {
                self.counted.entries += 1;
                // A name in a directory of ext4 takes more than 16 bytes.
                if self.counted.entries > self.counted.disk / 16 {
                    bail!("guest: more files than its disk can hold");
                }
                Ok(*entry)
            }
            _ => bail!("guest: a message out of turn"),
        }
    }

    /// The next message. The guest is given credit for it, so that it never fills what is between.
    fn message(&mut self) -> anyhow::Result<Message> {
        let counted = &mut self.counted;
        let sent = counted.data + counted.entries * ENTRY_BYTES;
        let patience = PATIENCE + Duration::from_secs(sent / BYTES_A_SECOND);
        let left = patience.checked_sub(counted.started.elapsed()).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| anyhow!("guest: it sends too slowly"))?;
        self.guest.wait_at_most(left.min(PATIENCE))?;
        let message = Message::receive(self.guest).map_err(|error| anyhow!("guest: {error}"))?;
        let message = message.ok_or_else(|| anyhow!("guest: it hung up before it had sent all"))?;
        // The second one: a machine that cannot even start.
        if let Message::Failure(Failure { message, .. }) | Message::Ready(Ready { error: Some(message), .. }) = &message
        {
            bail!("guest: {}", crate::exit::printable(message));
        }
        let length = match &message {
            Message::Data(_, bytes) => HEADER + bytes.len(),
            other => other.to_frame().len(),
        };
        if let Some(owed) = counted.owed.add(length) {
            Message::Credit(Stream::Stdout, owed).send(self.guest)?;
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
                let file =
                    writer.place(upper_of(parent)?, name, |work, aside| work.create(aside, Mode::RUSR | Mode::WUSR));
                self.fill(&file?, size)?;
                dress(&present(parent, name)?, dressed()?)?;
            }
            What::Symlink { target } => {
                let target: OsString = target.into();
                self.make(parent, name, dressed()?, |work, aside| work.symlink(aside, &target))?;
            }
            What::Link { to } => {
                let there = self.links.get(&to).ok_or_else(|| anyhow!("guest: a link to a file that did not come"))?;
                let first = self.upper.descend(there.parent().unwrap_or(Path::new("")))?;
                let first = first.entry(Name::new(there.file_name().unwrap_or_default())?)?;
                let first = first.filter(|first| !first.is_dir()).ok_or_else(|| anyhow!("guest: the file is gone"))?;
                writer.place(upper_of(parent)?, name, |work, aside| work.link(aside, &first))?;
            }
            What::Device { block, major, minor } => {
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let device = crate::device::number(major, minor)
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
        if let Some(number) = entry.number {
            self.links.insert(number, path.to_owned());
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

/// The directory `name`, in the upper and ready for what is in it.
fn open_directory(writer: &Writer, parent: &Merged, name: Name<'_>, opaque: bool) -> anyhow::Result<Merged> {
    let there = parent.lookup(name)?;
    match there {
        Some(Node::Dir(merged)) if !opaque => {
            let dir = match merged.upper {
                Some(dir) => dir,
                None => Arc::new(writer.copy_up_dir(upper_of(parent)?, name, &merged.top().0.to_entry()?)?),
            };
            Ok(Merged { upper: Some(dir), lower: merged.lower })
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
    use crate::owner::Id;
    use crate::wire::exec::Text;

    /// A guest that has said all it will ever say.
    struct Said(io::Cursor<Vec<u8>>);

    impl Read for Said {
        fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
            self.0.read(block)
        }
    }

    impl Write for Said {
        fn write(&mut self, block: &[u8]) -> io::Result<usize> {
            Ok(block.len())
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

    /// What comes of a stream: its words, and the tree's names.
    fn take(messages: &[Message], disk: u64) -> (Result<(), String>, Vec<PathBuf>) {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["root/lower", "root/upper", "root/work"] {
            std::fs::create_dir_all(scratch.path().join(name)).unwrap();
        }
        let root = scratch.path().join("root");
        let merged = Merged::open(&[root.join("lower")], Some(&root.join("upper"))).unwrap();
        let writer = Writer::open(&root.join("work"), false).unwrap();
        let mut guest = Said(io::Cursor::new(messages.iter().flat_map(Message::to_frame).collect()));
        let taken = receive(&mut guest, &merged, &writer, disk).map_err(|error| format!("{error:#}"));
        let mut found = Vec::new();
        let mut pending = vec![scratch.path().to_owned()];
        while let Some(dir) = pending.pop() {
            for child in std::fs::read_dir(dir).unwrap() {
                let child = child.unwrap();
                if child.file_type().unwrap().is_dir() {
                    pending.push(child.path());
                }
                found.push(child.path().strip_prefix(scratch.path()).unwrap().to_owned());
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
            ([vec![directory(None)], vec![directory(Some("d")); 3000]].concat(), "deeper"),
        ] {
            let disk = if words == "deeper" { 1 << 20 } else { 1500 };
            let (taken, found) = take(&stream, disk);
            let error = taken.unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
            assert!(found.iter().all(|path| path.starts_with("root/upper")), "{found:?}");
        }
        let many: Vec<Message> =
            std::iter::once(directory(None)).chain((0..200).map(|n| entry(Some(&n.to_string()), What::Fifo))).collect();
        assert!(take(&many, 1000).0.unwrap_err().contains("more files"));
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
