//! A tar archive of a root or of a layer: ustar headers, with PAX records for what those cannot hold.
//!
//! In a layer, whiteouts and opaque directories have the names of the OCI image specification (`layer.md`, "Whiteouts"). Holes
//! are written as zeros: the specification advises against sparse entries, and where holes are depends on the file system.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use msb::overlay::Leaf;
use msb::overlay::beneath::{Entry, Name};
use msb::overlay::whiteout::{OciName, is_private_xattr, oci_opaque, oci_whiteout, read_oci_name};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::hardlinks::Hardlinks;
use crate::pax::{self, Records};
use crate::walk::{CHANGED, Item, Sink, require_unchanged};

/// Xattrs of the host that mean nothing elsewhere.
const OF_THE_HOST: &[&str] = &["security.selinux", "security.ima", "security.evm"];
/// The largest numbers in 7 and in 11 octal digits.
const MAX_ID: u32 = 0o7777777;
const MAX_NUMBER: i64 = 0o77777777777;

/// An archive that is being written.
pub(crate) struct TarOut<W: Write> {
    archive: Builder<W>,
    /// Whether names have the meaning of a layer.
    is_layer: bool,
    /// Newer modification times become this one, in seconds.
    newest: Option<i64>,
    hardlinks: Hardlinks,
    /// Sockets, which an archive cannot hold.
    pub(crate) left_out: u64,
}

impl<W: Write> TarOut<W> {
    pub(crate) fn new(out: W, is_layer: bool, newest: Option<i64>) -> Self {
        Self { archive: Builder::new(out), is_layer, newest, hardlinks: Hardlinks::default(), left_out: 0 }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn finish(self) -> io::Result<W> {
        self.archive.into_inner()
    }

    /// Adds a regular file that is in memory, owned by root.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn add_file(&mut self, path: &Path, mode: u32, mtime: i64, content: &[u8]) -> io::Result<()> {
        let mut member = Member::new(EntryType::Regular, path, mode);
        member.set_time(mtime, 0);
        member.header.set_size(content.len() as u64);
        member.write(&mut self.archive, content)
    }

    /// Adds an open file of `size` bytes, owned by root.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub(crate) fn add_open_file(&mut self, path: &Path, file: &std::fs::File, size: u64) -> io::Result<()> {
        let mut member = Member::new(EntryType::Regular, path, 0o644);
        member.set_size(size);
        member.write(&mut self.archive, Exactly { file: file.try_clone()?, left: size })
    }

    /// Adds a directory of root.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn add_dir(&mut self, path: &Path, mtime: i64) -> io::Result<()> {
        let mut member = Member::new(EntryType::Directory, &with_slash(path), 0o755);
        member.set_time(mtime, 0);
        member.write(&mut self.archive, io::empty())
    }

    fn member(&self, kind: EntryType, path: &Path, entry: &Entry) -> anyhow::Result<Member> {
        let stat = entry.stat();
        let mut member = Member::new(kind, path, stat.st_mode & 0o7777);
        member.set_owner(stat);
        match self.newest {
            Some(newest) if newest <= stat.st_mtime => member.set_time(newest, 0),
            _ => member.set_time(stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        }
        let mut names = entry.xattr_names()?;
        names.sort();
        for name in names {
            if is_private_xattr(&name) || OF_THE_HOST.iter().any(|host| name == *host) {
                continue;
            }
            ensure!(!name.as_bytes().contains(&b'='), "xattr {name:?}: an archive cannot hold a name with \"=\"");
            let value = match entry.xattr(&name) {
                // It was removed after it was listed.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODATA) => continue,
                value => value.with_context(|| format!("xattr {name:?}"))?,
            };
            member.records.add(&[b"SCHILY.xattr.", name.as_bytes()].concat(), &value);
        }
        Ok(member)
    }

    fn leaf(&mut self, path: &Path, leaf: &Leaf) -> anyhow::Result<()> {
        let stat = leaf.entry.stat();
        let kind = match leaf.entry.file_type() {
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => {
                self.left_out += 1;
                return Ok(());
            }
        };
        if let Some(first) = self.hardlinks.first(path, leaf) {
            // podman and containerd set the attributes of a file anew for each of its names.
            let mut member = self.member(EntryType::Link, path, &leaf.entry)?;
            member.set_target(first.as_os_str());
            return Ok(member.write(&mut self.archive, io::empty())?);
        }
        let mut member = self.member(kind, path, &leaf.entry)?;
        match kind {
            EntryType::Regular => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                member.set_size(size);
                let mut content = Exactly { file: leaf.data().open_to_read()?, left: size };
                member.write(&mut self.archive, &mut content)?;
                require_unchanged(leaf.data())?;
            }
            EntryType::Symlink => {
                member.set_target(&leaf.entry.read_link()?);
                member.write(&mut self.archive, io::empty())?;
            }
            EntryType::Char | EntryType::Block => {
                member.header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                member.header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                member.write(&mut self.archive, io::empty())?;
            }
            _ => member.write(&mut self.archive, io::empty())?,
        }
        Ok(())
    }

    /// Adds an empty file whose name is a mark.
    fn mark(&mut self, path: &Path) -> io::Result<()> {
        let mut member = Member::new(EntryType::Regular, path, 0);
        member.set_time(0, 0);
        member.write(&mut self.archive, io::empty())
    }
}

