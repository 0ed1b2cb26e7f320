//! `--gc`: lists what is in the store, with its size and what needs it, and removes what nothing needs.
//!
//! Layers belong to the images whose configurations are in the store, and EROFS images to their layers. Everything that a record may
//! name without the store knowing it, such as an upper or the scratch disk of a VM with a name, stays. No pull starts while this runs,
//! and a layer or image that a process has open stays.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::lock::{self, Lock};
use msb::overlay::beneath::Dir;
use msb::store::erofs::{self, Mkfs};
use msb::store::layout::{self, SCRATCH_DISK};
use msb::store::{chain, home, publish};
use msb::{tool::exit, tool::line};
use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;

/// The largest configuration that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

/// A line of output: one thing in the store.
#[derive(Debug, Serialize)]
struct Item {
    path: PathBuf,
    /// What it takes of the disk.
    bytes: u64,
    kind: &'static str,
    /// `kept`, `removed`, or with `--dry-run` `unneeded`.
    state: &'static str,
    /// The reason for the state.
    why: &'static str,
}

/// Prints what is in the store, a line of JSON each, and removes what nothing needs unless `dry_run`.
///
/// # Errors
/// The error names what could not be read or removed.
pub(crate) fn run(dry_run: bool) -> anyhow::Result<()> {
    let home = home::home()?;
    let pulls = layout::pulls(&home);
    if !pulls.is_dir() {
        exit::warn("msb-pull", &format!("{home:?}: nothing there"));
        return Ok(());
    }
    let _gate = lock::open(&pulls, Lock::Exclusive).with_context(|| format!("{pulls:?}"))?;
    let (removed_layers, sums) = (HashSet::new(), BTreeMap::new());
    let mut collector = Collector { home, dry_run, open: open_paths(), removed_layers, sums };
    let is_pulling = collector.pulls()?;
    collector.layers(is_pulling)?;
    collector.images()?;
    collector.sandboxes()?;
    collector.rest()?;
    let total = |state: &str| {
        let (count, bytes) = collector.sums.get(state).copied().unwrap_or_default();
        format!("{count} {state} ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
    };
    let removed = if dry_run { total("unneeded") } else { total("removed") };
    exit::warn("msb-pull", &format!("{removed}, {}", total("kept")));
    Ok(())
}

struct Collector {
    home: PathBuf,
    dry_run: bool,
    /// The paths that processes have open.
    open: HashSet<PathBuf>,
    /// The IDs of layers that are removed.
    removed_layers: HashSet<String>,
    /// Number and bytes by state.
    sums: BTreeMap<&'static str, (u64, u64)>,
}

/// Whether something stays (`Ok`) or nothing needs it (`Err`), and why.
type Verdict = Result<&'static str, &'static str>;

impl Collector {
    /// Prints an item, and removes it if nothing needs it.
    fn settle(&mut self, path: &Path, kind: &'static str, verdict: Verdict) -> anyhow::Result<()> {
        let bytes = size(path)?;
        let (state, why) = match verdict {
            Ok(why) => ("kept", why),
            Err(why) if self.dry_run => ("unneeded", why),
            Err(why) => {
                publish::remove_tree(path).with_context(|| format!("{path:?}"))?;
                ("removed", why)
            }
        };
        let sum = self.sums.entry(state).or_default();
        *sum = (sum.0 + 1, sum.1 + bytes);
        line::put(&Item { path: path.to_owned(), bytes, kind, state, why })?;
        Ok(())
    }

    fn is_open(&self, path: &Path) -> bool {
        self.open.iter().any(|open| open.starts_with(path))
    }

    /// Settles the directories of pulls. Returns whether a pull is running.
    fn pulls(&mut self) -> anyhow::Result<bool> {
        let mut is_pulling = false;
        for path in children(&layout::pulls(&self.home))? {
            match lock::open(&path, Lock::TryExclusive) {
                Ok(_lock) => self.settle(&path, "pull", Err("its pull was killed"))?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    is_pulling = true;
                    self.settle(&path, "pull", Ok("its pull is running"))?;
                }
                Err(error) => return Err(error).with_context(|| format!("{path:?}")),
            }
        }
        Ok(is_pulling)
    }

    fn layers(&mut self, is_pulling: bool) -> anyhow::Result<()> {
        let needed = self.layers_of_images()?;
        for path in children(&layout::layers(&self.home))? {
            let id = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let verdict = if needed.contains(id) {
                Ok("an image has it")
            } else if is_pulling {
                Ok("a pull is running, and may need it")
            } else if self.is_open(&path) || is_mounted(&path) {
                Ok("it is in use")
            } else {
                self.removed_layers.insert(id.to_owned());
                Err("no image has it")
            };
            self.settle(&path, "layer", verdict)?;
        }
        Ok(())
    }

    /// The IDs under which the layers of all configurations may be stored: diff_ids and stacked IDs.
    fn layers_of_images(&self) -> anyhow::Result<HashSet<String>> {
        let mut ids = HashSet::new();
        for path in children(&layout::blobs(&self.home))? {
            if fs::metadata(&path)?.len() > MAX_DOCUMENT {
                continue;
            }
            let text = fs::read(&path).with_context(|| format!("{path:?}"))?;
            let Ok(document) = serde_json::from_slice::<Value>(&text) else { continue };
            let mut below: Option<String> = None;
            for diff_id in document["rootfs"]["diff_ids"].as_array().into_iter().flatten() {
                let Ok(diff_id) = Digest::parse(diff_id.as_str().unwrap_or_default()) else { break };
                let stacked_id = chain::stacked_id(below.as_deref(), diff_id.hex());
                ids.extend([diff_id.hex().to_owned(), stacked_id.clone()]);
                below = Some(stacked_id);
            }
        }
        Ok(ids)
    }

    fn images(&mut self) -> anyhow::Result<()> {
        let mkfs = Mkfs::find().ok();
        for path in children(&layout::images(&self.home))? {
            if layout::is_image_lock(&path) {
                continue;
            }
            let layers = erofs::layers_of(&path).unwrap_or_default();
            let is_stored = |id: &String| !self.removed_layers.contains(id) && layout::layer(&self.home, id).is_dir();
            let verdict = if self.is_open(&path) || lock::open(&path, Lock::TryExclusive).is_err() {
                Ok("it is in use")
            } else if !layout::is_image(&path) {
                Err("it was never finished")
            } else if mkfs.as_ref().is_some_and(|mkfs| !mkfs.made(&path)) {
                Err("another mkfs.erofs has made it")
            } else if layers.iter().all(is_stored) {
                Ok("its layers are there")
            } else {
                Err("its layers are gone")
            };
            if verdict.is_err() && !self.dry_run {
                let _ = fs::remove_file(layout::image_lock(&path));
            }
            self.settle(&path, "erofs", verdict)?;
        }
        Ok(())
    }

    fn sandboxes(&mut self) -> anyhow::Result<()> {
        for path in children(&layout::sandboxes(&self.home))? {
            let verdict = if !layout::is_staging(&path) {
                Ok(if path.join(SCRATCH_DISK).exists() { "the disk of a VM's name" } else { "a record may have it" })
            } else if lock::open(&path, Lock::TryExclusive).is_ok() {
                Err("it was never finished")
            } else {
                Ok("it is being made")
            };
            self.settle(&path, "sandbox", verdict)?;
        }
        Ok(())
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        for (dir, kind, why) in [
            (layout::blobs(&self.home), "blob", "an image's document"),
            (layout::disk_templates(&self.home), "template", "new disks are copies of it"),
            (layout::kernels(&self.home), "kernel", "VMs boot it"),
            (layout::references(&self.home), "reference", "a tag's digest, for pulls that do not ask the registry"),
        ] {
            for path in children(&dir)? {
                self.settle(&path, kind, Ok(why))?;
            }
        }
        Ok(())
    }
}

/// The paths in a directory, sorted; none if it is missing.
fn children(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{dir:?}"))?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What a file or a tree takes of the disk, in bytes; a hardlinked file counts once.
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

/// The paths that processes have open.
fn open_paths() -> HashSet<PathBuf> {
    let mut open = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            open.extend(fs::read_link(fd.path()));
        }
    }
    open
}

/// Whether a mount names a path. The kernel's overlayfs has its layers open, and no process does.
fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    path.to_str().is_none_or(|path| table.contains(path))
}
