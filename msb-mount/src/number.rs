//! Inode numbers: unique over all layers, and as stable as the files, since a server that exports the mount identifies files by them.

use std::sync::RwLock;

use rustix::fs::Stat;

use crate::lock::{read, write};

/// Set in the ids of nodes that are not identified by their inode number.
pub(crate) const NAMELESS: u64 = 1 << 63;

/// The inode number of a name that is listed in directory `parent` at `place` but cannot be looked up. No node has it.
pub(crate) fn unreadable(parent: u64, place: u64) -> u64 {
    NAMELESS | 1 << 62 | (parent.rotate_left(20) ^ place) >> 2
}

/// The bits that hold a file system's own inode number. Those above have the index of the file system.
const OWN_BITS: u32 = 48;

/// Combines device and inode number into one number. Files on the first file system keep theirs.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    devices: RwLock<Vec<u64>>,
}

impl Numbers {
    /// The number of the file that `stat` is of.
    pub(crate) fn of(&self, stat: &Stat) -> u64 {
        self.fold(stat.st_dev, stat.st_ino)
    }

    /// The number of inode `ino` on `device`. Never 0 or 1, which FUSE reserves.
    pub(crate) fn fold(&self, device: u64, ino: u64) -> u64 {
        let place = self.place(device);
        if place == 0 && ino > 1 && ino >> OWN_BITS == 0 {
            return ino;
        }
        (((place + 1) << OWN_BITS) ^ ino) & !NAMELESS
    }

    fn place(&self, device: u64) -> u64 {
        let find = |devices: &[u64]| devices.iter().position(|&known| known == device);
        if let Some(place) = find(&read(&self.devices)) {
            return place as u64;
        }
        let mut devices = write(&self.devices);
        let place = find(&devices).unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        place as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_keeps_its_numbers_and_others_never_meet_them() {
        let numbers = Numbers::default();
        assert_eq!(numbers.fold(7, 12), 12);
        assert_eq!(numbers.fold(7, 1 << 40), 1 << 40);
        let other = numbers.fold(8, 12);
        assert_ne!(other, 12);
        assert_eq!(numbers.fold(8, 12), other);
        assert_ne!(numbers.fold(9, 12), other);
        for ino in [0, 1, u64::MAX] {
            let number = numbers.fold(7, ino);
            assert!(number > 1 && number & NAMELESS == 0, "{ino}: {number}");
        }
    }
}
