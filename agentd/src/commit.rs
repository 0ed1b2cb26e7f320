//! The guest's half of a commit: no command runs, the disk is mounted read-only, and its upper is sent to the host as a stream.
//! A commit is a boot of its own, so nothing writes to the disk, however the previous machine ended.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use msb::overlay::beneath::{self, Dir, Name};
use msb::overlay::whiteout;
use msb::transfer::TO_HOST;
use msb::transfer::send::{attributes_of, send_content};
use msb::vm::boot::{self, Boot};
use msb::wire::exec::{Failure, Text};
use msb::wire::upper::{Attributes, Entry, What};
use msb::wire::{HEADER, MAX_DATA, Message, Stream};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::error::Error;
use crate::{channel, early, etc, path};

/// Sends the upper to the host.
///
/// # Errors
/// The step that failed. The host discards what it has received.
pub fn run(boot: &Boot) -> Result<(), Error> {
    early::mount_steps(boot)?;
    let failed = |why: io::Error| Error::step("commit".into(), why);
    let mut sender = Sender::connect().map_err(failed)?;
    // The guest has written the disk: a symlink there could lead into this machine's own root.
    let upper = Dir::open(Path::new(boot::SCRATCH)).and_then(|top| top.dir(Name::new(OsStr::new("upper"))?));
    let upper = upper.map_err(|why| io::Error::new(why.kind(), format!("upper on the scratch disk: {why}")));
    match upper.and_then(|upper| send_tree(&mut sender, upper)) {
        Ok(()) => sender.hang_up().map_err(failed),
        Err(error) => {
            // This fails if the connection itself is broken, which the host has noticed.
            let failure = Failure::new(1, error.to_string());
            let _ = Message::Failure(failure).send(&mut sender.host);
            Err(failed(error))
        }
    }
}

/// The size of a message with a file's content. vhost-device-vsock loses parts of larger ones on connections from the guest.
const CHUNK: usize = 16 << 10;

/// The connection to the host, and how many bytes the host accepts now.
struct Sender {
    host: UnixStream,
    credit: u64,
}

impl Sender {
    fn connect() -> io::Result<Self> {
        let mut host = channel::connect()?;
        Message::hello().send(&mut host)?;
        Message::receive_hello(&mut host).map_err(io::Error::other)?;
        Ok(Self { host, credit: 0 })
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let frame = message.to_frame();
        if frame.len() > HEADER + MAX_DATA {
            return Err(io::Error::other("the xattrs of a file are too large to send"));
        }
        while self.credit < frame.len() as u64 {
            match Message::receive(&mut self.host).map_err(io::Error::other)? {
                Some(Message::Credit(Stream::Stdout, bytes)) => self.credit += u64::from(bytes),
                _ => return Err(io::Error::other("the host closed the connection")),
            }
        }
        self.credit -= frame.len() as u64;
        io::Write::write_all(&mut self.host, &frame)
    }

    fn entry(&mut self, name: Option<&OsStr>, what: What, attributes: Option<Attributes>) -> io::Result<()> {
        self.send(&Message::Entry(Box::new(Entry { name: name.map(Text::from), what, attributes, number: None })))
    }

    /// Waits until the host has read everything and closed the connection.
    fn hang_up(mut self) -> io::Result<()> {
        while Message::receive(&mut self.host).is_ok_and(|message| message.is_some()) {}
        Ok(())
    }
}

/// A directory that is being sent, its path, and the names in it that have not been sent.
struct Level {
    dir: Dir,
    path: PathBuf,
    names: Vec<OsString>,
}

impl Level {
    fn new(dir: Dir, path: PathBuf) -> io::Result<Self> {
        let mut names = Vec::new();
        for child in dir.read()? {
            let name = child?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(Self { dir, path, names })
    }
}

/// Sends everything except the agent's mount points. agentd removes those at the end of a machine, but not after a crash or if an init
/// ended it.
fn send_tree(sender: &mut Sender, root: Dir) -> io::Result<()> {
    sender.entry(None, What::Directory { opaque: false }, Some(attributes_of(&root.to_entry()?)?))?;
    let mut levels = vec![Level::new(root, PathBuf::new())?];
    let mut sent = HashSet::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            sender.entry(None, What::Leave, None)?;
            levels.pop();
            continue;
        };
        let entry = level.dir.entry(Name::new(&name)?)?.ok_or(Errno::NOENT)?;
        let path = level.path.join(&name);
        if entry.is_dir() {
            let dir = entry.to_dir()?;
            let opaque = whiteout::is_opaque(&dir)?;
            let next = Level::new(dir, path)?;
            if next.path == Path::new(path::MSB_DIR) && next.names.is_empty() {
                continue;
            }
            sender.entry(Some(&name), What::Directory { opaque }, Some(attributes_of(&entry)?))?;
            levels.push(next);
        } else if !(is_mount_point(&path) && is_empty_file(&entry)) {
            send_leaf(sender, &name, &entry, &mut sent)?;
        }
    }
    Ok(())
}

/// Whether agentd mounts a file at this path.
fn is_mount_point(path: &Path) -> bool {
    etc::FILES.into_iter().chain([early::PROFILE]).any(|file| path == Path::new(file))
}

fn is_empty_file(entry: &beneath::Entry) -> bool {
    entry.file_type() == FileType::RegularFile && entry.stat().st_size == 0
}

fn send_leaf(sender: &mut Sender, name: &OsStr, entry: &beneath::Entry, sent: &mut HashSet<u64>) -> io::Result<()> {
    let stat = entry.stat();
    // overlayfs makes its whiteouts hardlinks of one another. They are not sent as links.
    if whiteout::is_whiteout(stat) {
        return sender.entry(Some(name), What::Whiteout, None);
    }
    let kind = entry.file_type();
    // Other files with several names become several files: the host creates hardlinks of regular files only.
    let number = (kind == FileType::RegularFile && stat.st_nlink > 1).then_some(stat.st_ino);
    if let Some(to) = number.filter(|number| sent.contains(number)) {
        return sender.entry(Some(name), What::Link { to }, None);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let what = match kind {
        FileType::RegularFile => What::File { size },
        FileType::Symlink => What::Symlink { target: entry.read_link()?.as_os_str().into() },
        FileType::Fifo => What::Fifo,
        FileType::Socket => What::Socket,
        device => What::Device {
            block: device == FileType::BlockDevice,
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        },
    };
    let attributes = Some(attributes_of(entry)?);
    sender.send(&Message::Entry(Box::new(Entry { name: Some(name.into()), what, attributes, number })))?;
    sent.extend(number);
    if kind == FileType::RegularFile {
        send_content(&mut |message| sender.send(message), TO_HOST, &entry.open_to_read()?, size, CHUNK)
    } else {
        Ok(())
    }
}
