//! The superblock of an EROFS image (the kernel's `fs/erofs/erofs_fs.h`): enough of it to tell a complete image from a damaged one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Where the superblock is, in bytes.
const OFFSET: u64 = 1024;
const MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// Whether a file is a complete EROFS image with this UUID: its magic, its length and its UUID are right.
pub(super) fn is_complete(file: &File, uuid: &str) -> io::Result<bool> {
    Ok(of_whole(file)?.is_some_and(|superblock| hex::encode(&superblock[48..64]) == uuid.replace('-', "")))
}

/// Whether a file is a complete EROFS image: its magic and its length are right.
///
/// # Errors
/// The error of reading.
pub fn is_whole(file: &File) -> io::Result<bool> {
    Ok(of_whole(file)?.is_some())
}

fn of_whole(file: &File) -> io::Result<Option<[u8; 128]>> {
    let mut superblock = [0u8; 128];
    match file.read_exact_at(&mut superblock, OFFSET) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let number = |at: usize| superblock[at..at + 4].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let (block_bits, blocks) = (superblock[12], number(36));
    let length = file.metadata()?.len();
    let has_length = block_bits < 32 && blocks > 0 && blocks << block_bits == length;
    Ok((superblock.starts_with(&MAGIC) && has_length).then_some(superblock))
}

/// Clears the time at which the image was made: the same layers give the same image. Only compact inodes have that time.
pub(super) fn clear_time(file: &File) -> io::Result<()> {
    // Eight bytes for seconds and four for nanoseconds.
    file.write_all_at(&[0; 12], OFFSET + 24)
}

/// The UUID of the image with this file name.
pub(super) fn uuid(name: &Path) -> String {
    let name = name.file_name().unwrap_or_default();
    let hash = hex::encode(&Sha256::digest(name.as_encoded_bytes())[..16]);
    [&hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_incomplete_image_or_one_of_another_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let id = uuid(Path::new("/x/one"));
        let mut image = vec![0u8; 8192];
        image[1024..1028].copy_from_slice(&MAGIC);
        image[1036] = 12;
        image[1060] = 2;
        image[1072..1088].copy_from_slice(&hex::decode(id.replace('-', "")).unwrap());
        let check = |image: &[u8], id: &str| {
            fs::write(&path, image).unwrap();
            is_complete(&File::open(&path).unwrap(), id).unwrap()
        };
        assert!(check(&image, &id));
        assert!(!check(&image, &uuid(Path::new("/x/two"))));
        assert!(!check(&image[..4096], &id));
        assert!(!check(&[], &id));
        fs::write(&path, &image).unwrap();
        assert!(is_whole(&File::open(&path).unwrap()).unwrap());
        image[1024] ^= 1;
        assert!(!check(&image, &id));
    }
}
