//! A root as a disk: ext4 or EROFS, made by their own programs from the tree that the kernel's overlayfs shows.
//!
//! Label and UUID are fixed, so that the same root gives the same disk, and a boot loader can find it.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use msb::interrupt::{self, DeferExit};
use msb::jail::mkfs::Mkfs;
use msb::overlay::beneath::{Dir, Entry};
use msb::program;
use msb::record::path::absolute;
use msb::store::erofs::merge;
use msb::store::home;
use msb::store::publish::{make_private_dir, unnamed_file};
use rustix::fs::FileType;

use crate::inode_times;
use crate::root::Root;
use crate::scripts::Scripts;
use crate::staged::{StagedDir, StagedFile, parent};
use crate::target::Disk;
use crate::walk::CHANGED;

const LABEL: &str = "msb-root";
const UUID: &str = "6d73622d-726f-6f74-8000-000000000001";
/// The block size of ext4, in bytes.
const BLOCK: u64 = 4096;
/// The size of an inode of ext4, in bytes.
const INODE: u64 = 256;
/// The journal, in bytes.
const JOURNAL: u64 = 16 << 20;
const SBIN: &[&str] = &["/usr/sbin", "/sbin", "/usr/bin"];

/// What a tree takes on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    blocks: u64,
    inodes: u64,
    /// The time of the newest file, in seconds.
    newest: i64,
    has_trusted_xattrs: bool,
    state: State,
}

/// The state of a tree, which tells whether it has changed: a sum of hashes of its files' paths and attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State(u64);

impl State {
    fn of(root: &Path) -> anyhow::Result<Self> {
        let mut state = Self::default();
        Dir::open(root)?.walk(|path, entry| {
            state.add(path, entry);
            Ok(())
        })?;
        Ok(state)
    }

    fn add(&mut self, path: &Path, entry: &Entry) {
        let stat = entry.stat();
        let mut hasher = DefaultHasher::new();
        (path, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, stat.st_size).hash(&mut hasher);
        (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec).hash(&mut hasher);
        self.0 = self.0.wrapping_add(hasher.finish());
    }
}

impl Size {
    fn of(root: &Path) -> anyhow::Result<Self> {
        let mut size = Self::default();
        Dir::open(root)?
            .walk(|path, entry| {
                let stat = entry.stat();
                size.state.add(path, entry);
                size.inodes += 1;
                size.newest = size.newest.max(stat.st_mtime);
                // Names and extents take a block each, at most, apart from what a large directory needs.
                size.blocks += match entry.file_type() {
                    FileType::RegularFile => {
                        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                        allocated.min(u64::try_from(stat.st_size).unwrap_or(0)).div_ceil(BLOCK)
                    }
                    FileType::Directory => 1 + u64::try_from(stat.st_size).unwrap_or(0).div_ceil(BLOCK),
                    FileType::Symlink => 1,
                    _ => 0,
                };
                let names = entry.xattr_names()?;
                if !names.is_empty() {
                    size.blocks += 1;
                }
                size.has_trusted_xattrs |= names.iter().any(|name| name.as_encoded_bytes().starts_with(b"trusted."));
                Ok(())
            })
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidFilename => io::Error::new(error.kind(), "a path is longer than 4095 bytes"),
                _ => error,
            })?;
        Ok(size)
    }

    /// The inodes of the disk.
    fn inode_count(self) -> u64 {
        self.inodes + self.inodes / 4 + 4096
    }

    /// The size of an ext4 disk with `free` bytes left, in bytes: a multiple of 1 MiB.
    fn disk(self, free: u64) -> u64 {
        let tables = self.inode_count() * INODE;
        let content = self.blocks * BLOCK;
        // Bitmaps, group descriptors and their copies, and extents of large files.
        let rest = (content + free) / 64 + (4 << 20);
        (content + tables + JOURNAL + rest + free).next_multiple_of(1 << 20)
    }
}

