//! Attributes between `stat(2)` and FUSE.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{FileType as Type, Stat, Timespec, UTIME_NOW, UTIME_OMIT};

use crate::host_ids;

/// The attributes of a negative reply to a lookup. The kernel ignores them.
pub(crate) const NONE: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// A `stat` as FUSE has it, with inode number `ino`.
pub(crate) fn of(stat: &Stat, ino: u64) -> FileAttr {
    let (uid, gid) = host_ids::to_host(stat.st_uid, stat.st_gid);
    let mtime = time(stat.st_mtime as _, stat.st_mtime_nsec as _);
    FileAttr {
        ino: INodeNo(ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime as _, stat.st_atime_nsec as _),
        mtime,
        ctime: time(stat.st_ctime as _, stat.st_ctime_nsec as _),
        crtime: mtime,
        kind: file_type(Type::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid,
        gid,
        // FUSE has the low 32 bits of glibc's device number: 12 bits of major, 20 bits of minor number.
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// A file type as FUSE has it.
pub(crate) fn file_type(file_type: Type) -> FileType {
    match file_type {
        Type::Directory => FileType::Directory,
        Type::Symlink => FileType::Symlink,
        Type::CharacterDevice => FileType::CharDevice,
        Type::BlockDevice => FileType::BlockDevice,
        Type::Fifo => FileType::NamedPipe,
        Type::Socket => FileType::Socket,
        Type::RegularFile | Type::Unknown => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(u64::from(nanoseconds))
}

/// A time to set, as `utimensat(2)` takes it.
pub(crate) fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos() as _ },
            // fuser subtracts the nanoseconds of such a time from its seconds, where the kernel means them to be added.
            Err(before) => {
                let before = before.duration();
                Timespec { tv_sec: (before.as_secs() as i64).wrapping_neg(), tv_nsec: before.subsec_nanos() as _ }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive() {
        for (seconds, nanoseconds) in [(0i64, 0u32), (1, 5), (-1, 0), (-2, 800_000_000), (-1, 999_999_999)] {
            // As fuser makes it of the kernel's numbers.
            let received = match seconds < 0 {
                true => UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanoseconds),
                false => UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanoseconds),
            };
            let to_set = timespec(Some(TimeOrNow::SpecificTime(received)));
            assert_eq!((to_set.tv_sec, to_set.tv_nsec as u32), (seconds, nanoseconds));
            let shown = time(seconds, nanoseconds);
            let whole = shown
                .duration_since(UNIX_EPOCH)
                .map_or_else(|e| -(e.duration().as_nanos() as i128), |d| d.as_nanos() as i128);
            assert_eq!(whole, i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds));
        }
    }
}
