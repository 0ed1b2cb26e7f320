//! A saved VM in the store: a directory with its description, the state of its devices, its memory, and its disks. It is made under
//! another name and renamed when it is complete, so it is never seen half made, and its name is the digest of its description, which
//! has those of its files. A guest wrote the files, so nothing in them is trusted: sizes and digests are checked before a VMM reads
//! them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::erase::Use;
use super::layout;
use super::snapshot_stamp::Stamp;
use crate::record::{DiskFormat, Record, Snapshot};
use crate::regular_file::{self, Symlinks};
use crate::vm::boot::Network;

/// The version of the format that this crate reads and writes.
pub const VERSION: u32 = 2;
/// The file with the description.
pub const DESCRIPTION: &str = "snapshot.json";
/// The file with the state of the processor and the devices.
pub const STATE: &str = "state";
/// The file with the guest's memory.
pub const MEMORY: &str = "memory";
/// The largest state, in bytes. That of a VM with all devices has some hundred KiB.
pub const MAX_STATE: u64 = 64 << 20;
/// The largest description, in bytes.
const MAX_DESCRIPTION: u64 = 16 << 20;
/// How much is compared with zeroes and hashed at a time, in bytes.
const BLOCK: usize = 64 << 10;

/// The description of a saved VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// [`VERSION`].
    pub version: u32,
    /// The machine.
    pub machine: Machine,
    /// The files that the guest has written, by name.
    pub files: BTreeMap<String, Content>,
    /// The record of the VM, without its member `vm`.
    pub record: Record,
}

/// What the machine that loads the state must have, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The VMM's version.
    pub vmm: String,
    /// The model of the guest's processor.
    pub processor: String,
    /// The guest's kernel: the name of its file in the store.
    pub kernel: String,
    /// The number of processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The disks, in the order in which the guest numbers them.
    pub disks: Vec<Disk>,
    /// The guest's network.
    pub network: Option<Network>,
    /// The init that runs as PID 1.
    pub init: Option<String>,
}

/// A disk of a saved VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its file.
    pub file: String,
    /// The format of the file.
    pub format: DiskFormat,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Its size, in bytes.
    pub size: u64,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its size, in bytes.
    pub size: u64,
    /// The BLAKE3 of its blocks that hold anything.
    pub blake3: String,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It was removed, or one of its files was.
    #[error("it is gone (msb-snapshot makes another)")]
    Gone,
    /// Its description is not the one that the record names, or is of another release.
    #[error("{0} (make another with msb-snapshot)")]
    Unusable(String),
    /// A file of it is not as it was saved.
    #[error("{0}: not as it was saved: it was truncated or modified (make another with msb-snapshot)")]
    Modified(String),
    /// A file of it cannot be read.
    #[error("{0}: {1}")]
    File(String, io::Error),
}

impl Error {
    /// The error of opening or locking a file. A missing file means that the snapshot was removed.
    fn of_file(name: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            _ => Self::File(name.into(), error),
        }
    }
}

impl Content {
    /// Reads a file, which takes as long as reading what is not a hole.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; BLOCK];
        let zeroes = vec![0; BLOCK];
        let mut at = 0;
        while at < size {
            // Blocks begin at multiples of their size, so that the holes of a copy may be others.
            at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start.max(at) / BLOCK as u64 * BLOCK as u64,
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let wanted = BLOCK.min(usize::try_from(size - at).unwrap_or(BLOCK));
            file.read_exact_at(&mut block[..wanted], at)?;
            if block[..wanted] != zeroes[..wanted] {
                hasher.update(format!("{at} {wanted}\n").as_bytes());
                hasher.update(&block[..wanted]);
            }
            at += wanted as u64;
        }
        Ok(Self { size, blake3: hasher.finalize().to_hex().to_string() })
    }
}

impl Description {
    /// The text of the file, and its SHA-256 in hex.
    ///
    /// # Errors
    /// Paths in the record that are not UTF-8.
    pub fn to_text(&self) -> serde_json::Result<(Vec<u8>, String)> {
        let text = serde_json::to_vec(self)?;
        let digest = hex::encode(Sha256::digest(&text));
        Ok((text, digest))
    }

