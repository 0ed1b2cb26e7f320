//! What a file is to hold: bytes of the operation, or those of a file of the host.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use msb::overlay::upper::{copy_data, copy_to_end};

/// How much is compared at once, in bytes.
const BLOCK: usize = 1 << 16;

/// What a file is to hold.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// All of a file of the host.
    File(&'a File),
}

impl Content<'_> {
    /// In bytes. A file of /proc says 0, and is not empty.
    ///
    /// # Errors
    /// What `stat(2)` says.
    pub fn length(self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.metadata()?.len()),
        }
    }

    /// Writes it to an empty file.
    ///
    /// # Errors
    /// What reading or writing says.
    pub fn put(self, to: &mut File) -> io::Result<()> {
        match (self, self.length()?) {
            (Self::Bytes(bytes), _) => to.write_all(bytes),
            (Self::File(file), 0) => copy_to_end(file, to),
            (Self::File(file), length) => copy_data(file, to, length),
        }
    }

    /// Whether `file` holds just this.
    ///
    /// # Errors
    /// What reading says.
    pub fn is_in(self, file: &File) -> io::Result<bool> {
        let length = self.length()?;
        if length != file.metadata()?.len() {
            return Ok(false);
        }
        let (mut block, mut wanted) = ([0u8; BLOCK], [0u8; BLOCK]);
        let mut at = 0;
        // One read more than the length says, for what has no length.
        loop {
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
