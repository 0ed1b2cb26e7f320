//! A tar archive as the target of a copy.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use msb::overlay::beneath::Name;
use msb::transfer::MAX_DEPTH;
use msb::transfer::receive::Incoming;
use msb::wire::Message;
use msb::wire::upper::{Attributes, Entry, What};
use tar::{Builder, EntryType, Header};

/// The longest target of a link in a header, in bytes.
const MAX_LINK: usize = 100;

/// Writes a copy as an archive. Its paths begin with `name_of_copy`, or with `contents` in the directory that is copied.
///
/// # Errors
/// Those of writing; what the guest did wrong.
pub(crate) fn write(
    incoming: &mut impl Incoming,
    name_of_copy: &OsStr,
    contents: bool,
    out: impl Write,
) -> anyhow::Result<()> {
    let mut archive = Builder::new(out);
    let mut open: Vec<PathBuf> = Vec::new();
    let mut base: Option<PathBuf> = None;
    while let Some(message) = incoming.receive()? {
        let Message::Entry(entry) = message else { return Err(broken("a message out of turn").into()) };
        let Entry { name, what, attributes, .. } = *entry;
        if what == What::Leave {
            open.pop().ok_or_else(|| broken("the end of a directory that was not begun"))?;
            continue;
        }
        let name: OsString = name.ok_or_else(|| broken("an entry without a name"))?.into();
        let path = match (open.last(), &base) {
            (Some(dir), _) => {
                Name::new(&name)?;
                dir.join(&name)
            }
            (None, None) if contents => PathBuf::from("."),
            (None, None) => PathBuf::from(name_of_copy),
            (None, Some(_)) => return Err(broken("a message after the end").into()),
        };
        let base = base.get_or_insert_with(|| path.clone());
        append(&mut archive, incoming, base, &path, &what, attributes.as_ref())?;
        if let What::Directory { .. } = what {
            if open.len() >= MAX_DEPTH {
                return Err(broken(&format!("deeper than {MAX_DEPTH} directories")).into());
            }
            open.push(path);
        }
    }
    if base.is_none() || !open.is_empty() {
        return Err(broken("it ends before the copy is complete").into());
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn append<W: Write>(
    archive: &mut Builder<W>,
    incoming: &mut impl Incoming,
    base: &Path,
    path: &Path,
    what: &What,
    attributes: Option<&Attributes>,
) -> anyhow::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(0);
    // A hardlink has no attributes, and tar cannot read a header without them.
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    if let Some(attributes) = attributes {
        header.set_mode(attributes.mode & 0o7777);
        header.set_uid(attributes.uid.get().into());
        header.set_gid(attributes.gid.get().into());
        let (seconds, nanoseconds) = attributes.mtime;
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if seconds < 0 || nanoseconds > 0 {
            records.push(("mtime".into(), time(seconds, nanoseconds).into_bytes()));
        }
        for (name, value) in &attributes.xattrs {
            let name = OsString::from(name.clone()).into_string();
            records.extend(name.map(|name| (format!("SCHILY.xattr.{name}"), OsString::from(value.clone()).into_vec())));
        }
    }
    let link = match what {
        What::Symlink { target } => OsString::from(target.clone()),
        What::Hardlink { path: first } => base.join(OsString::from(first.clone())).into(),
        _ => OsString::new(),
    };
    let link = link.as_bytes();
    // The functions of the tar crate for links change "./a//b" to "a/b".
    header.set_link_name_literal(&link[..link.len().min(MAX_LINK)])?;
    if link.len() > MAX_LINK {
        records.push(("linkpath".into(), link.to_owned()));
    }
    let kind = match what {
        What::Directory { .. } => EntryType::Directory,
        What::File { .. } => EntryType::Regular,
        What::Symlink { .. } => EntryType::Symlink,
        What::Hardlink { .. } => EntryType::Link,
        What::Device { block, .. } => {
            if *block {
                EntryType::Block
            } else {
                EntryType::Char
            }
        }
        What::Fifo => EntryType::Fifo,
        What::Socket => return Ok(()),
        What::Leave | What::Link { .. } | What::Whiteout => return Err(broken("an entry of a commit").into()),
    };
    header.set_entry_type(kind);
    archive.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), &value[..])))?;
    match what {
        What::File { size } => {
            header.set_size(*size);
            archive.append_data(&mut header, path, Content { incoming, left: *size, data: Vec::new(), hole: 0 })?;
        }
        What::Device { major, minor, .. } => {
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            archive.append_data(&mut header, path, io::empty())?;
        }
        What::Directory { .. } => {
            let mut with_slash = path.as_os_str().to_owned();
            with_slash.push(OsStr::new("/"));
            archive.append_data(&mut header, Path::new(&with_slash), io::empty())?;
        }
        _ => archive.append_data(&mut header, path, io::empty())?,
    }
    Ok(())
}

