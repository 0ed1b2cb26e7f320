//! Copying the data of a file.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::interrupt;

/// Files up to this size, in bytes, are read in one call: copy_file_range(2) takes longer to begin.
const SMALL: u64 = 1 << 15;
/// The size of the blocks that are copied with read and write, in bytes: it fits into a processor's cache.
const BLOCK: usize = 1 << 17;
/// The alignment of that buffer, in bytes: the kernel then copies into it in about half the time.
const PAGE: usize = 4096;
/// The most that the kernel copies in one call, in bytes: a signal is not handled before the call returns.
const MAX_RANGE: usize = 64 << 20;

/// Copies the first `length` bytes of a file, in the kernel, with its holes, and as a reflink if the file system can.
///
/// # Errors
/// The error of reading or writing: ENOSPC.
pub fn copy_data(from: &File, to: &File, length: u64) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    let size = stat.st_size as u64;
    if size <= length && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    if size <= SMALL {
        return copy_in_blocks(from, to, 0, length);
    }
    if stat.st_blocks as u64 * 512 >= size {
        return copy_range(from, to, 0, length);
    }
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        // On a file system without SEEK_DATA, everything is data.
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(length).min(length);
        copy_range(from, to, start, end)?;
        at = end.max(start + 1);
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        interrupt::check()?;
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(MAX_RANGE);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_in_blocks(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies a file until its end, whatever its size is said to be: files of /proc have none.
///
/// # Errors
/// The error of reading or writing: ENOSPC.
pub fn copy_to_end(from: &File, to: &File) -> io::Result<()> {
    copy_in_blocks(from, to, 0, u64::MAX)
}

fn copy_in_blocks(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let size = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(BLOCK);
    let mut buffer = vec![0u8; size + PAGE];
    let aligned = buffer.as_ptr().align_offset(PAGE);
    let block = &mut buffer[aligned..aligned + size];
    while at < end {
        interrupt::check()?;
        let wanted = size.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = from.read_at(&mut block[..wanted], at)?;
        if got == 0 {
            break;
        }
        to.write_all_at(&block[..got], at)?;
        at += got as u64;
    }
    Ok(())
}
