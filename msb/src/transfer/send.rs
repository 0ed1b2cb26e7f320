//! The sending end: a file or a tree becomes messages.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::{MAX_DEPTH, at};
use crate::overlay::beneath::{self, Dir, Name};
use crate::overlay::whiteout;
use crate::record::owner::Id;
use crate::wire::exec::Text;
use crate::wire::upper::{Attributes, Entry, What};
use crate::wire::{Message, Stream};

/// The size of the messages with a file's content, in bytes: with its header, such a message is one packet of vsock that every VMM
/// delivers.
pub const CHUNK: usize = 30 << 10;
/// How much is read of a file whose size is not known, in bytes.
const MAX_UNSIZED: u64 = 4 << 20;

/// The largest size that says nothing, in bytes: the files of /proc give 0, and those of /sys a page.
const PSEUDO_SIZE: u64 = 4096;

/// Where messages go.
pub trait Sink {
    /// The stream that data belongs to, see [`TO_HOST`](super::TO_HOST) and [`TO_GUEST`](super::TO_GUEST).
    const STREAM: Stream;

    /// Sends a message, when the peer accepts it.
    ///
    /// # Errors
    /// The connection's, or why the peer takes no more.
    fn send(&mut self, message: &Message) -> io::Result<()>;
}

/// What is copied.
#[derive(Debug)]
pub struct Source {
    /// The name of the copy in a directory.
    pub name: OsString,
    /// Whether what the directory contains is copied, and not the directory itself.
    pub contents: bool,
    /// The file.
    pub entry: beneath::Entry,
}

/// The name of a source, and whether its path stands for the contents of a directory: it ends in `/.`, or has no name at its end.
pub fn name_of(path: &Path) -> (OsString, bool) {
    let bytes = path.as_os_str().as_bytes();
    match path.file_name() {
        Some(name) => (name.to_owned(), bytes.ends_with(b"/.")),
        None => (".".into(), true),
    }
}

/// Opens a source in a root. Symlinks are followed inside the root, the last component only if `follow` is set or the path has a slash
/// behind it.
///
/// # Errors
/// Those of `openat2(2)`; a path that ends in a slash and leads to a file.
pub fn open(root: &Dir, path: &Path, follow: bool) -> io::Result<Source> {
    let (name, contents) = name_of(path);
    let bytes = path.as_os_str().as_bytes();
    let is_dir_path = contents || bytes.ends_with(b"/");
    let entry = match path.parent() {
        Some(parent) if !follow && !is_dir_path => {
            let parent = if parent.as_os_str().is_empty() { Path::new("/") } else { parent };
            root.entry_in_root(parent)?.into_dir()?.entry(Name::new(&name)?)?.ok_or(Errno::NOENT)?
        }
        _ => root.entry_in_root(path)?,
    };
    if is_dir_path && !entry.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(Source { name, contents, entry })
}

/// Sends a source. The first message is its entry; what a directory contains follows, and [`What::Leave`] ends it. Sockets are left out.
///
/// # Errors
/// The file that cannot be read, or those of the sink.
pub fn send(sink: &mut impl Sink, source: Source) -> io::Result<()> {
    let mut sender = Sender { sink, sent: HashMap::new() };
    if !source.entry.is_dir() {
        return sender.leaf(&source.name, source.entry, Path::new(&source.name));
    }
    sender.directory(&source.name, &source.entry)?;
    let mut levels = vec![Level::new(source.entry.into_dir()?, PathBuf::new())?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.next().map_err(at(format_args!("{:?}", level.path)))? else {
            sender.put(None, What::Leave, None)?;
            levels.pop();
            continue;
        };
        let path = level.path.join(&name);
        // Another process may have removed it.
        let Some(entry) = level.dir.entry(Name::new(&name)?).map_err(at(format_args!("{path:?}")))? else { continue };
        if !entry.is_dir() {
            sender.leaf(&name, entry, &path)?;
            continue;
        }
        if levels.len() >= MAX_DEPTH {
            return Err(io::Error::other(format!("{path:?}: deeper than {MAX_DEPTH} directories")));
        }
        sender.directory(&name, &entry).map_err(at(format_args!("{path:?}")))?;
        levels.push(Level::new(entry.into_dir()?, path)?);
    }
    Ok(())
}

/// A directory that is being sent.
struct Level {
    dir: Dir,
    /// Its path from the first directory.
    path: PathBuf,
    entries: rustix::fs::Dir,
}

impl Level {
    fn new(dir: Dir, path: PathBuf) -> io::Result<Self> {
        let entries = dir.read().map_err(at(format_args!("{path:?}")))?;
        Ok(Self { dir, path, entries })
    }

    fn next(&mut self) -> io::Result<Option<OsString>> {
        for child in self.entries.by_ref() {
            let child = child?;
            let name = child.file_name().to_bytes();
            if name != b"." && name != b".." {
                return Ok(Some(OsStr::from_bytes(name).to_owned()));
            }
        }
        Ok(None)
    }
}

