//! Entries of a cpio archive in the format "newc", which Linux unpacks as an initramfs (Documentation/driver-api/early-userspace/
//! buffer-format.rst). Data in, data out.

use anyhow::Context;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
/// What follows an entry's header and name, and its content, is aligned so, in bytes.
const ALIGNMENT: usize = 4;

/// Appends a directory.
pub(super) fn directory(out: &mut Vec<u8>, name: &str) {
    entry(out, name, DIRECTORY | 0o755, 0);
}

/// Appends a regular file.
///
/// # Errors
/// A file of 4 GiB or more, which the format cannot hold.
pub(super) fn file(out: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    entry(out, name, REGULAR | mode, u32::try_from(content.len()).context("too large for an initramfs")?);
    out.extend_from_slice(content);
    pad(out);
    Ok(())
}

/// Appends the end of the archive.
pub(super) fn trailer(out: &mut Vec<u8>) {
    entry(out, "TRAILER!!!", 0, 0);
}

/// Appends the header and the name of an entry, which belongs to root and has one link.
fn entry(out: &mut Vec<u8>, name: &str, mode: u32, size: u32) {
    let [ino, uid, gid, mtime, check] = [0; 5];
    let (dev, rdev) = ([0, 0], [0, 0]);
    let fields = [ino, mode, uid, gid, 1, mtime, size, dev[0], dev[1], rdev[0], rdev[1], name.len() as u32 + 1, check];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
}

/// Every part of an archive starts aligned, so the position in it is that in its part.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_names_and_contents_are_aligned() {
        let mut out = Vec::new();
        file(&mut out, "a", 0o600, b"abcde").unwrap();
        let header = "070701\
            00000000\
            00008180\
            00000000\
            00000000\
            00000001\
            00000000\
            00000005\
            00000000\
            00000000\
            00000000\
            00000000\
            00000002\
            00000000";
        assert_eq!(out, [header.as_bytes(), b"a\0", b"abcde\0\0\0"].concat());
        directory(&mut out, "dir");
        assert_eq!(out[out.len() - 6..], *b"dir\0\0\0");
        trailer(&mut out);
        assert!(out.len().is_multiple_of(ALIGNMENT) && out.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
