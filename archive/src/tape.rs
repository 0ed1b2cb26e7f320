//! A tar stream, member by member, with bounded memory. The tar crate reads the fields of a header. The rest is read here,
//! because the crate does not limit the length of names, and ends a PAX value at a newline. Nothing here touches a file system.

use std::io::{self, Read};

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::owner::Id;
use rustix::fs::Timespec;
use tar::{EntryType, Header};

use crate::number::{device, number, unsigned};
use crate::pax::Pax;
use crate::sparse::{self, Region};

const BLOCK: usize = 512;
/// The longest PAX header: names, and xattrs of at most 64 KiB each.
const MAX_PAX: u64 = 1 << 20;
/// The longest path or link target, in bytes, without the NUL (`PATH_MAX` less one).
pub const MAX_PATH: usize = 4095;

/// A reader that can skip bytes.
pub trait Skip: Read {
    /// Skips `length` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if there are fewer.
    fn skip(&mut self, length: u64) -> io::Result<()>;
}

impl Skip for &[u8] {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let rest = usize::try_from(length).ok().and_then(|length| self.get(length..));
        *self = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// The type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink.
    Symlink,
    /// One more name of a file that came before.
    Hardlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A member's header.
#[derive(Debug)]
pub struct Member {
    /// The path as the archive has it: up to 4095 bytes without a NUL. It may be absolute, or contain `..`.
    pub path: Vec<u8>,
    /// The target of a link; otherwise it means nothing.
    pub link: Vec<u8>,
    /// The type.
    pub kind: Kind,
    /// The size of a file, in bytes, with its holes.
    pub size: u64,
    /// Where the data belongs in a sparse file of `size` bytes; `None` for a file without holes.
    pub regions: Option<Vec<Region>>,
    /// Owner, mode, time and xattrs.
    pub metadata: Metadata,
    /// The major and the minor number of a device.
    pub device: (u32, u32),
}

/// The metadata of a file.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Permissions, and the bits set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: Id,
    /// The group.
    pub gid: Id,
    /// The modification time.
    pub mtime: Timespec,
    /// Names and values, without overlayfs's own, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// About how much memory the xattrs take, in bytes.
    pub fn xattrs_size(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + value.len()).sum()
    }
}

/// A tar stream.
pub struct Tape<R> {
    input: R,
    /// Bytes of the current member's data that have not been read.
    left: u64,
    padding: u64,
}

impl<R: Skip> Tape<R> {
    /// A stream at the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next member; `None` at the end of the archive.
    ///
    /// # Errors
    /// A message for a truncated or malformed archive.
    pub fn next_member(&mut self) -> anyhow::Result<Option<Member>> {
        let (mut pax, mut long_name, mut long_link) = (Pax::default(), None, None);
        loop {
            self.skip_rest().map_err(truncated)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = unsigned(&header.as_old().size).ok_or_else(|| anyhow!("malformed tar header: bad size"))?;
            match header.entry_type() {
                EntryType::XHeader => pax = Pax::parse(&self.document(size, MAX_PAX)?)?,
                EntryType::GNULongName => long_name = Some(self.name(size)?),
                EntryType::GNULongLink => long_link = Some(self.name(size)?),
                // Defaults for all members, in which git stores a comment, and a volume label do not become files.
                EntryType::XGlobalHeader => self.begin_data(size)?,
                other if other.as_byte() == b'V' => self.begin_data(size)?,
                _ => {
                    let size = pax.size.unwrap_or(size);
                    let sparse = pax.sparse.take();
                    let mut member = member(&header, pax, long_name, long_link, size)?;
                    if member.kind != Kind::File {
                        self.begin_data(0)?;
                    } else if header.entry_type() == EntryType::GNUSparse {
                        let numbers = self.old_map(&header)?;
                        self.begin_data(size)?;
                        let real_size = unsigned(&header.as_bytes()[483..495]);
                        self.locate(&mut member, real_size, &numbers)?;
                    } else {
                        self.begin_data(size)?;
                        if let Some(sparse) = sparse {
                            let numbers = if sparse.has_prefix { self.prefix()? } else { sparse.numbers };
                            self.locate(&mut member, sparse.size, &numbers)?;
                        }
                    }
                    return Ok(Some(member));
                }
            }
        }
    }

    /// The current member's data, and how much of it is left. The caller reports what it has read with [`Self::consumed`].
    pub fn data(&mut self) -> (&mut R, u64) {
        (&mut self.input, self.left)
    }

    /// Counts `length` bytes of the current member's data as read.
    pub fn consumed(&mut self, length: u64) {
        self.left -= length;
    }

    /// The reader.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn begin_data(&mut self, size: u64) -> anyhow::Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        let padded = padded.ok_or_else(|| anyhow!("malformed tar header: bad size"))?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    /// The sparse map of an old GNU header, with its extension blocks.
    fn old_map(&mut self, header: &Header) -> anyhow::Result<Vec<u64>> {
        let mut map = sparse::Old::default();
        let block = header.as_bytes();
        map.push(&block[386..482])?;
        let mut has_more = block[482] != 0;
        while has_more {
            let mut block = [0; BLOCK];
            self.input.read_exact(&mut block).map_err(truncated)?;
            map.push(&block[..504])?;
            has_more = block[504] != 0;
        }
        Ok(map.finish())
    }

