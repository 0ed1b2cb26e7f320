//! Removes what nothing needs. References go first and layers last, and a layer is renamed before it is removed, so a kill at any
//! moment leaves images that are complete and garbage that the next run removes.
//!
//! While it is decided what goes, no pull starts. A pull that runs may need any document and any layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use msb::lock::{self, Lock};
use msb::program;
use msb::store::erofs::Mkfs;
use msb::store::step::StepResult;
use msb::store::{erase, layers, layout, publish, sandbox, snapshot_name};
use serde::Serialize;

use crate::args::Type;
use crate::inventory::{Inventory, name_of};
use crate::sandbox::sandboxes;
use crate::{size, vm};

/// One thing, and whether it stays.
#[derive(Debug, Serialize)]
pub(crate) struct Settled {
    #[serde(rename = "type")]
    pub(crate) kind: Type,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// `kept`, `removed`, or in a dry run `unneeded`.
    pub(crate) state: &'static str,
    pub(crate) why: &'static str,
}

/// The state of what stays.
pub(crate) const KEPT: &str = "kept";

/// The state of what goes.
pub(crate) fn gone(dry_run: bool) -> &'static str {
    if dry_run { "unneeded" } else { "removed" }
}

/// What may be removed.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    pub(crate) dry_run: bool,
    /// What was used within this time stays.
    pub(crate) older_than: Duration,
    /// Whether images that have a reference may go.
    pub(crate) all: bool,
    /// The references that go in any case.
    pub(crate) references: BTreeSet<PathBuf>,
    /// Only these documents and layers may go, and nothing of other types.
    pub(crate) only: Option<BTreeSet<String>>,
}

/// Whether something stays (`Ok`) or nothing needs it (`Err`), and why.
type Verdict = Result<&'static str, &'static str>;

const IN_USE: &str = "it is in use";
const PULLING: &str = "a pull is running, and may need it";
const YOUNG: &str = "it was used in the time of --older-than";
const UNFINISHED: &str = "it was never finished";

/// Removes what nothing needs, and calls `report` for everything that is there.
///
/// # Errors
/// The error names what could not be read or removed; the error of `report`.
pub(crate) fn collect(
    home: &Path,
    scope: &Scope,
    report: &mut dyn FnMut(Settled) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let pulls = layout::pulls(home);
    let gate = match lock::open(&pulls, Lock::Exclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.with_context(|| format!("{pulls:?}"))?),
    };
    let (kept_layers, doomed) = (BTreeSet::new(), Vec::new());
    let mut collector = Collector { home, scope, report, is_pulling: false, kept_layers, doomed };
    collector.all()?;
    let doomed = collector.doomed;
    // Pulls need not wait for the removal. The locks tell other runs that somebody removes these.
    drop(gate);
    for (path, _lock) in &doomed {
        publish::remove_tree(path).with_context(|| format!("{path:?}"))?;
    }
    Ok(())
}

struct Collector<'a> {
    home: &'a Path,
    scope: &'a Scope,
    report: &'a mut dyn FnMut(Settled) -> anyhow::Result<()>,
    is_pulling: bool,
    /// The IDs of the layers that stay.
    kept_layers: BTreeSet<String>,
    /// Directories that have lost their names, each with the lock on it.
    doomed: Vec<(PathBuf, OwnedFd)>,
}