/// Makes a disk. `epoch` is the time of the file system.
///
/// # Errors
/// Those of the programs, with their messages.
pub(crate) fn write(
    form: Disk,
    to: &Path,
    root: &Root,
    scripts: Option<&Scripts>,
    free: u64,
    epoch: Option<i64>,
) -> anyhow::Result<()> {
    let staged = StagedFile::begin(to)?;
    let made = || -> anyhow::Result<()> {
        // An interrupted tool removes the directory of the scripts before it ends.
        let _deferred = DeferExit::new();
        let to = absolute(to)?;
        let top = scripts.map(|scripts| scripts_dir(&to, scripts, epoch.unwrap_or(0))).transpose()?;
        let stack = root.stack(top.as_ref().map(|dir| dir.path.as_path()));
        let dir = parent(&to).to_owned();
        // The merged tree hides what is in this directory. The programs may be beside the output.
        let home = home::home()?;
        make_private_dir(&home).with_context(|| format!("{home:?}"))?;
        // The mount namespace is that of the thread and of its children.
        std::thread::scope(|scope| {
            let make = || -> anyhow::Result<()> {
                // Opened first, since it may be in the store.
                let raw = if form == Disk::Qcow2 { Some(unnamed_file(&dir)?) } else { None };
                let tree = merge(&home, &stack).context("merging the layers")?;
                let size = Size::of(&tree)?;
                let time = epoch.unwrap_or(size.newest);
                let mkfs = |name, package, image: &File| -> anyhow::Result<Mkfs> {
                    Ok(Mkfs::new(&program(name, package)?, &home, &tree, size.has_trusted_xattrs, image)?)
                };
                let make_ext4 = |image: &File| -> anyhow::Result<()> {
                    let length = size.disk(free);
                    image.set_len(length)?;
                    ext4(mkfs("mke2fs", "e2fsprogs", image)?, size.inode_count(), time)?;
                    Ok(inode_times::settle(image, length)?)
                };
                match (form, &raw) {
                    (Disk::Erofs, _) => erofs(mkfs("mkfs.erofs", "erofs-utils", &staged.file)?, time)?,
                    (_, None) => make_ext4(&staged.file)?,
                    (_, Some(raw)) => {
                        make_ext4(raw)?;
                        qcow2(raw, &staged.file)?;
                    }
                }
                // The programs look at a file and read it later, and do not notice what happens between.
                if State::of(&tree)? != size.state {
                    bail!("the root: {CHANGED}");
                }
                Ok(())
            };
            scope.spawn(make).join().unwrap_or_else(|_| bail!("merging the layers: the thread panicked"))
        })?;
        staged.commit()
    };
    made().with_context(|| format!("disk {to:?}"))
}

/// The scripts as a directory above the root.
fn scripts_dir(beside: &Path, scripts: &Scripts, mtime: i64) -> anyhow::Result<StagedDir> {
    let dir = StagedDir::beside(beside)?;
    scripts.write_below(&dir.path, mtime)?;
    Ok(dir)
}

fn ext4(mut mkfs: Mkfs, inodes: u64, time: i64) -> anyhow::Result<()> {
    let command = mkfs.command();
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", LABEL, "-U", UUID]);
    command.arg("-E").arg(format!("hash_seed={UUID},lazy_itable_init=1,root_owner=0:0"));
    command.arg("-J").arg(format!("size={}", JOURNAL >> 20)).arg("-N").arg(inodes.to_string());
    command.args(["-d", Mkfs::TREE, Mkfs::IMAGE]);
    // Names of the time in e2fsprogs until 1.47.0, and since.
    command.env("E2FSPROGS_FAKE_TIME", time.to_string()).env("SOURCE_DATE_EPOCH", time.to_string());
    Ok(mkfs.run()?)
}

fn erofs(mut mkfs: Mkfs, time: i64) -> anyhow::Result<()> {
    let command = mkfs.command();
    command.args(["-E", "force-inode-extended,noinline_data", "-d1", "-U", UUID, "--", Mkfs::IMAGE, Mkfs::TREE]);
    // It keeps the times of older files.
    command.env("SOURCE_DATE_EPOCH", time.to_string());
    Ok(mkfs.run()?)
}

/// Converts a disk. qemu-img copies its blocks, and reads nothing of them.
fn qcow2(raw: &File, file: &File) -> anyhow::Result<()> {
    let program = program("qemu-img", "qemu-utils")?;
    let raw = format!("/proc/{}/fd/{}", std::process::id(), raw.as_raw_fd());
    let mut command = Command::new(&program);
    command.env_clear().args(["convert", "-q", "-f", "raw", "-O", "qcow2", &raw, "/proc/self/fd/0"]);
    // The one descriptor whose number is known there.
    command.stdin(file.try_clone()?);
    let output = interrupt::output(&mut command).with_context(|| format!("{program:?}"))?;
    if !output.status.success() {
        bail!("{program:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    program::find(name, SBIN).with_context(|| format!("{name} is not installed (apt-get install {package})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_its_content_and_what_is_asked_for() {
        let size = Size { blocks: 1000, inodes: 100, ..Size::default() };
        let disk = size.disk(0);
        assert!(disk > 1000 * BLOCK + JOURNAL && disk < (1000 * BLOCK + JOURNAL) * 2);
        assert_eq!(disk % (1 << 20), 0);
        let more = size.disk(1 << 30) - disk;
        assert!((1 << 30..(1 << 30) + (32 << 20)).contains(&more));
    }
}