impl<W: Write> Sink for TarOut<W> {
    fn put(&mut self, path: &Path, item: Item<'_>) -> anyhow::Result<()> {
        let name = path.file_name().unwrap_or_default();
        if self.is_layer {
            let is_plain = read_oci_name(name) == OciName::Plain;
            ensure!(
                is_plain,
                "{path:?}: a layer cannot hold a file of this name, which is that of a whiteout (remove it)"
            );
        }
        let mut put = || -> anyhow::Result<()> {
            match item {
                Item::Dir { entry, is_opaque } => {
                    let member = self.member(EntryType::Directory, &with_slash(path), entry)?;
                    member.write(&mut self.archive, io::empty())?;
                    if is_opaque && self.is_layer {
                        self.mark(&path.join(oci_opaque()))?;
                    }
                }
                Item::Leaf(leaf) => self.leaf(path, leaf)?,
                Item::Removed => {
                    let mark = oci_whiteout(Name::new(name)?);
                    ensure!(mark.len() <= 255, "a whiteout of this name would be too long");
                    self.mark(&path.with_file_name(mark))?;
                }
            }
            Ok(())
        };
        put().with_context(|| format!("{path:?}"))
    }
}

/// The name of a directory in an archive.
fn with_slash(path: &Path) -> PathBuf {
    let mut name = if path.as_os_str().is_empty() { ".".into() } else { path.as_os_str().to_owned() };
    name.push("/");
    name.into()
}

/// A member that is being made.
struct Member {
    header: Header,
    records: Records,
}

impl Member {
    fn new(kind: EntryType, path: &Path, mode: u32) -> Self {
        let (mut header, mut records) = (Header::new_ustar(), Records::default());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let name = path.as_os_str().as_bytes();
        let field = &mut header.as_old_mut().name;
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
        if name.len() > length {
            records.add(b"path", name);
        }
        Self { header, records }
    }

    fn set_owner(&mut self, stat: &Stat) {
        self.header.set_uid(stat.st_uid.min(MAX_ID).into());
        self.header.set_gid(stat.st_gid.min(MAX_ID).into());
        for (key, id) in [("uid", stat.st_uid), ("gid", stat.st_gid)] {
            if id > MAX_ID {
                self.records.add(key.as_bytes(), id.to_string().as_bytes());
            }
        }
    }

    fn set_time(&mut self, seconds: i64, nanoseconds: u32) {
        self.header.set_mtime(u64::try_from(seconds.clamp(0, MAX_NUMBER)).unwrap_or(0));
        if nanoseconds != 0 || !(0..=MAX_NUMBER).contains(&seconds) {
            self.records.add(b"mtime", pax::time(seconds, nanoseconds).as_bytes());
        }
    }

    fn set_size(&mut self, size: u64) {
        self.header.set_size(size);
        if i64::try_from(size).map_or(true, |size| size > MAX_NUMBER) {
            self.records.add(b"size", size.to_string().as_bytes());
        }
    }

    fn set_target(&mut self, target: &OsStr) {
        let target = target.as_bytes();
        let field = &mut self.header.as_old_mut().linkname;
        let length = target.len().min(field.len());
        field[..length].copy_from_slice(&target[..length]);
        if target.len() > length {
            self.records.add(b"linkpath", target);
        }
    }

    fn write<W: Write>(mut self, archive: &mut Builder<W>, content: impl Read) -> io::Result<()> {
        if !self.records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.as_old_mut().name[..11].copy_from_slice(b"PaxHeader/x");
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(self.records.bytes().len() as u64);
            header.set_cksum();
            archive.append(&header, self.records.bytes())?;
        }
        self.header.set_cksum();
        archive.append(&self.header, content)
    }
}

/// A file that has to have as many bytes as its header says.
struct Exactly {
    file: std::fs::File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(block.len());
        if length == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut block[..length])?;
        if count == 0 {
            return Err(io::Error::other(CHANGED));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