impl Collector<'_> {
    fn all(&mut self) -> anyhow::Result<()> {
        self.pulls()?;
        self.sandboxes()?;
        self.steps()?;
        // Without the sandboxes that went.
        let inventory = Inventory::read(self.home)?;
        let needed = inventory.layers_in_need();
        let (documents, layers) = self.images(&inventory, &needed)?;
        self.blobs(&documents)?;
        self.layers(&inventory, &layers, &needed)?;
        self.checksums()?;
        self.erofs(&inventory)?;
        self.agents()?;
        self.snapshots()?;
        self.volumes()
    }

    fn put(&mut self, kind: Type, path: &Path, bytes: u64, verdict: Verdict) -> anyhow::Result<()> {
        self.put_as(name_of(path), kind, path, bytes, verdict)
    }

    fn put_as(&mut self, name: String, kind: Type, path: &Path, bytes: u64, verdict: Verdict) -> anyhow::Result<()> {
        let (state, why) = match verdict {
            Ok(why) => (KEPT, why),
            Err(why) => (gone(self.scope.dry_run), why),
        };
        (self.report)(Settled { kind, name, path: path.to_owned(), bytes, state, why })
    }

    /// Settles a thing that one unlink or one tree removes.
    fn settle(&mut self, kind: Type, path: &Path, verdict: Verdict) -> anyhow::Result<()> {
        let bytes = size::of(path)?;
        if verdict.is_err() && !self.scope.dry_run {
            let is_saved = path.starts_with(layout::snapshots(self.home));
            let remove = if is_saved { erase::remove_tree } else { publish::remove_tree };
            remove(path).with_context(|| format!("{path:?}"))?;
        }
        self.put(kind, path, bytes, verdict)
    }

    /// Whether anything but the documents and layers of some images may go.
    fn is_general(&self) -> bool {
        self.scope.only.is_none()
    }

    fn may_go(&self, hex: &str) -> bool {
        self.scope.only.as_ref().is_none_or(|only| only.contains(hex))
    }

    /// Whether a file was used within the time that is to be kept.
    fn is_young(&self, used: Option<SystemTime>) -> bool {
        let age = used.and_then(|used| SystemTime::now().duration_since(used).ok());
        !self.scope.older_than.is_zero() && age.is_none_or(|age| age < self.scope.older_than)
    }

    fn pulls(&mut self) -> anyhow::Result<()> {
        for path in size::children(&layout::pulls(self.home))? {
            // Held until it is removed, so that no pull takes it meanwhile.
            let (verdict, _lock) = match lock::open(&path, Lock::TryExclusive) {
                Ok(lock) => (Err("its pull was killed"), Some(lock)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_pulling = true;
                    (Ok("its pull is running"), None)
                }
                // It has just ended, and may have named documents and layers that were not read yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.is_pulling = true;
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("{path:?}")),
            };
            if self.is_general() {
                self.settle(Type::Unfinished, &path, verdict)?;
            }
        }
        Ok(())
    }

    fn sandboxes(&mut self) -> anyhow::Result<()> {
        if !self.is_general() {
            return Ok(());
        }
        for found in sandboxes(self.home, &vm::vms(self.home)?)? {
            let mut verdict = found.state.verdict(self.scope.older_than);
            let bytes = size::of(&found.path)?;
            if verdict.is_err() && !self.scope.dry_run {
                // Somebody may use it since it was looked at.
                match sandbox::remove(&found.path) {
                    Ok(_) => {}
                    Err(msb::store::Error::Caller(_)) => verdict = Ok(IN_USE),
                    Err(error) => return Err(error).with_context(|| format!("{:?}", found.path)),
                }
            }
            let kind = match (layout::is_staging(&found.path), found.has_upper) {
                (true, _) => Type::Unfinished,
                (false, true) => Type::Sandbox,
                (false, false) => Type::Disk,
            };
            self.put(kind, &found.path, bytes, verdict)?;
        }
        Ok(())
    }

    /// Removes results of steps whose upper is gone, and says nothing of them: they are small, and msb-run would not use them.
    fn steps(&mut self) -> anyhow::Result<()> {
        if !self.is_general() || self.scope.dry_run {
            return Ok(());
        }
        for path in size::children(&layout::steps(self.home))?.into_iter().filter(|path| !layout::is_staging(path)) {
            if !StepResult::read(&path).is_ok_and(|made| made.upper.dir.is_dir()) {
                fs::remove_file(&path).with_context(|| format!("{path:?}"))?;
            }
        }
        Ok(())
    }

    /// Settles the images. Returns the documents and the layers of those that stay.
    fn images(
        &mut self,
        inventory: &Inventory,
        needed: &BTreeMap<String, &'static str>,
    ) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
        let (mut documents, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for image in &inventory.images {
            let is_needed = || image.layers.iter().any(|id| needed.contains_key(id));
            let verdict = if self.scope.references.contains(&image.path) {
                Err("it was named")
            } else if !self.is_general() {
                Ok("it was not named")
            } else if self.is_pulling {
                Ok(PULLING)
            } else if image.documents.is_empty() {
                Err("its documents are gone")
            } else if !self.scope.all {
                Ok("it has a reference")
            } else if is_needed() {
                Ok("a VM, a sandbox or a snapshot has it")
            } else if image
                .layers
                .iter()
                .any(|id| lock::open(&layout::layer(self.home, id), Lock::TryExclusive).is_err())
            {
                Ok(IN_USE)
            } else if self.is_young(Some(image.last_use)) {
                Ok(YOUNG)
            } else {
                Err("nothing uses it")
            };
            if verdict.is_ok() {
                documents.extend(image.documents.iter().cloned());
                layers.extend(image.layers.iter().cloned());
            } else if !self.scope.dry_run {
                fs::remove_file(&image.path).with_context(|| format!("{:?}", image.path))?;
            }
            // Its documents and layers are counted for themselves.
            self.put_as(image.name.clone(), Type::Image, &image.path, 0, verdict)?;
        }
        Ok((documents, layers))
    }

    fn blobs(&mut self, documents: &BTreeSet<String>) -> anyhow::Result<()> {
        for path in size::children(&layout::blobs(self.home))? {
            let hex = name_of(&path);
            if !self.may_go(&hex) {
                continue;
            }
            let verdict = if documents.contains(&hex) {
                Ok("an image has it")
            } else if self.is_pulling {
                Ok(PULLING)
            } else if self.is_young(fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok()) {
                Ok(YOUNG)
            } else {
                Err("no image has it")
            };
            self.settle(Type::Blob, &path, verdict)?;
        }
        Ok(())
    }

    fn layers(
        &mut self,
        inventory: &Inventory,
        of_images: &BTreeSet<String>,
        needed: &BTreeMap<String, &'static str>,
    ) -> anyhow::Result<()> {
        for id in &inventory.layers {
            let path = layout::layer(self.home, id);
            let (verdict, lock) = if of_images.contains(id) {
                (Ok("an image has it"), None)
            } else if let Some(why) = needed.get(id) {
                (Ok(*why), None)
            } else if self.is_pulling {
                (Ok(PULLING), None)
            } else if self.is_young(layers::last_use(self.home, id)) {
                (Ok(YOUNG), None)
            } else {
                match lock::open(&path, Lock::TryExclusive) {
                    Ok(lock) => (Err("no image has it"), Some(lock)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => (Ok(IN_USE), None),
                    Err(error) => return Err(error).with_context(|| format!("{path:?}")),
                }
            };
            if verdict.is_ok() || !self.may_go(id) {
                self.kept_layers.insert(id.clone());
            }
            if !self.may_go(id) {
                continue;
            }
            let bytes = size::of_layer(self.home, id)?;
            if let Some(lock) = lock.filter(|_| !self.scope.dry_run) {
                self.doom(&path, lock)?;
            }
            self.put(Type::Layer, &path, bytes, verdict)?;
        }
        if self.is_general() {
            self.unfinished(&layout::layers(self.home))?;
        }
        Ok(())
    }

    /// Takes the name of a directory away. What is left to do then is safe at any time.
    fn doom(&mut self, path: &Path, lock: OwnedFd) -> anyhow::Result<()> {
        let doomed = publish::staging_path(path);
        fs::rename(path, &doomed).with_context(|| format!("{path:?}"))?;
        self.doomed.push((doomed, lock));
        Ok(())
    }

    /// Settles what a killed process was making or removing in a directory.
    fn unfinished(&mut self, dir: &Path) -> anyhow::Result<()> {
        for path in size::children(dir)?.into_iter().filter(|path| layout::is_staging(path)) {
            if self.doomed.iter().any(|(doomed, _)| *doomed == path) {
                continue;
            }
            let lock = lock::open(&path, Lock::TryExclusive);
            let verdict = if lock.is_ok() { Err(UNFINISHED) } else { Ok("it is being made or removed") };
            self.settle(Type::Unfinished, &path, verdict)?;
        }
        Ok(())
    }

    /// Removes checksums without a layer, and says nothing of them: they belong to their layers.
    fn checksums(&mut self) -> anyhow::Result<()> {
        for path in size::children(&layout::all_checksums(self.home))? {
            let id = name_of(&path);
            // A running pull makes a layer's checksums visible before the layer.
            let has_layer = self.is_pulling || layout::layer(self.home, &id).exists();
            if self.may_go(&id) && !has_layer && !self.scope.dry_run {
                fs::remove_file(&path).with_context(|| format!("{path:?}"))?;
            }
        }
        Ok(())
    }

    fn erofs(&mut self, inventory: &Inventory) -> anyhow::Result<()> {
        let mkfs = Mkfs::find().ok();
        let images = layout::images(self.home);
        for erofs in &inventory.erofs {
            let is_kept = |id: &String| self.kept_layers.contains(id);
            let locked = lock::open(&erofs.path, Lock::TryExclusive);
            let verdict = if locked.is_err() {
                Ok(IN_USE)
            } else if !erofs.layers.iter().all(is_kept) {
                Err("its layers are gone")
            } else if !self.is_general() {
                Ok("its layers are there")
            } else if erofs.layers.is_empty() {
                Err("its layers are not known")
            } else if mkfs.as_ref().is_some_and(|mkfs| !mkfs.made(&erofs.path)) {
                Err("another mkfs.erofs has made it")
            } else {
                Ok("its layers are there")
            };
            self.settle(Type::Erofs, &erofs.path, verdict)?;
        }
        if !self.is_general() {
            return Ok(());
        }
        self.unfinished(&images)?;
        for path in size::children(&images)?.into_iter().filter(|path| layout::is_image_lock(path)) {
            let has_image = layout::locked_image(&path).exists();
            if !has_image && !self.scope.dry_run && lock::open(&path, Lock::TryExclusive).is_ok() {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Settles the parts of initramfs that hold an agent. msb-boot makes one for each agentd that it runs with.
    fn agents(&mut self) -> anyhow::Result<()> {
        if !self.is_general() {
            return Ok(());
        }
        let installed: BTreeSet<PathBuf> = program::agents()
            .iter()
            .filter_map(|agent| fs::metadata(agent).ok())
            .map(|agent| layout::agent_part(self.home, &agent))
            .collect();
        for path in size::children(&layout::kernels(self.home))?.into_iter().filter(|path| layout::is_agent_part(path))
        {
            // Held until it is removed.
            let lock = lock::open(&path, Lock::TryExclusive);
            let verdict = if lock.is_err() {
                Ok(IN_USE)
            } else if installed.contains(&path) {
                Ok("its agentd is installed")
            } else if self.is_young(fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok()) {
                Ok(YOUNG)
            } else {
                Err("its agentd is not installed")
            };
            self.settle(Type::Initramfs, &path, verdict)?;
        }
        Ok(())
    }

    /// gc removes snapshots that were never finished.
    fn snapshots(&mut self) -> anyhow::Result<()> {
        if !self.is_general() {
            return Ok(());
        }
        let dir = layout::snapshots(self.home);
        for path in size::children(&dir)?.into_iter().filter(|path| !layout::is_staging(path)) {
            self.settle(Type::Snapshot, &path, Ok("snapshots are kept until they are removed by name"))?;
        }
        if !self.scope.dry_run {
            // Names without a snapshot are not reported: msb-run ignores them.
            snapshot_name::prune(self.home)?;
        }
        self.unfinished(&dir)
    }

    /// gc never removes volumes.
    fn volumes(&mut self) -> anyhow::Result<()> {
        if self.is_general() {
            for path in size::children(&layout::volumes(self.home))? {
                self.settle(Type::Volume, &path, Ok("volumes are kept until they are removed by name"))?;
            }
        }
        Ok(())
    }
}
