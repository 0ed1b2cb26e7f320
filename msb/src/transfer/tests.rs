//! Copies from one directory to another, without a guest between the two.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::receive::{Incoming, Received, Rules, receive};
use super::send::{self, Sink};
use super::target::{self, Target};
use crate::overlay::beneath::Dir;
use crate::record::owner::Id;
use crate::wire::upper::{Attributes, Entry, What};
use crate::wire::{Message, Stream};

/// The messages of a copy.
#[derive(Default)]
struct Messages(std::collections::VecDeque<Message>);

impl Sink for Messages {
    const STREAM: Stream = Stream::Stdout;

    fn send(&mut self, message: &Message) -> io::Result<()> {
        self.0.push_back(message.clone());
        Ok(())
    }
}

impl Incoming for Messages {
    const STREAM: Stream = Stream::Stdout;

    fn receive(&mut self) -> io::Result<Option<Message>> {
        Ok(self.0.pop_front())
    }
}

fn scratch() -> (tempfile::TempDir, Dir) {
    let scratch = tempfile::tempdir().unwrap();
    let root = Dir::open(scratch.path()).unwrap();
    (scratch, root)
}

fn copy(root: &Dir, from: &str, to: &str, rules: Rules) -> io::Result<Received> {
    let mut messages = Messages::default();
    let source = send::open(root, Path::new(from), false)?;
    let contents = source.contents;
    send::send(&mut messages, source)?;
    receive(&mut messages, root, Path::new(to), None, contents, rules)
}

