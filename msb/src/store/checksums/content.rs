//! The hash of a file's content: that of the blocks that are not zero, each with its offset. It is the same whether the file is read or
//! was hashed while it was written, and whether zeros are data or holes.

use std::collections::HashMap;

use blake3::{Hash, Hasher};

/// The block that is hashed or left out, in bytes.
pub(super) const BLOCK: usize = 1 << 16;
/// How many files are remembered: 6 MiB. The content of further ones is read again.
const MAX_REMEMBERED: usize = 1 << 17;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Hashes a file from front to back.
#[derive(Clone, Debug, Default)]
pub struct ContentHash {
    hash: Hasher,
    /// The offset of the next byte.
    at: u64,
    /// Whether the hash has the block that this byte is in. Otherwise all bytes before it in the block are zero.
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

    /// Leaves out blocks that are zero: the next byte is the one at `offset`, a multiple of the block size.
    pub(super) fn seek(&mut self, offset: u64) {
        (self.at, self.has_block) = (offset, false);
    }

    /// The hash.
    pub fn finish(&self) -> Hash {
        self.hash.finalize()
    }
}

/// The content of the files that a process has written into a layer, so that the layer need not be read again for its checksums.
#[derive(Clone, Debug, Default)]
pub struct Contents(HashMap<u64, (u64, Hash)>);

impl Contents {
    /// Remembers the content of the file with this inode number and size. It must not change after that, but may be removed.
    pub fn remember(&mut self, inode: u64, size: u64, content: &ContentHash) {
        // The file that had the number before is gone.
        if self.0.len() < MAX_REMEMBERED || self.0.contains_key(&inode) {
            self.0.insert(inode, (size, content.finish()));
        }
    }

    /// The content of a file, if it is known.
    pub(super) fn of(&self, inode: u64, size: u64) -> Option<Hash> {
        self.0.get(&inode).filter(|(known, _)| *known == size).map(|(_, hash)| *hash)
    }
}

#[cfg(test)]
mod tests {
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
        let mut contents = Contents::default();
        let hash = |text: &str| {
            let mut hash = ContentHash::default();
            hash.update(text.as_bytes());
            hash
        };
        contents.remember(7, 3, &hash("one"));
        contents.remember(7, 4, &hash("four"));
        assert_eq!(contents.of(7, 4), Some(hash("four").finish()));
        assert_eq!((contents.of(7, 3), contents.of(8, 4)), (None, None));
        for inode in 8..8 + MAX_REMEMBERED as u64 {
            contents.remember(inode, 1, &hash("x"));
        }
        assert_eq!(contents.0.len(), MAX_REMEMBERED);
        contents.remember(7, 3, &hash("new"));
        assert_eq!(contents.of(7, 3), Some(hash("new").finish()));
    }
}