struct Sender<'a, S> {
    sink: &'a mut S,
    /// The path of the first name of each file with several.
    sent: HashMap<(u64, u64), PathBuf>,
}

impl<S: Sink> Sender<'_, S> {
    fn put(&mut self, name: Option<&OsStr>, what: What, attributes: Option<Attributes>) -> io::Result<()> {
        let entry = Entry { name: name.map(Text::from), what, attributes, number: None };
        self.sink.send(&Message::Entry(Box::new(entry)))
    }

    fn directory(&mut self, name: &OsStr, entry: &beneath::Entry) -> io::Result<()> {
        self.put(Some(name), What::Directory { opaque: false }, Some(attributes_of(entry)?))
    }

    fn leaf(&mut self, name: &OsStr, entry: beneath::Entry, path: &Path) -> io::Result<()> {
        let stat = *entry.stat();
        let file = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.sent.get(&file) {
            let path = Text::from(first.as_os_str());
            return self.put(Some(name), What::Hardlink { path }, None);
        }
        let kind = entry.file_type();
        let what = match kind {
            FileType::RegularFile => return self.file(name, &entry, path).map_err(at(format_args!("{path:?}"))),
            FileType::Symlink => What::Symlink { target: entry.read_link()?.as_os_str().into() },
            FileType::Fifo => What::Fifo,
            // No process listens on a copy.
            FileType::Socket => return Ok(()),
            device => What::Device {
                block: device == FileType::BlockDevice,
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
        };
        let attributes = attributes_of(&entry).map_err(at(format_args!("{path:?}")))?;
        self.put(Some(name), what, Some(attributes))
    }

    fn file(&mut self, name: &OsStr, entry: &beneath::Entry, path: &Path) -> io::Result<()> {
        let stat = entry.stat();
        let attributes = Some(attributes_of(entry)?);
        let file = entry.open_to_read()?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size <= PSEUDO_SIZE {
            let mut content = Vec::new();
            (&file).take(MAX_UNSIZED + 1).read_to_end(&mut content)?;
            if content.len() as u64 > MAX_UNSIZED {
                return Err(io::Error::other(format!(
                    "has more than {MAX_UNSIZED} bytes, though its size is given as {size}"
                )));
            }
            self.put(Some(name), What::File { size: content.len() as u64 }, attributes)?;
            for part in content.chunks(CHUNK) {
                self.sink.send(&Message::Data(S::STREAM, part.to_vec()))?;
            }
        } else {
            self.put(Some(name), What::File { size }, attributes)?;
            send_content(&mut |message| self.sink.send(message), S::STREAM, &file, size, CHUNK)?;
        }
        if stat.st_nlink > 1 {
            self.sent.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        Ok(())
    }
}

/// Sends the first `size` bytes of a file, its data in messages of at most `chunk` bytes, and its holes as holes.
///
/// # Errors
/// A file that is shorter; the error of reading or of `send`.
pub fn send_content(
    send: &mut impl FnMut(&Message) -> io::Result<()>,
    stream: Stream,
    file: &File,
    size: u64,
    chunk: usize,
) -> io::Result<()> {
    let mut block = vec![0u8; chunk];
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => {
                if u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0) < size {
                    return Err(io::Error::other("it became shorter while it was read"));
                }
                size
            }
            // On a file system without SEEK_DATA, everything is data.
            Err(_) => at,
        };
        if data > at {
            send(&Message::Hole(data - at))?;
            at = data;
            continue;
        }
        let end = rustix::fs::seek(file, SeekFrom::Hole(at)).unwrap_or(size).min(size).max(at + 1);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(chunk).min(chunk);
            let got = file.read_at(&mut block[..wanted], at)?;
            if got == 0 {
                return Err(io::Error::other("it became shorter while it was read"));
            }
            send(&Message::Data(stream, block[..got].to_vec()))?;
            at += got as u64;
        }
    }
    Ok(())
}

/// The attributes of a file, without the xattrs of overlayfs.
///
/// # Errors
/// Those of reading xattrs.
pub fn attributes_of(entry: &beneath::Entry) -> io::Result<Attributes> {
    let stat = entry.stat();
    let mut xattrs = Vec::new();
    for name in entry.xattr_names()?.into_iter().filter(|name| !whiteout::is_private_xattr(name)) {
        let value = entry.xattr(&name)?;
        xattrs.push((Text::from(name.as_os_str()), Text::from(OsStr::from_bytes(&value))));
    }
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let mode = stat.st_mode & 0o7777;
    let id = |number: u32| Id::new(number.into()).map_err(io::Error::other);
    Ok(Attributes { mode, uid: id(stat.st_uid)?, gid: id(stat.st_gid)?, mtime: (stat.st_mtime, nanoseconds), xattrs })
}
