//! Tidying the state directory: what is there, how large it is, what needs it, and the removal of what nothing does.
//!
//! Layers belong to the images whose configurations are in the store, EROFS images to their layers. What may belong to a record
//! that only its owner knows (an upper, the disk of a VM with a name) always stays. While this runs no pull starts, and a layer
//! or an image that a process has open stays too.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::overlay::beneath::{Dir, Name};
use msb::store::erofs::{self, Mkfs};
use msb::{store::home, tool::exit, tool::line};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;

/// The largest configuration that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

/// One thing of the state directory, as it is printed.
#[derive(Debug, Serialize)]
struct Found {
    path: PathBuf,
    /// What it takes of the disk.
    bytes: u64,
    kind: &'static str,
    /// `kept`, `removed`, or `unneeded` where nothing is to be removed.
    state: &'static str,
    /// Why.
    why: &'static str,
}

/// Prints what is in the state directory, a line of JSON each, and removes what nothing needs unless `dry_run`.
///
/// # Errors
/// Words that name what could not be read or removed.
pub(crate) fn run(dry_run: bool) -> anyhow::Result<()> {
    let home = home::home()?;
    if !home.join("tmp").is_dir() {
        exit::warn("msb-pull", &format!("{home:?}: nothing there"));
        return Ok(());
    }
    let all = home.join("tmp");
    let _gate = lock(&all, FlockOperation::LockExclusive).with_context(|| format!("{all:?}"))?;
    let mut tidy = Tidy { home, dry_run, open: open_paths(), going: HashSet::new(), sums: BTreeMap::new() };
    let pulling = tidy.pulls()?;
    tidy.layers(pulling)?;
    tidy.images()?;
    tidy.sandboxes()?;
    tidy.rest()?;
    let words = |state: &str| {
        let (count, bytes) = tidy.sums.get(state).copied().unwrap_or_default();
        format!("{count} {state} ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
    };
    let gone = if dry_run { words("unneeded") } else { words("removed") };
    exit::warn("msb-pull", &format!("{gone}, {}", words("kept")));
    Ok(())
}

struct Tidy {
    home: PathBuf,
    dry_run: bool,
    /// What processes have open below the state directory.
    open: HashSet<PathBuf>,
    /// Layers that go.
    going: HashSet<String>,
    /// Number and bytes by state.
    sums: BTreeMap<&'static str, (u64, u64)>,
}

impl Tidy {
    /// Says what is there, and removes it where `unneeded` says why it may go.
    fn settle(
        &mut self,
        path: &Path,
        kind: &'static str,
        verdict: Result<&'static str, &'static str>,
    ) -> anyhow::Result<()> {
        let bytes = size(path)?;
        let (state, why) = match verdict {
            Ok(why) => ("kept", why),
            Err(why) if self.dry_run => ("unneeded", why),
            Err(why) => {
                remove(path).with_context(|| format!("{path:?}"))?;
                ("removed", why)
            }
        };
        let sum = self.sums.entry(state).or_default();
        *sum = (sum.0 + 1, sum.1 + bytes);
        line::put(&Found { path: path.to_owned(), bytes, kind, state, why })
    }

    fn is_open(&self, path: &Path) -> bool {
        self.open.iter().any(|open| open.starts_with(path))
    }

    /// What killed pulls have left. True: a pull is running.
    fn pulls(&mut self) -> anyhow::Result<bool> {
        let mut running = false;
        for path in children(&self.home.join("tmp"))? {
            match lock(&path, FlockOperation::NonBlockingLockExclusive) {
                Ok(_dead) => self.settle(&path, "pull", Err("its pull was killed"))?,
                Err(Errno::WOULDBLOCK) => {
                    running = true;
                    self.settle(&path, "pull", Ok("its pull is running"))?;
                }
                Err(error) => return Err(error).with_context(|| format!("{path:?}")),
            }
        }
        Ok(running)
    }

    fn layers(&mut self, pulling: bool) -> anyhow::Result<()> {
        let named = self.named_layers()?;
        for path in children(&self.home.join("layers/sha256"))? {
            let id = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let verdict = if named.contains(id) {
                Ok("an image has it")
            } else if pulling {
                Ok("a pull is running, and may need it")
            } else if self.is_open(&path) || is_mounted(&path) {
                Ok("it is in use")
            } else {
                self.going.insert(id.to_owned());
                Err("no image has it")
            };
            self.settle(&path, "layer", verdict)?;
        }
        Ok(())
    }

    /// The names in the store that the configurations' layers may have: each layer's own, and its chain's.
    fn named_layers(&self) -> anyhow::Result<HashSet<String>> {
        let mut named = HashSet::new();
        for path in children(&self.home.join("blobs/sha256"))? {
            if fs::metadata(&path)?.len() > MAX_DOCUMENT {
                continue;
            }
            let text = fs::read(&path).with_context(|| format!("{path:?}"))?;
            let Ok(document) = serde_json::from_slice::<Value>(&text) else { continue };
            let mut chain: Option<Digest> = None;
            for diff_id in document["rootfs"]["diff_ids"].as_array().into_iter().flatten() {
                let Ok(diff_id) = Digest::parse(diff_id.as_str().unwrap_or_default()) else { break };
                let next = diff_id.on(chain.as_ref());
                named.extend([diff_id.hex().to_owned(), next.hex().to_owned()]);
                chain = Some(next);
            }
        }
        Ok(named)
    }

    fn images(&mut self) -> anyhow::Result<()> {
        let mkfs = Mkfs::find().ok();
        for path in children(&self.home.join(erofs::DIR))? {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
            if name.ends_with(erofs::LOCK_SUFFIX) {
                continue;
            }
            let layers = erofs::layers_of(&path).unwrap_or_default();
            let is_whole = |id: &String| !self.going.contains(id) && self.home.join("layers/sha256").join(id).is_dir();
            let verdict = if self.is_open(&path) || lock(&path, FlockOperation::NonBlockingLockExclusive).is_err() {
                Ok("it is in use")
            } else if !name.ends_with(erofs::SUFFIX) {
                Err("it was never finished")
            } else if mkfs.as_ref().is_some_and(|mkfs| !mkfs.made(&path)) {
                Err("another mkfs.erofs has made it")
            } else if layers.iter().all(is_whole) {
                Ok("its layers are there")
            } else {
                Err("its layers are gone")
            };
            if verdict.is_err() && !self.dry_run {
                let _ = fs::remove_file(path.with_extension(&erofs::LOCK_SUFFIX[1..]));
            }
            self.settle(&path, "erofs", verdict)?;
        }
        Ok(())
    }

    fn sandboxes(&mut self) -> anyhow::Result<()> {
        for path in children(&self.home.join("sandboxes"))? {
            let is_draft = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let is_left = is_draft && lock(&path, FlockOperation::NonBlockingLockExclusive).is_ok();
            let verdict = match (is_left, is_draft) {
                (true, _) => Err("it was never finished"),
                (false, true) => Ok("it is being made"),
                (false, false) if path.join("top.ext4").exists() => Ok("the disk of a VM's name"),
                (false, false) => Ok("a record may have it"),
            };
            self.settle(&path, "sandbox", verdict)?;
        }
        Ok(())
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        for (dir, kind, why) in [
            ("blobs/sha256", "blob", "an image's document"),
            ("templates", "template", "new disks are copies of it"),
            ("kernel", "kernel", "VMs boot it"),
        ] {
            for path in children(&self.home.join(dir))? {
                self.settle(&path, kind, Ok(why))?;
            }
        }
        Ok(())
    }
}

/// The paths in a directory, sorted; none where it is missing.
fn children(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{dir:?}"))?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What a file or a tree takes of the disk, hardlinked files once.
fn size(path: &Path) -> anyhow::Result<u64> {
    let subject = || format!("{path:?}");
    let meta = fs::symlink_metadata(path).with_context(subject)?;
    if !meta.is_dir() {
        return Ok(meta.blocks() * 512);
    }
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let walked = Dir::open(path)?.walk(|_, entry| {
        let stat = entry.stat();
        if stat.st_nlink < 2 || entry.is_dir() || seen.insert(stat.st_ino) {
            bytes += stat.st_blocks.unsigned_abs() * 512;
        }
        Ok(())
    });
    walked.with_context(subject)?;
    Ok(bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    let parent = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    parent.remove_tree(Name::new(path.file_name().unwrap_or_default())?)
}

fn lock(path: &Path, how: FlockOperation) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&fd, how)?;
    Ok(fd)
}

/// All that processes have open.
fn open_paths() -> HashSet<PathBuf> {
    let mut open = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            open.extend(fs::read_link(fd.path()));
        }
    }
    open
}

/// Whether a mount names it: the kernel's overlayfs has its layers open where no process does.
fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    path.to_str().is_none_or(|path| table.contains(path))
}
