//! A file in memory that a tool opens by its path below `/proc`. It has no name in a file system, is readable by this user alone, and is
//! gone with this process.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;

/// The most that is read of what a tool wrote, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// A file in memory.
#[derive(Debug)]
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    /// A file with this content.
    ///
    /// # Errors
    /// Those of `memfd_create(2)` and `write(2)`.
    pub(crate) fn new(content: &[u8]) -> io::Result<Self> {
        let mut file = File::from(rustix::fs::memfd_create(c"msb-sandbox", MemfdFlags::CLOEXEC)?);
        file.write_all(content)?;
        file.rewind()?;
        Ok(Self(file))
    }

    /// Where a child process opens it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Its content, which may be what a tool wrote.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut file = &self.0;
        file.rewind()?;
        file.take(MAX_SIZE).read_to_end(&mut content)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_written_through_its_path() {
        let given = MemoryFile::new(b"K=V\n").unwrap();
        assert_eq!(std::fs::read(given.path()).unwrap(), b"K=V\n");
        let answer = MemoryFile::new(b"").unwrap();
        File::create(answer.path()).unwrap().write_all(b"{}").unwrap();
        for _ in 0..2 {
            assert_eq!(answer.read().unwrap(), b"{}");
        }
    }
}
