//! The content of a file to write: bytes of the operation, or a file of the host.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use memchr::memmem::Finder;
use msb::overlay::{copy_data, copy_to_end};
use msb::tool::interrupt;

/// How much is compared at once, in bytes.
const BLOCK: usize = 1 << 16;

/// The content of a file.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The content of a file of the host.
    File(&'a File),
}

impl Content<'_> {
    /// The length in bytes. It is 0 for a file of /proc, which need not be empty.
    ///
    /// # Errors
    /// Those of `stat(2)`.
    pub fn length(self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.metadata()?.len()),
        }
    }

    /// Writes it to an empty file.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn put(self, to: &mut File) -> io::Result<()> {
        match (self, self.length()?) {
            (Self::Bytes(bytes), _) => to.write_all(bytes),
            (Self::File(file), 0) => copy_to_end(file, to),
            (Self::File(file), length) => copy_data(file, to, length),
        }
    }

    /// Whether `file` has exactly this content.
    ///
    /// # Errors
    /// Those of reading.
    pub fn is_in(self, file: &File) -> io::Result<bool> {
        let length = self.length()?;
        if length != file.metadata()?.len() {
            return Ok(false);
        }
        let (mut block, mut wanted) = ([0u8; BLOCK], [0u8; BLOCK]);
        let mut at = 0;
        // Reads once more after the length, for files without a length.
        loop {
            interrupt::check()?;
            let got = file.read_at(&mut block, at)?;
            let same = match self {
                Self::Bytes(bytes) => {
                    usize::try_from(at).ok().and_then(|at| bytes.get(at..at + got)) == block.get(..got)
                }
                Self::File(other) if got == 0 => other.read_at(&mut wanted[..1], at)? == 0,
                Self::File(other) => {
                    let wanted = &mut wanted[..got];
                    match other.read_exact_at(wanted, at) {
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                        read => read.map(|()| *wanted == block[..got])?,
                    }
                }
            };
            if !same || got == 0 {
                return Ok(same);
            }
            at += got as u64;
        }
    }
}

/// Whether a file contains a text. A text that ends with a newline consists of lines, and must start at the beginning of a line.
///
/// # Errors
/// Those of reading.
pub fn contains(file: &File, text: &[u8]) -> io::Result<bool> {
    let finder = Finder::new(text);
    let is_lines = text.ends_with(b"\n");
    // A block starts with the end of the previous one, because the text may span both.
    let mut block: Vec<u8> = Vec::new();
    let mut at = 0;
    let mut begins_file = true;
    loop {
        interrupt::check()?;
        let kept = block.len();
        block.resize(kept + text.len() + BLOCK, 0);
        let got = loop {
            match file.read_at(&mut block[kept..], at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if got == 0 {
            // All blocks have been searched. Without a newline at its end, the text may still be the end of the file.
            return Ok(block[..kept].ends_with(text));
        }
        block.truncate(kept + got);
        at += got as u64;
        let mut from = 0;
        while let Some(found) = finder.find(&block[from..]).map(|found| from + found) {
            let begins_line = if found == 0 { begins_file } else { block[found - 1] == b'\n' };
            if !is_lines || begins_line {
                return Ok(true);
            }
            from = found + 1;
        }
        let spare = block.len().saturating_sub(text.len() + 1);
        begins_file &= spare == 0;
        block.drain(..spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn lines_are_there_at_the_begin_of_a_line_and_other_text_anywhere() {
        for (holds, text, is_there) in [
            ("a\nb\n", "a\n", true),
            ("a\nb\n", "b\n", true),
            ("a\nb\n", "a\nb\n", true),
            ("#b\nc\n", "b\n", false),
            ("#b\nb\n", "b\n", true),
            ("b\nc", "b", true),
            ("abc", "b", true),
            ("a", "b", false),
            ("", "b", false),
            ("", "b\n", false),
            ("b", "b\n", false),
            // Added to a line that had no end.
            ("ab\n", "b\n", true),
            ("ab\nc\n", "b\n", false),
            ("\n", "\n", true),
        ] {
            assert_eq!(contains(&file(holds.as_bytes()), text.as_bytes()).unwrap(), is_there, "{holds:?} {text:?}");
        }
    }

    #[test]
    fn a_text_that_lies_across_blocks_is_found() {
        for before in [BLOCK - 3, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 4, 2 * BLOCK + 3] {
            let mut holds = vec![b'x'; before];
            holds.extend(b"\nline\nmore\n");
            assert!(contains(&file(&holds), b"line\n").unwrap(), "{before}");
            holds[before] = b'#';
            assert!(!contains(&file(&holds), b"line\n").unwrap(), "{before}");
            assert!(contains(&file(&holds), b"line").unwrap(), "{before}");
        }
    }

    #[test]
    fn content_is_in_a_file_that_holds_just_that() {
        let large = vec![b'x'; BLOCK + 7];
        for (holds, is_in) in [(&large[..], true), (&large[1..], false), (b"", false)] {
            assert_eq!(Content::Bytes(&large).is_in(&file(holds)).unwrap(), is_in);
            assert_eq!(Content::File(&file(&large)).is_in(&file(holds)).unwrap(), is_in);
        }
        let mut other = large.clone();
        other[BLOCK + 3] = b'y';
        assert!(!Content::Bytes(&large).is_in(&file(&other)).unwrap());
        assert!(!Content::File(&file(&large)).is_in(&file(&other)).unwrap());
    }
}
