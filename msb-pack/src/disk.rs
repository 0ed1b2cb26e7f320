//! A root as a disk: ext4 or EROFS, made by their own programs from the tree that the kernel's overlayfs shows.
//!
//! Label and UUID are fixed, so that the same root gives the same disk, and a boot loader can find it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use msb::interrupt::{self, DeferExit};
use msb::overlay::beneath::Dir;
use msb::program;
use msb::record::path::absolute;
use msb::store::erofs::merge;
use msb::store::publish::unnamed_file;
use rustix::fs::FileType;

use crate::inode_times;
use crate::root::Root;
use crate::scripts::Scripts;
use crate::staged::{StagedDir, StagedFile, parent};
use crate::target::Disk;

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
}

impl Size {
    fn of(root: &Path) -> anyhow::Result<Self> {
        let mut size = Self::default();
        Dir::open(root)?.walk(|_, entry| {
            let stat = entry.stat();
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
            if !entry.xattr_names()?.is_empty() {
                size.blocks += 1;
            }
            Ok(())
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
    let made = || -> anyhow::Result<()> {
        let staged = StagedFile::begin(to)?;
        // An interrupted tool removes the directory of the scripts before it ends.
        let _deferred = DeferExit::new();
        let to = absolute(to)?;
        let top = scripts.map(|scripts| scripts_dir(&to, scripts, epoch.unwrap_or(0))).transpose()?;
        let stack = root.stack(top.as_ref().map(|dir| dir.path.as_path()));
        let dir = parent(&to).to_owned();
        // The mount namespace is that of the thread and of its children.
        std::thread::scope(|scope| {
            let make = || -> anyhow::Result<()> {
                // Opened before the merged tree hides its directory.
                let raw = if form == Disk::Qcow2 { Some(unnamed_file(&dir)?) } else { None };
                let tree = merge(&dir, &stack).context("merging the layers")?;
                let size = Size::of(&tree)?;
                let time = epoch.unwrap_or(size.newest);
                match (form, &raw) {
                    (Disk::Erofs, _) => erofs(&staged.file, &tree, time),
                    (_, None) => ext4(&staged.file, &tree, size, free, time),
                    (_, Some(raw)) => {
                        ext4(raw, &tree, size, free, time)?;
                        qcow2(raw, &staged.file)
                    }
                }
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

fn ext4(file: &File, tree: &Path, size: Size, free: u64, time: i64) -> anyhow::Result<()> {
    file.set_len(size.disk(free))?;
    let mut command = program("mke2fs", "e2fsprogs")?;
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", LABEL, "-U", UUID]);
    command.arg("-E").arg(format!("hash_seed={UUID},lazy_itable_init=1,root_owner=0:0"));
    command.arg("-J").arg(format!("size={}", JOURNAL >> 20)).arg("-N").arg(size.inode_count().to_string());
    command.arg("-d").arg(tree).arg("/proc/self/fd/0");
    // Names of the time in e2fsprogs until 1.47.0, and since.
    command.env("E2FSPROGS_FAKE_TIME", time.to_string()).env("SOURCE_DATE_EPOCH", time.to_string());
    run(command, file)?;
    Ok(inode_times::settle(file)?)
}

fn qcow2(raw: &File, file: &File) -> anyhow::Result<()> {
    let mut command = program("qemu-img", "qemu-utils")?;
    let raw = format!("/proc/{}/fd/{}", std::process::id(), raw.as_raw_fd());
    command.args(["convert", "-q", "-f", "raw", "-O", "qcow2", &raw, "/proc/self/fd/0"]);
    run(command, file)
}

fn erofs(file: &File, tree: &Path, time: i64) -> anyhow::Result<()> {
    let mut command = program("mkfs.erofs", "erofs-utils")?;
    command.args(["-E", "force-inode-extended,noinline_data", "-d1", "-U", UUID, "--", "/proc/self/fd/0"]).arg(tree);
    // It keeps the times of older files.
    command.env("SOURCE_DATE_EPOCH", time.to_string());
    run(command, file)
}

fn program(name: &str, package: &str) -> anyhow::Result<Command> {
    let Some(program) = program::find(name, SBIN) else {
        bail!("{name} is not installed (apt-get install {package})");
    };
    let mut command = Command::new(program);
    command.env_clear();
    Ok(command)
}

/// Runs a program with `file` as its stdin: the one descriptor whose number is known there.
fn run(mut command: Command, file: &impl AsFd) -> anyhow::Result<()> {
    command.stdin(Stdio::from(file.as_fd().try_clone_to_owned()?));
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("program")).to_owned();
    let output = interrupt::output(&mut command).with_context(|| format!("{name:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    bail!("{name:?} ended with {}: {message}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_its_content_and_what_is_asked_for() {
        let size = Size { blocks: 1000, inodes: 100, newest: 0 };
        let disk = size.disk(0);
        assert!(disk > 1000 * BLOCK + JOURNAL && disk < (1000 * BLOCK + JOURNAL) * 2);
        assert_eq!(disk % (1 << 20), 0);
        let more = size.disk(1 << 30) - disk;
        assert!((1 << 30..(1 << 30) + (32 << 20)).contains(&more));
    }
}
