//! The host's half of a commit, with a hostile guest: nothing outside the upper changes, no temporary file is left, and the upper has no
//! more files than the disk has room for.
//!
//! If the first byte is even, the others are the stream itself. If it is odd, they choose messages.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use msb::overlay::Merged;
use msb::overlay::commit::{Connection, receive};
use msb::overlay::upper::Writer;
use msb::record::owner::Id;
use msb::wire::exec::Text;
use msb::wire::upper::{Attributes, Entry, What};
use msb::wire::{Message, Stream};

const NAMES: [&str; 8] = ["a", "b", "dir", "link", "..", "a/b", "", "gone"];
const XATTRS: [&str; 5] =
    ["user.x", "trusted.overlay.redirect", "trusted.overlay.opaque", "security.capability", "user.overlay.metacopy"];

/// A guest whose whole stream has arrived.
struct Guest<'a>(&'a [u8]);

impl Read for Guest<'_> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        self.0.read(block)
    }
}

impl Write for Guest<'_> {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        Ok(block.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for Guest<'_> {
    fn set_read_timeout(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let place = |name: &str| scratch.path().join(name);
    for dir in ["lower/dir/sub", "upper", "work", "outside"] {
        fs::create_dir_all(place(dir)).unwrap();
    }
    fs::write(place("lower/a"), "lower").unwrap();
    fs::write(place("lower/dir/sub/file"), "lower").unwrap();
    fs::write(place("outside/canary"), "outside").unwrap();
    symlink(place("outside"), place("lower/link")).unwrap();
    let before = [facts(&place("lower")), facts(&place("outside"))];
    let disk = 1 << 14;
    let root = Merged::open(&[place("lower")], Some(&place("upper"))).expect("a merged root");
    let writer = Writer::open(&place("work"), false).expect("a writer");
    let stream = if first % 2 == 0 { rest.to_vec() } else { messages(rest) };
    let _ = receive(&mut Guest(&stream), &root, &writer, disk);
    assert_eq!([facts(&place("lower")), facts(&place("outside"))], before, "something outside has changed");
    assert_eq!(fs::read_dir(place("work")).unwrap().count(), 0, "something is left in the work directory");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 4);
    let files = facts(&place("upper")).len() as u64;
    assert!(files <= disk / 12, "{files} files");
}

/// Each file, with attributes that show whether it was changed.
fn facts(dir: &Path) -> Vec<String> {
    let mut facts = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        // A path in the guest may be as long as paths can be, and is longer with the directory before it.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        facts.push(format!("{path:?} {:o} {} {} {}", meta.mode(), meta.size(), meta.nlink(), meta.ctime_nsec()));
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().map(|child| child.unwrap().path()));
        }
    }
    facts.sort();
    facts
}

/// A stream of messages that the bytes choose. It begins with a hello.
fn messages(data: &[u8]) -> Vec<u8> {
    let mut data = data.iter().copied();
    let mut next = move || data.next();
    let attributes = |seed: u8| {
        let xattr = XATTRS[usize::from(seed) % XATTRS.len()];
        let xattrs = if seed.is_multiple_of(3) { vec![(Text::from(xattr), Text::from("y"))] } else { Vec::new() };
        let gid = Id::new(u64::from(seed)).expect("a gid");
        Attributes { mode: u32::from(seed) * 37, uid: Id::ROOT, gid, mtime: (1, u32::from(seed)), xattrs }
    };
    let entry = |name: Option<OsString>, what, seed: u8| {
        let number = seed.is_multiple_of(2).then_some(u64::from(seed % 5));
        let name = name.map(|name| Text::from(name.as_os_str()));
        Message::Entry(Box::new(Entry { name, what, attributes: (seed != 255).then(|| attributes(seed)), number }))
    };
    let mut stream = entry(None, What::Directory { opaque: false }, 0).to_frame();
    while let (Some(kind), Some(name), Some(seed)) = (next(), next(), next()) {
        let long = "x".repeat(usize::from(seed) + 1);
        let name = if name > 200 { long.as_str() } else { NAMES[usize::from(name) % NAMES.len()] };
        let size = u64::from(seed);
        let what = match kind % 12 {
            0 | 1 => What::Directory { opaque: seed % 2 == 0 },
            2 | 3 => What::Leave,
            4 => What::File { size },
            5 => What::File { size: 0 },
            6 => What::Symlink { target: ["../outside", "/", "a", ""][usize::from(seed) % 4].into() },
            7 => What::Link { to: size % 5 },
            8 => What::Whiteout,
            9 => What::Device { block: seed % 2 == 0, major: 0, minor: u32::from(seed / 2) },
            10 => What::Fifo,
            _ => What::File { size: u64::MAX - size },
        };
        let filled = matches!(what, What::File { size } if size > 0 && kind < 200);
        let name = (what != What::Leave).then(|| name.into());
        stream.extend(entry(name, what, seed).to_frame());
        if filled {
            let half = usize::from(seed) / 2;
            stream.extend(Message::Hole(half as u64).to_frame());
            stream.extend(Message::Data(Stream::Stdout, vec![seed; usize::from(seed) - half]).to_frame());
        }
    }
    stream
}
