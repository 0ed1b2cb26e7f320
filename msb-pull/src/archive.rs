//! Files by name, in a directory or in a tar file that is indexed once and never unpacked. Names in an image's documents are
//! looked up here, so a hostile document reaches nothing outside the archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use msb::overlay::beneath::Dir;
use msb_archive::{Kind, Skip, Tape};

use crate::budget::Budget;
use crate::compression::{self, Compression};
use crate::decompressor::Decompressor;

/// The most members an archive may have. Real ones have a few dozen.
const MAX_MEMBERS: usize = 100_000;
const BLOCK: usize = 1 << 18;
/// Directories, or symlinks to them, at the top of a root file system. An archive of images has none of them.
const ROOT_DIRECTORIES: &[&str] = &["usr", "bin", "sbin", "etc", "lib"];

/// Files by name.
pub(crate) enum Files {
    /// In a directory.
    Dir(Dir),
    /// In a tar file.
    Tar(Index),
}

/// Where the members of a tar file are.
pub(crate) struct Index {
    file: File,
    members: HashMap<String, MemberData>,
    /// Whether the archive has the directories of a root file system at its top.
    is_root: bool,
}

/// Where the data of a member is.
#[derive(Clone)]
enum MemberData {
    File {
        at: u64,
        size: u64,
    },
    /// `docker save` used to write a layer once and link to it.
    Link(String),
}

/// A file of an archive.
pub(crate) struct ArchiveFile {
    file: File,
    at: u64,
    pub(crate) size: u64,
}