    /// Reads the description of a snapshot that a record names, and checks its digest.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(snapshot: &Snapshot) -> Result<Self, Error> {
        let file = open(&snapshot.path, DESCRIPTION)?;
        let mut text = Vec::new();
        file.take(MAX_DESCRIPTION).read_to_end(&mut text).map_err(|error| Error::File(DESCRIPTION.into(), error))?;
        if snapshot.digest.strip_prefix("sha256:") != Some(&*hex::encode(Sha256::digest(&text))) {
            return Err(Error::Modified(DESCRIPTION.into()));
        }
        let version = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok()?.get("version")?.as_u64();
        if version(&text) != Some(VERSION.into()) {
            return Err(Error::Unusable("another release of msb has made it".into()));
        }
        serde_json::from_slice(&text).map_err(|error| Error::Unusable(format!("{DESCRIPTION}: {error}")))
    }

    /// Checks that a file in the snapshot's directory is as it was saved. The file is read only if it may have changed since the last
    /// check.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check_once(&self, dir: &Path, name: &str, file: &File) -> Result<(), Error> {
        let stamp = Stamp::of(file).map_err(|error| Error::File(name.into(), error))?;
        if self.files.get(name).is_some_and(|content| content.size == stamp.size) && stamp.is_noted(dir, name) {
            return Ok(());
        }
        let since = SystemTime::now();
        self.check(name, file)?;
        stamp.note(dir, name, file, since);
        Ok(())
    }

    /// Checks that a file, or a copy of it, is as it was saved.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check(&self, name: &str, file: &File) -> Result<(), Error> {
        let content = Content::of(file).map_err(|error| Error::File(name.into(), error))?;
        if self.files.get(name) == Some(&content) { Ok(()) } else { Err(Error::Modified(name.into())) }
    }
}

