//! Files by name, in a directory or in a tar file that is indexed once and never unpacked. What a name of an image's
//! document leads to is looked up here, so a hostile document reaches nothing but the archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use msb::overlay::beneath::Dir;

use crate::tape::{Kind, Skip, Tape};

/// The most members an archive may have. Real ones have a few dozen.
const MAX_MEMBERS: usize = 100_000;
const BLOCK: usize = 1 << 18;

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
    members: HashMap<String, Found>,
}

#[derive(Clone)]
enum Found {
    File {
        at: u64,
        size: u64,
    },
    /// `docker save` used to write a layer once and link to it.
    Link(String),
}

/// A file of an archive.
pub(crate) struct Piece {
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

    /// Opens and indexes a tar file.
    ///
    /// # Errors
    /// Words for what is no tar file, or a truncated one.
    pub(crate) fn tar(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        ensure!(file.metadata()?.is_file(), "not an archive: no regular file");
        let mut magic = [0; 4];
        let got = file.read_at(&mut magic, 0)?;
        if let Some(tool) = compressor(&magic[..got]) {
            bail!("the archive as a whole is compressed (decompress it with {tool} -d first)");
        }
        Ok(Self::Tar(Index::read(file)?))
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// The file of a name.
    ///
    /// # Errors
    /// Words where it is missing.
    pub(crate) fn open(&self, name: &str) -> anyhow::Result<Piece> {
        match self {
            Self::Dir(dir) => {
                // Symlinks stay inside: a layout is a directory that somebody else may have made.
                let entry = dir.entry_in_root(Path::new(name)).with_context(|| format!("{name:?}"))?;
                let file = entry.open_to_read().map_err(|_| anyhow!("{name:?} is no regular file"))?;
                let size = file.metadata()?.len();
                Ok(Piece { file, at: 0, size })
            }
            Self::Tar(index) => index.open(name),
        }
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// Words where it is missing or larger than `limit`.
    pub(crate) fn document(&self, name: &str, limit: u64) -> anyhow::Result<Vec<u8>> {
        let piece = self.open(name)?;
        ensure!(piece.size <= limit, "{name:?} has {} bytes, {limit} at most", piece.size);
        let mut text = Vec::new();
        piece.copy(&mut text)?;
        Ok(text)
    }
}

/// The tool that undoes a whole-file compression, by its magic.
fn compressor(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        [b'B', b'Z', b'h', _] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        _ => None,
    }
}

impl Index {
    fn read(file: File) -> anyhow::Result<Self> {
        let length = file.metadata()?.len();
        let mut tape = Tape::new(Cursor { file, at: 0, length });
        let mut members = HashMap::new();
        while let Some(member) = tape.next()? {
            ensure!(members.len() < MAX_MEMBERS, "the archive has more than {MAX_MEMBERS} members");
            let Ok(name) = String::from_utf8(member.path) else { continue };
            let name = name.trim_start_matches("./").trim_start_matches('/').to_owned();
            let link = String::from_utf8_lossy(&member.link).into_owned();
            match member.kind {
                Kind::File => {
                    let at = tape.data().0.at;
                    ensure!(member.size <= length.saturating_sub(at), "truncated tar archive: {name:?} is cut off");
                    members.insert(name, Found::File { at, size: member.size });
                }
                Kind::Symlink => {
                    members.insert(name.clone(), Found::Link(beside(&name, &link)));
                }
                Kind::Hardlink => {
                    members.insert(name, Found::Link(link.trim_start_matches("./").to_owned()));
                }
                _ => {}
            }
        }
        ensure!(!members.is_empty(), "not an archive: it holds no files");
        Ok(Self { file: tape.into_inner().file, members })
    }

    fn open(&self, name: &str) -> anyhow::Result<Piece> {
        let mut found = self.members.get(name);
        for _ in 0..8 {
            match found {
                Some(Found::File { at, size }) => {
                    return Ok(Piece { file: self.file.try_clone()?, at: *at, size: *size });
                }
                Some(Found::Link(to)) => found = self.members.get(to),
                None => break,
            }
        }
        bail!("{name:?} is not in the archive")
    }
}

/// Where a relative symlink of the member `name` leads, by its words alone.
fn beside(name: &str, link: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Piece {
    /// Writes the file's bytes to `out`.
    ///
    /// # Errors
    /// Words for a file that shrank; else what reading or writing says.
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

/// A file that is read front to back, with steps over what nobody wants.
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
