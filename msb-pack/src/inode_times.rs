//! The times of the inodes of a new ext4 file system. mke2fs copies access and change times from the tree, which only say when its
//! files were unpacked. Here both become the modification time, so that the same root gives the same disk.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/` (`super.rst`, `group_descr.rst`, `inodes.rst`, `checksums.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;
/// `RO_COMPAT_METADATA_CSUM`.
const METADATA_CSUM: u32 = 0x400;
/// `INCOMPAT_CSUM_SEED`.
const CSUM_SEED: u32 = 0x2000;
/// `BG_INODE_UNINIT`.
const INODE_UNINIT: u16 = 1;
/// The part of an inode that every file system has, in bytes.
const OLD_INODE: usize = 128;
/// How much of the rest the times take, in bytes.
const TIMES_EXTRA: u16 = 16;

/// Offsets in an inode.
const ATIME: usize = 0x08;
const CTIME: usize = 0x0c;
const MTIME: usize = 0x10;
const GENERATION: usize = 0x64;
const CHECKSUM_LOW: usize = 0x7c;
const EXTRA_SIZE: usize = 0x80;
const CHECKSUM_HIGH: usize = 0x82;
const CTIME_EXTRA: usize = 0x84;
const MTIME_EXTRA: usize = 0x88;
const ATIME_EXTRA: usize = 0x8c;

/// What the superblock says about inodes.
struct Layout {
    block: u64,
    inodes: u32,
    per_group: u32,
    inode_size: usize,
    descriptor_size: usize,
    /// What checksums of metadata begin with, if there are any.
    seed: Option<u32>,
}

impl Layout {
    /// Reads the layout of a disk of `length` bytes. A hostile image may have taken mke2fs over, so what would take too much memory here
    /// is refused.
    fn read(file: &File, length: u64) -> io::Result<Self> {
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, SUPERBLOCK)?;
        let [incompat, ro_compat] = [0x60, 0x64].map(|at| u32_at(&superblock, at));
        let uuid = &superblock[0x68..0x78];
        let seed = if incompat & CSUM_SEED == 0 { crc32c(!0, uuid) } else { u32_at(&superblock, 0x270) };
        let layout = Self {
            block: 1024 << u32_at(&superblock, 0x18).min(6),
            inodes: u32_at(&superblock, 0x00),
            per_group: u32_at(&superblock, 0x28),
            inode_size: u16_at(&superblock, 0x58).into(),
            descriptor_size: usize::from(u16_at(&superblock, 0xfe)).max(32),
            seed: (ro_compat & METADATA_CSUM != 0).then_some(seed),
        };
        let is_expected = (layout.block, layout.inode_size) == (4096, 256)
            && matches!(layout.descriptor_size, 32 | 64)
            && (1..=1 << 16).contains(&layout.per_group)
            // mke2fs makes no smaller groups than of 256 blocks, or a few less.
            && u64::from(layout.inodes.div_ceil(layout.per_group)) <= length.div_ceil(128 * layout.block);
        match is_expected {
            true => Ok(layout),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a layout that mke2fs was not asked for")),
        }
    }
}

/// Sets the access and the change time of all inodes to their modification time. `length`: that of the disk, in bytes.
///
/// # Errors
/// The error of reading and writing; [`io::ErrorKind::InvalidData`] for a layout that mke2fs was not asked for.
pub(crate) fn settle(file: &File, length: u64) -> io::Result<()> {
    let layout = Layout::read(file, length)?;
    let groups = layout.inodes.div_ceil(layout.per_group);
    let mut descriptors = vec![0; groups as usize * layout.descriptor_size];
    // They follow the block with the superblock.
    file.read_exact_at(&mut descriptors, layout.block.max(2 * SUPERBLOCK))?;
    let mut table = Vec::new();
    for (group, descriptor) in (0..groups).zip(descriptors.chunks_exact(layout.descriptor_size)) {
        if u16_at(descriptor, 0x12) & INODE_UNINIT != 0 {
            continue;
        }
        let is_wide = descriptor.len() >= 64;
        let high_place = if is_wide { u32_at(descriptor, 0x28) } else { 0 };
        let high_unused = if is_wide { u16_at(descriptor, 0x32) } else { 0 };
        let place = u64::from(high_place) << 32 | u64::from(u32_at(descriptor, 0x08));
        let unused = u32::from(high_unused) << 16 | u32::from(u16_at(descriptor, 0x1c));
        let used = layout.per_group.saturating_sub(unused);
        table.resize(used as usize * layout.inode_size, 0);
        let place = place.saturating_mul(layout.block);
        file.read_exact_at(&mut table, place)?;
        for (number, inode) in (group * layout.per_group + 1..).zip(table.chunks_exact_mut(layout.inode_size)) {
            settle_inode(inode, number, layout.seed);
        }
        file.write_all_at(&table, place)?;
    }
    Ok(())
}

fn settle_inode(inode: &mut [u8], number: u32, seed: Option<u32>) {
    // One that is not in use.
    if inode.iter().all(|&byte| byte == 0) {
        return;
    }
    let extra_size = if inode.len() > OLD_INODE { u16_at(inode, EXTRA_SIZE) } else { 0 };
    inode.copy_within(MTIME..MTIME + 4, ATIME);
    inode.copy_within(MTIME..MTIME + 4, CTIME);
    if extra_size >= TIMES_EXTRA {
        inode.copy_within(MTIME_EXTRA..MTIME_EXTRA + 4, ATIME_EXTRA);
        inode.copy_within(MTIME_EXTRA..MTIME_EXTRA + 4, CTIME_EXTRA);
    }
    let Some(seed) = seed else { return };
    inode[CHECKSUM_LOW..CHECKSUM_LOW + 2].fill(0);
    if extra_size >= 4 {
        inode[CHECKSUM_HIGH..CHECKSUM_HIGH + 2].fill(0);
    }
    let seed = crc32c(crc32c(seed, &number.to_le_bytes()), &inode[GENERATION..GENERATION + 4]);
    let [low, lower, high, higher] = crc32c(seed, inode).to_le_bytes();
    inode[CHECKSUM_LOW..CHECKSUM_LOW + 2].copy_from_slice(&[low, lower]);
    if extra_size >= 4 {
        inode[CHECKSUM_HIGH..CHECKSUM_HIGH + 2].copy_from_slice(&[high, higher]);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// CRC-32C of each byte, without the inversions at its ends.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_layout_that_was_not_asked_for_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(settle(&file, 1 << 20).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_unused_inode_stays_empty() {
        let mut inode = [0; 256];
        settle_inode(&mut inode, 20, Some(7));
        assert_eq!(inode, [0; 256]);
    }
}