impl Files {
    /// Opens a directory.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub(crate) fn dir(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::Dir(Dir::open(path)?))
    }

    /// Opens and indexes a tar file. If it is compressed as a whole or cannot be read twice, it is first copied, decompressed, to
    /// the file `spool`, whose name is then removed.
    ///
    /// # Errors
    /// A message for a file that is not a tar file, or for a truncated one.
    pub(crate) fn tar(path: &Path, spool: &Path, budget: &Budget) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        ensure!(!file.metadata()?.is_dir(), "not an archive: a directory");
        let is_regular = file.metadata()?.is_file();
        let (compression, whole) = compression::detect(BufReader::with_capacity(BLOCK, &file))?;
        if !is_regular || compression != Compression::None {
            return Self::stream(whole, spool, budget);
        }
        drop(whole);
        file.rewind()?;
        Ok(Self::Tar(Index::read(file)?))
    }

    /// Indexes a tar file that is read from a stream, compressed or not.
    ///
    /// # Errors
    /// As [`Self::tar`].
    pub(crate) fn stream(input: impl BufRead + Send, path: &Path, budget: &Budget) -> anyhow::Result<Self> {
        let mut spool = File::options().read(true).write(true).create_new(true).open(path)?;
        Decompressor::default().decompress(input, |piece| {
            budget.spool(piece.len() as u64)?;
            spool.write_all(&piece).context("spooling the archive")
        })?;
        std::fs::remove_file(path)?;
        ensure!(spool.stream_position()? > 0, "the archive is empty");
        Ok(Self::Tar(Index::read(spool)?))
    }

    /// Whether this is a tar file with the directories of a root file system at its top.
    pub(crate) fn is_root(&self) -> bool {
        matches!(self, Self::Tar(index) if index.is_root)
    }

    /// The whole tar file.
    ///
    /// # Errors
    /// A message for a directory.
    pub(crate) fn whole(&self) -> anyhow::Result<ArchiveFile> {
        match self {
            Self::Tar(index) => index.whole(),
            Self::Dir(_) => bail!("not an archive: a directory"),
        }
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// The file of a name.
    ///
    /// # Errors
    /// A message if it is missing.
    pub(crate) fn open(&self, name: &str) -> anyhow::Result<ArchiveFile> {
        match self {
            Self::Dir(dir) => {
                // Symlinks are resolved inside the directory, because it may come from someone else.
                let entry = dir.entry_in_root(Path::new(name)).with_context(|| format!("{name:?}"))?;
                let file = entry.open_to_read().map_err(|_| anyhow!("{name:?} is not a regular file"))?;
                let size = file.metadata()?.len();
                Ok(ArchiveFile { file, at: 0, size })
            }
            Self::Tar(index) => index.open(name),
        }
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// A message if it is missing or larger than `limit`.
    pub(crate) fn document(&self, name: &str, limit: u64) -> anyhow::Result<Vec<u8>> {
        let piece = self.open(name)?;
        ensure!(piece.size <= limit, "{name:?} has {} bytes, {limit} at most", piece.size);
        let mut text = Vec::new();
        piece.copy(&mut text)?;
        Ok(text)
    }
}

impl Index {
    fn read(file: File) -> anyhow::Result<Self> {
        let length = file.metadata()?.len();
        let mut tape = Tape::new(Cursor { file, at: 0, length });
        let mut members = HashMap::new();
        let mut is_root = false;
        while let Some(member) = tape.next_member()? {
            let at = tape.data().0.at;
            let stored = tape.data().1;
            let name = String::from_utf8_lossy(&member.path);
            let name = clean(&name);
            ensure!(stored <= length.saturating_sub(at), "truncated tar archive: {name:?} is cut off");
            is_root |= ROOT_DIRECTORIES.contains(&name.split('/').next().unwrap_or_default());
            if members.len() >= MAX_MEMBERS {
                // A root file system may have any number of files, and none of them is looked up.
                ensure!(is_root, "the archive has more than {MAX_MEMBERS} members");
                continue;
            }
            let link = String::from_utf8_lossy(&member.link).into_owned();
            match member.kind {
                Kind::File if member.regions.is_none() => {
                    members.insert(name, MemberData::File { at, size: member.size });
                }
                Kind::Symlink => {
                    members.insert(name.clone(), MemberData::Link(beside(&name, &link)));
                }
                Kind::Hardlink => {
                    members.insert(name, MemberData::Link(clean(&link)));
                }
                _ => {}
            }
        }
        ensure!(is_root || !members.is_empty(), "not an archive: it holds no files");
        Ok(Self { file: tape.into_inner().file, members, is_root })
    }

    fn whole(&self) -> anyhow::Result<ArchiveFile> {
        Ok(ArchiveFile { file: self.file.try_clone()?, at: 0, size: self.file.metadata()?.len() })
    }

    fn open(&self, name: &str) -> anyhow::Result<ArchiveFile> {
        let mut found = self.members.get(&clean(name));
        for _ in 0..8 {
            match found {
                Some(MemberData::File { at, size }) => {
                    return Ok(ArchiveFile { file: self.file.try_clone()?, at: *at, size: *size });
                }
                Some(MemberData::Link(to)) => found = self.members.get(to),
                None => break,
            }
        }
        bail!("{name:?} is not in the archive")
    }
}

/// The target of a relative symlink of the member `name`, computed from the two names alone.
fn beside(name: &str, link: &str) -> String {
    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
    clean(&format!("{above}/{link}"))
}

/// A name as it is looked up: relative to the archive's top, which no `..` leaves, without `.` and doubled slashes. Names in an
/// archive and in its documents need not be written alike.
fn clean(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl ArchiveFile {
    /// Writes the file's bytes to `out`.
    ///
    /// # Errors
    /// A message for a file that shrank; the errors of reading and writing.
    pub(crate) fn copy(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let (mut at, end) = (self.at, self.at + self.size);
        let mut block = vec![0; BLOCK];
        while at < end {
            let wanted = block.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match self.file.read_at(&mut block[..wanted], at)? {
                0 => bail!("truncated: the file ended early"),
                got => {
                    out.write_all(&block[..got])?;
                    at += got as u64;
                }
            }
        }
        Ok(())
    }
}

/// A file that is read from front to back, and skips what is not needed.
struct Cursor {
    file: File,
    at: u64,
    length: u64,
}

impl Read for Cursor {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(into, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Skip for Cursor {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        match self.at.checked_add(length) {
            Some(at) if at <= self.length => {
                self.at = at;
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_however_it_is_written() {
        for (name, expected) in [
            ("a/layer.tar", "a/layer.tar"),
            ("./a/layer.tar", "a/layer.tar"),
            ("/a//layer.tar", "a/layer.tar"),
            ("././a/./layer.tar/", "a/layer.tar"),
            ("a/b/../layer.tar", "a/layer.tar"),
            ("../../a/.../layer.tar", "a/.../layer.tar"),
            (".", ""),
        ] {
            assert_eq!(clean(name), expected, "{name}");
        }
    }

    #[test]
    fn links_between_members_are_followed_by_words() {
        for (name, link, to) in [
            ("b/layer.tar", "../a/layer.tar", "a/layer.tar"),
            ("layer.tar", "a.tar", "a.tar"),
            ("x", "../../../etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(beside(name, link), to);
        }
    }
}
