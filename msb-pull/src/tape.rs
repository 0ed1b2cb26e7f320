//! A tar stream, member by member, with bounded memory. The tar crate reads the fields of a header. The rest is read here, because the
//! crate does not limit the length of names, and ends a PAX value at a newline. Nothing here touches a file system.

use std::io::{self, Read};

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::owner::Id;
use rustix::fs::Timespec;
use tar::{EntryType, Header};

use crate::pax::Pax;

const BLOCK: usize = 512;
/// The longest PAX header: names, and xattrs of at most 64 KiB each.
const MAX_PAX: u64 = 1 << 20;
/// The longest path or link target, in bytes, without the NUL (`PATH_MAX` less one).
pub(crate) const MAX_PATH: usize = 4095;

/// A reader that can skip bytes.
pub(crate) trait Skip: Read {
    /// Skips `length` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if there are fewer.
    fn skip(&mut self, length: u64) -> io::Result<()>;
}

/// The type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// A member's header.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) metadata: Metadata,
    pub(crate) device: (u32, u32),
}

/// The metadata of a file.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: Id,
    pub(crate) gid: Id,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// About how much memory the xattrs take, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + value.len()).sum()
    }
}

/// A tar stream.
pub(crate) struct Tape<R> {
    input: R,
    /// Bytes of the current member's data that have not been read.
    left: u64,
    padding: u64,
}

impl<R: Skip> Tape<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next member; `None` at the end of the archive.
    ///
    /// # Errors
    /// A message for a truncated or malformed archive.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Member>> {
        let (mut pax, mut long_name, mut long_link) = (Pax::default(), None, None);
        loop {
            self.skip_rest().map_err(truncated)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| anyhow!("malformed tar header: bad size"))?;
            match header.entry_type() {
                EntryType::XHeader => pax = Pax::parse(&self.document(size, MAX_PAX)?)?,
                EntryType::GNULongName => long_name = Some(self.name(size)?),
                EntryType::GNULongLink => long_link = Some(self.name(size)?),
                // Defaults for all members, in which git stores a comment, and a volume label do not become files.
                EntryType::XGlobalHeader => self.begin_data(size)?,
                other if other.as_byte() == b'V' => self.begin_data(size)?,
                _ => {
                    let size = pax.size.unwrap_or(size);
                    let member = member(&header, pax, long_name, long_link, size)?;
                    self.begin_data(if member.kind == Kind::File { size } else { 0 })?;
                    return Ok(Some(member));
                }
            }
        }
    }

    /// The current member's data, and how much of it is left. The caller reports what it has read with [`Self::consumed`].
    pub(crate) fn data(&mut self) -> (&mut R, u64) {
        (&mut self.input, self.left)
    }

    /// Counts `length` bytes of the current member's data as read.
    pub(crate) fn consumed(&mut self, length: u64) {
        self.left -= length;
    }

    /// The reader.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn begin_data(&mut self, size: u64) -> anyhow::Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        let padded = padded.ok_or_else(|| anyhow!("malformed tar header: bad size"))?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        self.input.skip(self.left)?;
        self.input.skip(self.padding)?;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> anyhow::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut got = 0;
        while got < BLOCK {
            match self.input.read(&mut block[got..])? {
                // Some writers omit the two zero blocks at the end.
                0 if got == 0 => return Ok(None),
                0 => return Err(truncated(io::ErrorKind::UnexpectedEof.into())),
                more => got += more,
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = block[148..156].iter().map(|&byte| u32::from(byte)).sum();
        let is_right = header.cksum().is_ok_and(|said| said == sum - own + 8 * u32::from(b' '));
        ensure!(is_right, "not a tar archive: bad header checksum");
        Ok(Some(header))
    }

    fn document(&mut self, size: u64, limit: u64) -> anyhow::Result<Vec<u8>> {
        ensure!(size <= limit, "malformed tar header: extension of {size} bytes, {limit} at most");
        self.begin_data(size)?;
        let mut text = vec![0; usize::try_from(size)?];
        self.input.read_exact(&mut text).map_err(truncated)?;
        self.left = 0;
        Ok(text)
    }

    fn name(&mut self, size: u64) -> anyhow::Result<Vec<u8>> {
        let mut name = self.document(size, MAX_PATH as u64 + 1).context("long name")?;
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        Ok(name)
    }
}

