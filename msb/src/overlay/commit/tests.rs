use super::*;
use crate::record::owner::Id;
use crate::wire::exec::Text;

/// A guest whose messages are fixed, and the error of writing to it.
struct ScriptedGuest(io::Cursor<Vec<u8>>, Option<io::ErrorKind>);

impl Read for ScriptedGuest {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        self.0.read(block)
    }
}

impl Write for ScriptedGuest {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.1.map_or(Ok(block.len()), |kind| Err(kind.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for ScriptedGuest {
    fn set_read_timeout(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// The causes of an error, as anyhow's `{:#}` shows them.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

/// The result of a stream, and the paths that it made.
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
    let mut guest = ScriptedGuest(io::Cursor::new(messages.iter().flat_map(Message::to_frame).collect()), written);
    let taken = receive(&mut guest, &merged, &writer, disk).map_err(|error| chain(&error));
    let mut paths = Vec::new();
    let mut pending = vec![scratch.to_owned()];
    while let Some(dir) = pending.pop() {
        for child in std::fs::read_dir(dir).unwrap() {
            let child = child.unwrap();
            if child.file_type().unwrap().is_dir() {
                pending.push(child.path());
            }
            paths.push(child.path().strip_prefix(scratch).unwrap().to_owned());
        }
    }
    paths.retain(|path| {
        ![Path::new("root"), Path::new("root/lower"), Path::new("root/upper"), Path::new("root/work")]
            .contains(&path.as_path())
    });
    paths.sort();
    (taken, paths)
}

#[test]
fn the_message_of_a_guest_that_hung_up_is_the_error() {
    let failure = || Message::Failure(Failure::new(1, "mount: no"));
    let ready = Message::Ready(Ready { error: Some("mount: no".into()), ..Ready::default() });
    for (messages, written, expected) in [
        (vec![failure()], io::ErrorKind::BrokenPipe, "guest: mount: no"),
        (vec![ready], io::ErrorKind::ConnectionReset, "guest: mount: no"),
        (vec![directory(None), failure()], io::ErrorKind::BrokenPipe, "guest: mount: no"),
        (vec![], io::ErrorKind::BrokenPipe, "guest: it closed the connection before it had sent everything"),
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
    let (taken, paths) = take(&stream, 1 << 20);
    assert_eq!(taken, Ok(()));
    assert_eq!(paths, ["root/upper/d", "root/upper/d/f", "root/upper/l"].map(PathBuf::from));
}

#[test]
fn no_stream_leaves_the_upper_or_has_more_than_its_disk_holds() {
    let data = || Message::Data(Stream::Stdout, vec![0; 1000]);
    let to_etc = || entry(Some("way"), What::Symlink { target: "../..".into() });
    for (stream, message) in [
        (vec![entry(Some("f"), What::Fifo)], "not the root"),
        (vec![directory(None), entry(Some(".."), What::Fifo)], "Invalid argument"),
        (vec![directory(None), entry(Some("a/b"), What::Fifo)], "Invalid argument"),
        (vec![directory(None), entry(None, What::Fifo)], "without a name"),
        (vec![directory(None), entry(Some("l"), What::Link { to: 9 })], "did not come"),
        (vec![directory(None), entry(Some("f"), What::File { size: 999 }), data()], "out of turn"),
        (vec![directory(None), entry(Some("f"), What::File { size: 9 }), Message::Hole(10)], "out of turn"),
        (vec![directory(None), entry(Some("f"), What::File { size: 9999 }), data(), data()], "more data"),
        (vec![directory(None), to_etc(), directory(Some("d"))], "closed the connection"),
        (vec![directory(None), Message::Credit(Stream::Stdin, 1)], "out of turn"),
        (vec![Message::Ready(Ready { error: Some("no disk\x1b[m".into()), ..Ready::default() })], "guest: no disk"),
        (vec![Message::Ready(Ready::default())], "out of turn"),
        (vec![directory(None); 3000], "without a name"),
        (vec![directory(None), entry(Some("f"), What::Fifo), entry(Some("l"), What::Link { to: 7 })], "did not come"),
        (vec![directory(None), entry(Some("f"), What::File { size: (16 << 40) + 1 })], "cannot hold"),
        (vec![directory(None), file("f"), file("g")], "its number"),
        ([vec![directory(None)], vec![directory(Some(&"x".repeat(250))); 17]].concat(), "longer than 4095"),
        ([vec![directory(None)], vec![directory(Some("d")); 3000]].concat(), "deeper"),
    ] {
        let disk = if ["deeper", "longer than 4095"].contains(&message) { 1 << 20 } else { 1500 };
        let (taken, paths) = take(&stream, disk);
        let error = taken.unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
        assert!(paths.iter().all(|path| path.starts_with("root/upper")), "{paths:?}");
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
    let (taken, paths) = take(&stream, 1 << 20);
    assert_eq!(taken, Ok(()));
    assert_eq!(paths, ["root/upper/way", "root/upper/way/f"].map(PathBuf::from));
}
