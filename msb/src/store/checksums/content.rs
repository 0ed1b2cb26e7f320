//! The hash of a file's content. It covers the blocks that are not zero, each with its offset. So it is the same for holes and for zeros,
//! and for a file that is read and one that is hashed while it is written. This module also decides which xattrs count.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;

use blake3::{Hash, Hasher};
use rustix::fs::Stat;

use crate::overlay::beneath::Entry;

/// The block that is hashed or left out, in bytes.
pub(super) const BLOCK: usize = 1 << 16;
/// How many files are remembered, in 7 MiB. Others are read again.
const MAX_REMEMBERED: usize = 7 << 14;

/// An xattr that administrators change with restorecon(8).
const LABEL: &str = "security.selinux";

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The names of the xattrs that count, sorted.
pub(super) fn xattr_names(entry: &Entry) -> io::Result<Vec<OsString>> {
    let mut names = entry.xattr_names()?;
    names.retain(|name| name != LABEL);
    names.sort();
    Ok(names)
}

/// Hashes a file from front to back.
#[derive(Clone, Debug, Default)]
pub struct ContentHash {
    hash: Hasher,
    /// The offset of the next byte.
    at: u64,
    /// Whether the current block is part of the hash. If not, all of its bytes so far are zero.
    has_block: bool,
}

impl ContentHash {
    /// Adds the bytes that come next.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = usize::try_from(self.at % BLOCK as u64).unwrap_or(0);
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - within));
            self.has_block &= within > 0;
            if !self.has_block && part.iter().any(|&byte| byte != 0) {
                self.hash.update(&(self.at - within as u64).to_le_bytes());
                self.hash.update(&ZEROS[..within]);
                self.has_block = true;
            }
            if self.has_block {
                self.hash.update(part);
            }
            self.at += part.len() as u64;
            bytes = rest;
        }
    }

    /// Skips blocks that are zero. The next byte is at `offset`, a multiple of the block size.
    pub(super) fn seek(&mut self, offset: u64) {
        (self.at, self.has_block) = (offset, false);
    }

    /// The hash.
    pub fn finish(&self) -> Hash {
        self.hash.finalize()
    }
}

/// The files that a process has written into a layer, so that they need not be opened again for its checksums.
#[derive(Clone, Debug, Default)]
pub struct Contents(HashMap<u64, Written>);

/// A file that was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    size: i64,
    pub(super) content: Hash,
    /// Whether it has xattrs, which have to be read.
    pub(super) has_xattrs: bool,
}

impl Contents {
    /// Remembers an open file whose content and attributes are complete. They must not change after that. The file may still be renamed,
    /// linked and removed.
    ///
    /// # Errors
    /// The error of `flistxattr(2)`.
    pub fn remember(&mut self, entry: &Entry, content: &ContentHash) -> io::Result<()> {
        let stat = entry.stat();
        // An earlier file with this inode number was removed.
        if self.0.len() < MAX_REMEMBERED || self.0.contains_key(&stat.st_ino) {
            let has_xattrs = !xattr_names(entry)?.is_empty();
            self.0.insert(stat.st_ino, Written { size: stat.st_size, content: content.finish(), has_xattrs });
        }
        Ok(())
    }

    /// Forgets an earlier file with the inode number of a file that is not remembered.
    pub fn forget(&mut self, entry: &Entry) {
        self.0.remove(&entry.stat().st_ino);
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry of a file, if it is remembered.
    pub(super) fn of(&self, stat: &Stat) -> Option<&Written> {
        self.0.get(&stat.st_ino).filter(|written| written.size == stat.st_size)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// The definition, by whole blocks.
    fn by_blocks(content: &[u8]) -> Hash {
        let mut hash = Hasher::new();
        for (number, block) in content.chunks(BLOCK).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                hash.update(&((number * BLOCK) as u64).to_le_bytes());
                hash.update(block);
            }
        }
        hash.finalize()
    }

    #[test]
    fn the_hash_does_not_depend_on_the_pieces() {
        let mut content = vec![0; 5 * BLOCK + 7];
        for at in [BLOCK - 1, 3 * BLOCK, 4 * BLOCK + 5000, 5 * BLOCK + 6] {
            content[at] = 1;
        }
        for end in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 1, 5 * BLOCK, content.len()] {
            for piece in [1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, content.len()] {
                let mut hash = ContentHash::default();
                content[..end].chunks(piece).for_each(|piece| hash.update(piece));
                assert_eq!(hash.finish(), by_blocks(&content[..end]), "{end} bytes in pieces of {piece}");
            }
        }
        let mut hash = ContentHash::default();
        hash.update(&content[..BLOCK]);
        hash.seek(3 * BLOCK as u64);
        hash.update(&content[3 * BLOCK..]);
        assert_eq!(hash.finish(), by_blocks(&content));
    }

    #[test]
    fn the_last_file_with_an_inode_number_and_its_size_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let (mut contents, hash) = (Contents::default(), |text: &[u8]| {
            let mut hash = ContentHash::default();
            hash.update(text);
            hash
        });
        let entry = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            Entry::of_open(File::open(&path).unwrap()).unwrap()
        };
        let known = |contents: &Contents, entry: &Entry| contents.of(entry.stat()).map(|written| written.content);
        let one = entry(b"one");
        contents.remember(&one, &hash(b"one")).unwrap();
        let four = entry(b"four");
        assert_eq!((known(&contents, &one), known(&contents, &four)), (Some(hash(b"one").finish()), None));
        contents.remember(&four, &hash(b"four")).unwrap();
        assert_eq!((known(&contents, &one), known(&contents, &four)), (None, Some(hash(b"four").finish())));
        let same_size = entry(b"4444");
        contents.forget(&same_size);
        assert_eq!(known(&contents, &same_size), None);
        contents.remember(&four, &hash(b"four")).unwrap();
        // When the table is full, no file is added, but an entry can be replaced.
        let written = *contents.of(four.stat()).unwrap();
        contents.0.extend((0..MAX_REMEMBERED as u64).map(|number| (u64::MAX - number, written)));
        let full = contents.0.len();
        contents.remember(&Entry::of_open(tempfile::tempfile().unwrap()).unwrap(), &hash(b"")).unwrap();
        assert_eq!(contents.0.len(), full);
        let other = entry(b"other");
        contents.remember(&other, &hash(b"other")).unwrap();
        assert_eq!(known(&contents, &other), Some(hash(b"other").finish()));
    }
}