#[test]
fn a_copy_has_modes_times_holes_links_and_xattrs() {
    let (scratch, root) = scratch();
    let at = |path: &str| scratch.path().join(path);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::write(at("from/sub/file"), "content").unwrap();
    fs::set_permissions(at("from/sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(at("from/sub/file"), at("from/other")).unwrap();
    symlink("../nowhere", at("from/link")).unwrap();
    let sparse = fs::File::create(at("from/sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"end", (8 << 20) - 3).unwrap();
    fs::set_permissions(at("from"), fs::Permissions::from_mode(0o750)).unwrap();
    let received = copy(&root, "/from", "/to", Rules { archive: true, devices: true, privileges: true }).unwrap();
    assert_eq!((received.files, received.bytes < 1 << 20), (6, true));
    for path in ["", "sub", "sub/file", "sparse"] {
        let look = |side: &str| {
            let meta = fs::metadata(at(side).join(path)).unwrap();
            (meta.mode(), meta.mtime(), meta.mtime_nsec(), meta.uid(), meta.is_dir() || meta.len() > 0)
        };
        assert_eq!(look("from"), look("to"), "{path}");
    }
    assert_eq!(fs::read(at("to/other")).unwrap(), b"content");
    assert_eq!(fs::metadata(at("to/other")).unwrap().ino(), fs::metadata(at("to/sub/file")).unwrap().ino());
    assert_eq!(fs::read_link(at("to/link")).unwrap(), Path::new("../nowhere"));
    assert!(fs::metadata(at("to/sparse")).unwrap().blocks() < 1 << 10);
    assert_eq!(fs::read(at("to/sparse")).unwrap(), fs::read(at("from/sparse")).unwrap());
    // Again, over what is there, and without privileges.
    copy(&root, "/from/.", "/to", Rules::default()).unwrap();
    assert_eq!(fs::metadata(at("to/sub/file")).unwrap().mode() & 0o7777, 0o750);
    let mut names: Vec<_> = fs::read_dir(at("to")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["link", "other", "sparse", "sub"]);
}

#[test]
fn a_copy_goes_where_docker_cp_puts_it() {
    let (scratch, root) = scratch();
    let at = |path: &str| scratch.path().join(path);
    for dir in ["dir/sub", "there", "real"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    fs::write(at("file"), "new").unwrap();
    fs::write(at("dir/sub/in"), "in").unwrap();
    fs::write(at("old"), "old").unwrap();
    fs::write(at("real/old"), "old").unwrap();
    symlink("/real", at("link")).unwrap();
    symlink("/real/old", at("to-file")).unwrap();
    symlink("../../../..", at("up")).unwrap();
    for (from, to, expected) in [
        ("/file", "/new", Ok("new")),
        ("/file", "/there", Ok("there/file")),
        ("/file", "/there/", Ok("there/file")),
        ("/file", "/there/other", Ok("there/other")),
        ("/file", "/old", Ok("old")),
        ("/file", "/link", Ok("real/file")),
        ("/file", "/link/x", Ok("real/x")),
        ("/file", "/to-file", Ok("real/old")),
        ("/file", "/up/outside", Ok("outside")),
        ("/dir", "/made", Ok("made/sub/in")),
        ("/dir", "/there", Ok("there/dir/sub/in")),
        ("/dir/.", "/there", Ok("there/sub/in")),
        ("/dir/.", "/made-too", Ok("made-too/sub/in")),
        ("/dir/", "/there/last", Ok("there/last/sub/in")),
        ("/file", "/missing/", Err("no such directory")),
        ("/file", "/missing/x", Err("the directory \"/missing\"")),
        ("/file", "/old/", Err("Not a directory")),
        ("/dir", "/old", Err("the source is a directory")),
        ("/dir/sub/in", "/there/dir/sub/in/x", Err("the directory")),
        ("/file/", "/x", Err("Not a directory")),
        ("/missing", "/x", Err("No such file")),
    ] {
        match (copy(&root, from, to, Rules::default()), expected) {
            (Ok(_), Ok(place)) => assert!(at(place).is_file(), "{from} {to}"),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{from} {to}: {error}"),
            (result, _) => panic!("{from} {to}: {result:?}"),
        }
    }
    assert_eq!(fs::read(at("real/old")).unwrap(), b"new");
    assert!(matches!(target::find(&root, Path::new("/"), OsStr::new("x"), false, false), Ok(Target::As(..))));
}

fn entry(name: Option<&str>, what: What) -> Message {
    let attributes =
        Attributes { mode: 0o644, uid: Default::default(), gid: Default::default(), mtime: (0, 0), xattrs: Vec::new() };
    Message::Entry(Box::new(Entry {
        name: name.map(|name| OsStr::new(name).into()),
        what,
        attributes: Some(attributes),
        number: None,
    }))
}

#[test]
fn a_sender_does_not_choose_the_name_in_a_directory() {
    let (scratch, root) = scratch();
    fs::create_dir(scratch.path().join("home")).unwrap();
    fs::write(scratch.path().join("home/.profile"), "mine").unwrap();
    let stream = [entry(Some(".profile"), What::File { size: 1 }), Message::Data(Stream::Stdout, b"x".to_vec())];
    let name = Some(OsStr::new("report"));
    receive(&mut Messages(stream.into()), &root, Path::new("/home"), name, false, Rules::default()).unwrap();
    assert_eq!(fs::read(scratch.path().join("home/report")).unwrap(), b"x");
    assert_eq!(fs::read(scratch.path().join("home/.profile")).unwrap(), b"mine");
}

#[test]
fn a_hostile_stream_stays_beneath_its_target() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "canary").unwrap();
    let directory = || What::Directory { opaque: false };
    let text = |text: &str| OsStr::new(text).into();
    let evil = || What::Symlink { target: outside.path().as_os_str().into() };
    let file = || What::File { size: 1 };
    let data = || Message::Data(Stream::Stdout, b"x".to_vec());
    for (number, stream) in [
        // Names that are no component.
        vec![entry(Some("d"), directory()), entry(Some(".."), file()), data()],
        vec![entry(Some("d"), directory()), entry(Some("../canary"), file()), data()],
        vec![entry(Some("d"), directory()), entry(Some("/etc"), file()), data()],
        // A symlink and then a way through it.
        vec![
            entry(Some("d"), directory()),
            entry(Some("l"), evil()),
            entry(Some("l"), directory()),
            entry(Some("canary"), file()),
            data(),
        ],
        vec![
            entry(Some("d"), directory()),
            entry(Some("l"), evil()),
            entry(Some("h"), What::Hardlink { path: text("l/canary") }),
        ],
        vec![entry(Some("d"), directory()), entry(Some("h"), What::Hardlink { path: text("../canary") })],
        vec![entry(Some("d"), directory()), entry(Some("h"), What::Hardlink { path: text("/etc/passwd") })],
        // Streams that do not fit together.
        vec![],
        vec![entry(None, What::Leave)],
        vec![entry(Some("d"), directory())],
        vec![entry(Some("d"), What::Whiteout)],
        vec![entry(Some("d"), What::Link { to: 1 })],
        vec![entry(Some("d"), file()), Message::Data(Stream::Stdout, b"xx".to_vec())],
        vec![entry(Some("d"), file()), Message::Hole(2)],
        vec![entry(Some("d"), file()), data(), data()],
        vec![data()],
    ]
    .into_iter()
    .enumerate()
    {
        let (scratch, root) = scratch();
        fs::create_dir(scratch.path().join("to")).unwrap();
        let mut messages = Messages(stream.into());
        assert!(receive(&mut messages, &root, Path::new("/to/d"), None, false, Rules::default()).is_err(), "{number}");
        assert_eq!(fs::read(outside.path().join("canary")).unwrap(), b"canary", "{number}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{number}");
        // Nothing is left but what was complete.
        let left: Vec<PathBuf> = walk(scratch.path());
        assert!(left.iter().all(|path| !path.to_string_lossy().contains(".msb-cp.")), "{left:?}");
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[test]
fn a_symlink_in_the_way_of_a_file_is_replaced() {
    let (scratch, root) = scratch();
    let at = |path: &str| scratch.path().join(path);
    fs::create_dir_all(at("from")).unwrap();
    fs::create_dir_all(at("to")).unwrap();
    fs::write(at("from/file"), "new").unwrap();
    fs::write(at("canary"), "canary").unwrap();
    symlink("../canary", at("to/file")).unwrap();
    copy(&root, "/from/.", "/to", Rules::default()).unwrap();
    assert_eq!(
        (fs::read(at("canary")).unwrap(), fs::read(at("to/file")).unwrap()),
        (b"canary".to_vec(), b"new".to_vec())
    );
    assert!(fs::symlink_metadata(at("to/file")).unwrap().is_file());
}

#[test]
fn a_directory_that_exists_keeps_its_attributes_unless_all_are_wanted() {
    let (scratch, root) = scratch();
    let at = |path: &str| scratch.path().join(path);
    fs::create_dir_all(at("from/sub")).unwrap();
    fs::create_dir_all(at("to/sub")).unwrap();
    fs::set_permissions(at("from/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(at("to/sub"), fs::Permissions::from_mode(0o711)).unwrap();
    let mode = || fs::metadata(at("to/sub")).unwrap().mode() & 0o777;
    copy(&root, "/from/.", "/to", Rules::default()).unwrap();
    assert_eq!(mode(), 0o711);
    copy(&root, "/from/.", "/to", Rules { archive: true, ..Rules::default() }).unwrap();
    assert_eq!(mode(), 0o700);
}

#[test]
fn a_directory_that_the_copy_has_made_may_be_described_later() {
    let (scratch, root) = scratch();
    let at = |path: &str| scratch.path().join(path);
    fs::create_dir_all(at("to/there")).unwrap();
    fs::set_permissions(at("to/there"), fs::Permissions::from_mode(0o711)).unwrap();
    let mut messages = Messages::default();
    let mut put = |name: Option<&str>, what, mode: Option<u32>| {
        let attributes =
            mode.map(|mode| Attributes { mode, uid: Id::ROOT, gid: Id::ROOT, mtime: (7, 0), xattrs: vec![] });
        let name = name.map(|name| OsStr::new(name).into());
        messages.send(&Message::Entry(Box::new(Entry { name, what, attributes, number: None }))).unwrap();
    };
    let dir = || What::Directory { opaque: false };
    put(Some("."), dir(), None);
    for (name, mode) in
        [("made", None), ("there", None), ("plain", None), ("made", Some(0o750)), ("there", Some(0o750))]
    {
        put(Some(name), dir(), mode);
        put(None, What::Leave, None);
    }
    put(None, What::Leave, None);
    receive(&mut messages, &root, Path::new("/to"), None, true, Rules::default()).unwrap();
    let mode = |path: &str| fs::metadata(at(path)).unwrap().mode() & 0o7777;
    assert_eq!([mode("to/made"), mode("to/there"), mode("to/plain")], [0o750, 0o711, 0o755]);
    assert_eq!(fs::metadata(at("to/made")).unwrap().mtime(), 7);
}

#[test]
fn data_of_the_other_direction_is_refused() {
    let (scratch, root) = scratch();
    fs::write(scratch.path().join("file"), vec![7; 5000]).unwrap();
    let mut messages = Messages::default();
    send::send(&mut messages, send::open(&root, Path::new("/file"), false).unwrap()).unwrap();
    for message in &mut messages.0 {
        if let Message::Data(stream, _) = message {
            *stream = Stream::Stdin;
        }
    }
    let error = receive(&mut messages, &root, Path::new("/to"), None, false, Rules::default()).unwrap_err();
    assert!(error.to_string().contains("out of turn"), "{error}");
    assert!(!scratch.path().join("to").exists());
}