    /// The sparse map at the start of the member's data.
    fn prefix(&mut self) -> anyhow::Result<Vec<u64>> {
        let mut prefix = sparse::Prefix::default();
        loop {
            ensure!(self.left >= BLOCK as u64, "malformed sparse map");
            let mut block = [0; BLOCK];
            self.input.read_exact(&mut block).map_err(truncated)?;
            self.left -= BLOCK as u64;
            if let Some(numbers) = prefix.push(&block)? {
                return Ok(numbers);
            }
        }
    }

    /// Makes a sparse file of a member whose data is all that is left.
    fn locate(&self, member: &mut Member, size: Option<u64>, numbers: &[u64]) -> anyhow::Result<()> {
        let shown = || format!("entry {:?}", String::from_utf8_lossy(&member.path));
        let size = size.ok_or_else(|| anyhow!("malformed sparse map: no size")).with_context(shown)?;
        let regions = sparse::map(numbers, size, self.left).with_context(shown)?;
        (member.size, member.regions) = (size, Some(regions));
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        self.input.skip(self.left)?;
        self.left = 0;
        while self.padding > 0 {
            let mut block = [0; BLOCK];
            let length = usize::try_from(self.padding).map_or(BLOCK, |padding| padding.min(BLOCK));
            match self.input.read(&mut block[..length])? {
                // Some writers leave out the padding of the last member. It carries no data.
                0 => self.padding = 0,
                got => self.padding -= got as u64,
            }
        }
        Ok(())
    }

    /// The next header; `None` at the two zero blocks that end the archive, or at the end of the stream.
    fn header(&mut self) -> anyhow::Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.read_block(&mut header)? {
            return Ok(None);
        }
        if is_zero(&header) {
            // A reader that ends at the first zero block and one that looks for the second must see the same members.
            let is_end = !self.read_block(&mut header)? || is_zero(&header);
            ensure!(is_end, "malformed tar archive: a zero block between members");
            return Ok(None);
        }
        let is_right = header.cksum().is_ok_and(|sum| is_sum(header.as_bytes(), sum));
        ensure!(is_right, "not a tar archive: bad header checksum");
        Ok(Some(header))
    }

    /// Reads a block; false at the end of the stream. Some writers leave the zero blocks out.
    fn read_block(&mut self, header: &mut Header) -> anyhow::Result<bool> {
        let block = header.as_mut_bytes();
        let mut got = 0;
        while got < BLOCK {
            match self.input.read(&mut block[got..])? {
                0 if got == 0 => return Ok(false),
                0 => return Err(truncated(io::ErrorKind::UnexpectedEof.into())),
                more => got += more,
            }
        }
        Ok(true)
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
    let start = || shown().chars().take(80).collect::<String>();
    ensure!(path.len() <= MAX_PATH && link.len() <= MAX_PATH, "entry {:?}…: a name over 4095 bytes", start());
    let kind = match header.entry_type() {
        EntryType::GNUSparse => Kind::File,
        // Before POSIX.1-1988, a directory was a file whose name ends with a slash.
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
    let old = header.as_old();
    let id = |recorded: Option<u64>, header: &[u8], field| {
        let wide = recorded.or_else(|| unsigned(header)).ok_or_else(|| bad(field))?;
        Id::new(wide).map_err(|why| anyhow!("entry {:?}: {field} {wide}: {why}", shown()))
    };
    let metadata = Metadata {
        mode: (number(&old.mode).ok_or_else(|| bad("mode"))? & 0o7777) as u32,
        uid: id(pax.uid, &old.uid, "owner")?,
        gid: id(pax.gid, &old.gid, "group")?,
        mtime: match pax.mtime {
            Some((seconds, nanos)) => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
            None => Timespec { tv_sec: number(&old.mtime).ok_or_else(|| bad("time"))?, tv_nsec: 0 },
        },
        xattrs: pax.xattrs,
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => (
            device(&header.as_bytes()[329..337]).ok_or_else(|| bad("device number"))?,
            device(&header.as_bytes()[337..345]).ok_or_else(|| bad("device number"))?,
        ),
        _ => (0, 0),
    };
    Ok(Member { path, link, kind, size, regions: None, metadata, device })
}

/// Whether `sum` is the sum of a header's bytes, with blanks in the place of the sum itself. Some old programs added signed bytes.
fn is_sum(header: &[u8; BLOCK], sum: u32) -> bool {
    let bytes = || header.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let unsigned: u32 = bytes().map(u32::from).sum();
    let signed: i32 = bytes().map(|byte| i32::from(byte.cast_signed())).sum();
    // The field has six digits.
    sum == unsigned || sum == signed.cast_unsigned() & 0o777_777
}

fn is_zero(header: &Header) -> bool {
    header.as_bytes().iter().all(|&byte| byte == 0)
}

/// The message for a stream that ended too early.
pub fn truncated(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { anyhow!("truncated tar archive") } else { error.into() }
}

#[cfg(test)]
mod tests;