/// Opens a file of a snapshot.
///
/// # Errors
/// [`Error::Gone`]; [`Error::File`]; a name that is a path.
pub fn open(dir: &Path, name: &str) -> Result<File, Error> {
    let failed = |error| Error::of_file(name, error);
    if Path::new(name).file_name().is_none_or(|last| last != name) {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    regular_file::open(&dir.join(name), Symlinks::Refuse).map_err(failed)
}

/// Opens a large file of a snapshot that is read in place. Nobody erases it before the result is dropped.
///
/// # Errors
/// As for [`open`].
pub fn open_for_use(dir: &Path, name: &str) -> Result<Use, Error> {
    Use::begin(open(dir, name)?).map_err(|error| Error::of_file(name, error))
}

/// The record of a snapshot in a store; `None` for one that is not complete.
pub fn record_of(path: &Path) -> Option<Record> {
    let snapshot = Snapshot::new(path.to_owned(), digest_of(path)?);
    Description::read(&snapshot).ok().map(|description| description.record)
}

/// The record of a snapshot in a store, even of a damaged one or one of another release: the layers and uppers in it must not be removed as
/// unused. `None` if no record can be read.
pub fn readable_record(path: &Path) -> Option<Record> {
    let mut text = Vec::new();
    open(path, DESCRIPTION).ok()?.take(MAX_DESCRIPTION).read_to_end(&mut text).ok()?;
    // Bytes after the JSON value are ignored.
    let mut value: serde_json::Value = serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()?;
    serde_json::from_value(value.get_mut("record")?.take()).ok()
}

/// The records of all snapshots in a store, each with the snapshot's directory. See [`readable_record`].
///
/// # Errors
/// Those of reading the directory of snapshots. Ignoring them would make what snapshots need look unused.
pub fn records(home: &Path) -> io::Result<Vec<(PathBuf, Record)>> {
    let entries = match fs::read_dir(layout::snapshots(home)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let snapshots = paths.into_iter().filter(|path| digest_of(path).is_some());
    Ok(snapshots.filter_map(|path| Some((path.clone(), readable_record(&path)?))).collect())
}

/// The digest in the name of a snapshot in a store; `None` for anything else.
pub fn digest_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().filter(|name| layout::is_id(name)).map(|hex| format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::lock::{self, Lock};

    fn content(fill: impl FnOnce(&File)) -> Content {
        let file = tempfile::tempfile().unwrap();
        fill(&file);
        Content::of(&file).unwrap()
    }

    #[test]
    fn the_digest_is_of_what_a_file_holds_and_where_and_not_of_its_holes() {
        let size = 5 * BLOCK as u64 + 100;
        let with_holes = content(|file| {
            file.set_len(size).unwrap();
            file.write_all_at(b"x", 2 * BLOCK as u64 + 7).unwrap();
            file.write_all_at(b"end", size - 3).unwrap();
        });
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        bytes[2 * BLOCK + 7] = b'x';
        let end = bytes.len() - 3;
        bytes[end..].copy_from_slice(b"end");
        let without = content(|file| file.write_all_at(&bytes, 0).unwrap());
        assert_eq!(with_holes, without);
        for changed in [
            content(|file| file.write_all_at(&bytes[..bytes.len() - 1], 0).unwrap()),
            content(|file| {
                file.write_all_at(&bytes, 0).unwrap();
                file.write_all_at(b"y", 4 * BLOCK as u64).unwrap();
            }),
            content(|file| {
                file.set_len(size).unwrap();
                file.write_all_at(b"x", BLOCK as u64 + 7).unwrap();
                file.write_all_at(b"end", size - 3).unwrap();
            }),
            content(|file| file.set_len(size).unwrap()),
            content(|_| ()),
        ] {
            assert_ne!(changed, without);
        }
    }

    #[test]
    fn a_description_that_was_modified_is_refused_and_so_are_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(STATE), "state").unwrap();
        let state = open(dir.path(), STATE).unwrap();
        let machine = Machine {
            vmm: "7.2".into(),
            processor: "max".into(),
            kernel: "a.vmlinux".into(),
            cpus: 1,
            memory_mib: 256,
            disks: Vec::new(),
            network: None,
            init: None,
        };
        let files = BTreeMap::from([(STATE.to_owned(), Content::of(&state).unwrap())]);
        let description = Description { version: VERSION, machine, files, record: Record::new() };
        let (text, digest) = description.to_text().unwrap();
        let snapshot = Snapshot::new(dir.path().into(), format!("sha256:{digest}"));
        assert!(matches!(Description::read(&snapshot), Err(Error::Gone)));
        std::fs::write(dir.path().join(DESCRIPTION), &text).unwrap();
        assert_eq!(Description::read(&snapshot).unwrap(), description);
        description.check(STATE, &state).unwrap();
        std::fs::write(dir.path().join(STATE), "stat").unwrap();
        assert!(matches!(description.check(STATE, &state), Err(Error::Modified(_))));
        assert!(matches!(description.check(MEMORY, &state), Err(Error::Modified(_))));
        for (other, record) in [
            (text[1..].to_vec(), None),
            ([&text[..], b"x"].concat(), Some(Record::new())),
            (b"{\"version\":0,\"record\":{\"msb\":1}}".to_vec(), Some(Record::new())),
            (b"{\"version\":2}".to_vec(), None),
        ] {
            std::fs::write(dir.path().join(DESCRIPTION), &other).unwrap();
            assert!(matches!(Description::read(&snapshot), Err(Error::Modified(_))));
            assert_eq!(readable_record(dir.path()), record);
        }
        for name in ["", ".", "..", "../x", "/x", "a/b"] {
            assert!(matches!(open(dir.path(), name), Err(Error::File(..))), "{name:?}");
        }
    }
    #[test]
    fn a_snapshot_that_is_removed_while_a_vm_starts_from_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MEMORY);
        std::fs::write(&path, "memory").unwrap();
        drop(open_for_use(dir.path(), MEMORY).unwrap());
        // Another process has the lock while it erases the file, and unlinks it at the end.
        let erased = open(dir.path(), MEMORY).unwrap();
        lock::take(&erased, Lock::Exclusive).unwrap();
        let starting = std::thread::spawn({
            let dir = dir.path().to_owned();
            move || open_for_use(&dir, MEMORY)
        });
        let inode = format!(":{} ", erased.metadata().unwrap().ino());
        let is_waiting = |line: &str| line.contains("->") && line.contains(&inode);
        while !starting.is_finished() && !std::fs::read_to_string("/proc/locks").unwrap().lines().any(is_waiting) {
            std::thread::yield_now();
        }
        std::fs::remove_file(&path).unwrap();
        drop(erased);
        assert!(matches!(starting.join().unwrap(), Err(Error::Gone)));
        assert!(matches!(open_for_use(dir.path(), MEMORY), Err(Error::Gone)));
    }
}
