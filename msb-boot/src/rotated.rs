//! A log file of bounded size. If the disk is full, lines are lost and the VM goes on.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use msb::vm::rundir;

/// A log file. At its limit it is renamed ([`rundir::older_part`]), and a new file begins.
pub(crate) struct Rotated {
    path: PathBuf,
    file: File,
    /// Its length, in bytes.
    length: usize,
    limit: usize,
}

impl Rotated {
    /// Creates the file, or truncates an existing one.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub(crate) fn begin(path: &Path, limit: usize) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, length: 0, limit })
    }

    /// Appends to an existing file.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub(crate) fn resume(path: &Path, limit: usize) -> io::Result<Self> {
        // Not for appending: then a file that cannot be rotated would grow without limit.
        let mut file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = usize::try_from(file.seek(SeekFrom::End(0))?).unwrap_or(limit);
        Ok(Self { path: path.to_owned(), file, length, limit })
    }

    /// Appends bytes. Errors are ignored.
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.length >= self.limit {
                self.rotate();
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.limit.saturating_sub(self.length)));
            let _ = self.file.write_all(now);
            self.length += now.len();
            bytes = later;
        }
    }

    /// Appends bytes that must not be split between two files. At most the limit. Errors are ignored.
    pub(crate) fn add_whole(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > self.limit {
            self.rotate();
        }
        self.add(bytes);
    }

    /// Renames the file and begins a new one. If that fails, the file is overwritten: the newest lines matter most.
    fn rotate(&mut self) {
        let _ = fs::rename(&self.path, rundir::older_part(&self.path));
        match Self::begin(&self.path, self.limit) {
            Ok(new) => *self = new,
            Err(_) => {
                let _ = self.file.rewind();
                self.length = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 4 << 20;

    #[test]
    fn the_log_is_rotated_at_its_limit_and_loses_no_byte_of_the_last_two() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("kernel.log");
        let mut log = Rotated::begin(&path, LIMIT).unwrap();
        let line = |number: usize| format!("{number:015}\n").into_bytes();
        let lines = LIMIT / 16 * 5 / 2;
        let all: Vec<u8> = (0..lines).flat_map(line).collect();
        for portion in all.chunks(10_007) {
            log.add(portion);
        }
        let (new, old) = (fs::read(&path).unwrap(), fs::read(scratch.path().join("kernel.log.1")).unwrap());
        assert_eq!(old.len(), LIMIT);
        assert_eq!([old, new].concat(), all[LIMIT..]);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_resumed_log_keeps_its_content_and_its_limit() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        Rotated::begin(&path, 8).unwrap().add(b"first ");
        let mut log = Rotated::resume(&path, 8).unwrap();
        log.add(b"second");
        assert_eq!(fs::read(scratch.path().join("log.1")).unwrap(), b"first se");
        assert_eq!(fs::read(&path).unwrap(), b"cond");
    }

    #[test]
    fn a_new_log_replaces_an_old_one_and_a_missing_log_can_be_resumed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        fs::write(&path, "old").unwrap();
        Rotated::begin(&path, 8).unwrap().add(b"n");
        assert_eq!(fs::read(&path).unwrap(), b"n");
        let other = scratch.path().join("other");
        Rotated::resume(&other, 8).unwrap().add(b"x");
        assert_eq!(fs::read(&other).unwrap(), b"x");
    }

    #[test]
    fn a_log_that_cannot_be_rotated_is_written_again_from_its_beginning() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("dir");
        for open in [Rotated::begin as fn(&Path, usize) -> io::Result<Rotated>, Rotated::resume] {
            fs::create_dir(&dir).unwrap();
            let mut log = open(&dir.join("log"), 8).unwrap();
            let mut kept = File::open(dir.join("log")).unwrap();
            fs::remove_dir_all(&dir).unwrap();
            log.add(b"abcdefgh12345678ABCD");
            let mut content = Vec::new();
            io::Read::read_to_end(&mut kept, &mut content).unwrap();
            assert_eq!(content, b"ABCD5678");
        }
    }
}