/// A time of PAX: seconds since 1970 with a fraction. `nanoseconds` count forward, also before 1970.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000u32.saturating_sub(nanoseconds)),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// The content of a file, with zeros for its holes.
struct Content<'a, I> {
    incoming: &'a mut I,
    /// What has not been received, in bytes.
    left: u64,
    data: Vec<u8>,
    hole: u64,
}

impl<I: Incoming> Read for Content<'_, I> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        if self.data.is_empty() && self.hole == 0 {
            if self.left == 0 {
                return Ok(0);
            }
            match self.incoming.receive()? {
                Some(Message::Data(stream, bytes))
                    if stream == I::STREAM && !bytes.is_empty() && bytes.len() as u64 <= self.left =>
                {
                    self.data = bytes
                }
                Some(Message::Hole(length)) if length > 0 && length <= self.left => self.hole = length,
                _ => return Err(broken("a message out of turn")),
            }
            self.left -= self.data.len() as u64 + self.hole;
        }
        if self.hole > 0 {
            let count = usize::try_from(self.hole).unwrap_or(usize::MAX).min(block.len());
            block[..count].fill(0);
            self.hole -= count as u64;
            return Ok(count);
        }
        let count = self.data.len().min(block.len());
        block[..count].copy_from_slice(&self.data[..count]);
        self.data.drain(..count);
        Ok(count)
    }
}

fn broken(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stream of the copy: {message}"))
}

#[cfg(test)]
mod tests {
    use msb::wire::Stream;
    use msb::wire::exec::Text;

    use super::*;

    /// A number of directories, each in the one before.
    struct Nested(usize);

    impl Incoming for Nested {
        const STREAM: Stream = Stream::Stdout;

        fn receive(&mut self) -> io::Result<Option<Message>> {
            let Some(left) = self.0.checked_sub(1) else { return Ok(None) };
            self.0 = left;
            let (name, what) = (Some(Text::from(OsStr::new("d"))), What::Directory { opaque: false });
            Ok(Some(Message::Entry(Box::new(Entry { name, what, attributes: None, number: None }))))
        }
    }

    #[test]
    fn a_guest_cannot_nest_directories_without_end() {
        for (depth, message) in [(MAX_DEPTH, "it ends before"), (MAX_DEPTH + 1, "deeper than 1000 directories")] {
            let error = write(&mut Nested(depth), OsStr::new("x"), false, io::sink()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn times_of_pax_count_away_from_1970() {
        for (time, expected) in [((5, 0), "5.000000000"), ((5, 250_000_000), "5.250000000"), ((0, 1), "0.000000001")] {
            assert_eq!(super::time(time.0, time.1), expected);
        }
        for (time, expected) in
            [((-2, 500_000_000), "-1.500000000"), ((-1, 1), "-0.999999999"), ((-3, 0), "-3.000000000")]
        {
            assert_eq!(super::time(time.0, time.1), expected);
        }
    }

    /// Entries, in a directory that is left behind them.
    struct Listed(Vec<Entry>);

    impl Incoming for Listed {
        const STREAM: Stream = Stream::Stdout;

        fn receive(&mut self) -> io::Result<Option<Message>> {
            Ok((!self.0.is_empty()).then(|| Message::Entry(Box::new(self.0.remove(0)))))
        }
    }

    #[test]
    fn links_and_times_are_in_the_archive_as_they_are_in_the_guest() {
        let entry = |name: Option<&str>, what| Entry {
            name: name.map(|name| OsStr::new(name).into()),
            what,
            attributes: None,
            number: None,
        };
        let mtime = (-2, 500_000_000);
        let attributes = Some(Attributes {
            mode: 0o777,
            uid: Default::default(),
            gid: Default::default(),
            mtime,
            xattrs: Vec::new(),
        });
        let targets = ["./a//b/".to_owned(), "x".repeat(100), "y".repeat(101), "/".repeat(4000)];
        let mut entries = vec![entry(Some("d"), What::Directory { opaque: false })];
        for (number, target) in targets.iter().enumerate() {
            let what = What::Symlink { target: OsStr::new(target).into() };
            entries.push(Entry { attributes: attributes.clone(), ..entry(Some(&number.to_string()), what) });
        }
        entries.push(entry(None, What::Leave));
        let mut written = Vec::new();
        write(&mut Listed(entries), OsStr::new("d"), false, &mut written).unwrap();
        let mut tape = msb_archive::Tape::new(&written[..]);
        assert_eq!(tape.next_member().unwrap().unwrap().path, b"d/");
        for target in targets {
            let member = tape.next_member().unwrap().unwrap();
            assert_eq!(member.link, target.as_bytes());
            assert_eq!((member.metadata.mtime.tv_sec, member.metadata.mtime.tv_nsec), (-2, 500_000_000));
        }
        assert!(tape.next_member().unwrap().is_none());
    }
}