fn member(
    header: &Header,
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    size: u64,
) -> anyhow::Result<Member> {
    let path = pax.path.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
    let link = pax.link.or(long_link);
    let link = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default();
    let shown = || String::from_utf8_lossy(&path).into_owned();
    ensure!(!path.contains(&0) && !link.contains(&0), "entry {:?}: a NUL in its name", shown());
    ensure!(path.len() <= MAX_PATH && link.len() <= MAX_PATH, "entry {:.80?}…: a name over 4095 bytes", shown());
    let kind = match header.entry_type() {
        _ if pax.sparse => {
            bail!("entry {:?}: sparse files are not supported (make the layer without --sparse)", shown())
        }
        EntryType::GNUSparse => {
            bail!("entry {:?}: sparse files are not supported (make the layer without --sparse)", shown())
        }
        // Before POSIX, a directory was a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => bail!("entry {:?}: type {:?} is not supported", shown(), char::from(other.as_byte())),
    };
    let bad = |field: &str| anyhow!("entry {:?}: malformed {field}", shown());
    let id = |said: Option<u64>, header: io::Result<u64>, field| {
        let wide = said.map_or_else(|| header.map_err(|_| bad(field)), Ok)?;
        Id::new(wide).map_err(|why| anyhow!("entry {:?}: {field} {wide}: {why}", shown()))
    };
    let metadata = Metadata {
        mode: header.mode().map_err(|_| bad("mode"))? & 0o7777,
        uid: id(pax.uid, header.uid(), "owner")?,
        gid: id(pax.gid, header.gid(), "group")?,
        mtime: match pax.mtime {
            Some((seconds, nanos)) => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
            None => Timespec { tv_sec: header_time(header).ok_or_else(|| bad("time"))?, tv_nsec: 0 },
        },
        xattrs: pax.xattrs,
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => (
            header.device_major().ok().flatten().ok_or_else(|| bad("device number"))?,
            header.device_minor().ok().flatten().ok_or_else(|| bad("device number"))?,
        ),
        _ => (0, 0),
    };
    Ok(Member { path, link, kind, size, metadata, device })
}

/// The mtime in a header. Before 1970 it is in GNU's base-256, and the tar crate does not read its sign.
fn header_time(header: &Header) -> Option<i64> {
    let field = &header.as_old().mtime;
    if field[0] == 0xff {
        return Some(i64::from_be_bytes(field[4..].try_into().ok()?));
    }
    i64::try_from(header.mtime().ok()?).ok()
}

/// The message for a stream that ended too early.
pub(crate) fn truncated(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { anyhow!("truncated tar archive") } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Skip for &[u8] {
        fn skip(&mut self, length: u64) -> io::Result<()> {
            let length = usize::try_from(length).unwrap();
            *self = self.get(length..).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(())
        }
    }

    fn block(kind: EntryType, path: &str, data: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o100_644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_cksum();
        let mut block = header.as_bytes().to_vec();
        block.extend_from_slice(data);
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    }

    fn first(archive: &[u8]) -> anyhow::Result<Member> {
        Ok(Tape::new(archive).next()?.expect("a member"))
    }

    #[test]
    fn data_that_is_not_read_is_skipped() {
        let archive = [block(EntryType::Regular, "a", b"data"), block(EntryType::Regular, "b", b"")].concat();
        let mut tape = Tape::new(&archive[..]);
        assert_eq!(tape.next().unwrap().unwrap().path, b"a");
        let member = tape.next().unwrap().unwrap();
        assert_eq!((member.path, member.metadata.mode, member.metadata.uid.get()), (b"b".to_vec(), 0o644, 1));
        assert!(tape.next().unwrap().is_none());
    }

    #[test]
    fn long_names_and_pax_override_the_header() {
        let long = "d/".repeat(100) + "f";
        let archive = [
            block(EntryType::GNULongName, "././@LongLink", long.as_bytes()),
            block(EntryType::XHeader, "pax", b"14 mtime=9.25\n"),
            block(EntryType::Regular, "short", b""),
        ];
        let member = first(&archive.concat()).unwrap();
        assert_eq!(member.path, long.as_bytes());
        assert_eq!((member.metadata.mtime.tv_sec, member.metadata.mtime.tv_nsec), (9, 250_000_000));
    }

    #[test]
    fn a_broken_or_excessive_archive_is_refused() {
        let whole = block(EntryType::Regular, "a", b"data");
        let mut huge = Header::new_gnu();
        huge.set_entry_type(EntryType::XHeader);
        huge.set_size(1 << 40);
        huge.set_cksum();
        let vast = [block(EntryType::XHeader, "p", b"29 size=18446744073709551615\n"), whole.clone()].concat();
        let sparse = [block(EntryType::XHeader, "p", b"22 GNU.sparse.major=1\n"), whole.clone()].concat();
        for (archive, words) in [
            (&[b'x'; 512][..], "bad header checksum"),
            (&whole[..100], "truncated"),
            (huge.as_bytes(), "1048576 at most"),
            (&vast, "bad size"),
            (&block(EntryType::GNULongName, "l", &[b'x'; 5000]), "long name"),
            (&sparse, "sparse files are not supported"),
            (&block(EntryType::GNUSparse, "s", b""), "sparse files are not supported"),
            (&block(EntryType::new(b'Z'), "z", b""), "type 'Z' is not supported"),
        ] {
            let error = format!("{:#}", first(archive).unwrap_err());
            assert!(error.contains(words), "{words}: {error}");
        }
        let mut tape = Tape::new(&whole[..514]);
        tape.next().unwrap();
        assert!(tape.next().unwrap_err().to_string().contains("truncated"));
    }
}
