//! The layers of an image that are being added to the store. They are unpacked in any order. A layer whose form depends on those
//! below it becomes visible after them, any other one as soon as it is unpacked. A failed pull leaves the complete layers, and
//! the next pull continues from there.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use msb::overlay::beneath::Dir;
use msb::overlay::whiteout;
use msb::store::chain;
use msb::store::checksums::{self, Contents};

use crate::budget::Budget;
use crate::image::ImageLayer;
use crate::implied::inherit;
use crate::lower_link::fill;
use crate::store::{LayerLock, Store};
use crate::unpack::Unpacked;
use msb_registry::digest::Digest;

/// The layers of one image.
pub(crate) struct Stack<'a> {
    store: &'a Store,
    layers: &'a [ImageLayer],
    budget: &'a Budget,
    /// The stacked ID of each layer, for layers whose form depends on those below.
    stacked_ids: Vec<String>,
    /// The layers that this pull has unpacked, by diff_id.
    unpacked: HashMap<String, Waiting>,
    /// How many layers are complete, counted from the bottom.
    complete: usize,
    /// The lower directories so far, bottom first.
    lower: Vec<PathBuf>,
    /// Complete layers that are not published, with their IDs.
    unpublished: Vec<(PathBuf, String)>,
}

/// A layer that was unpacked.
struct Waiting {
    /// Its scratch directory, or its place in the store once it is there.
    path: PathBuf,
    /// The hashes in it are dropped if it has to wait for layers below.
    unpacked: Unpacked,
    /// Held until the layer is in the store.
    lock: Option<LayerLock>,
}

impl<'a> Stack<'a> {
    /// The layers of an image, bottom first.
    pub(crate) fn new(store: &'a Store, layers: &'a [ImageLayer], budget: &'a Budget) -> Self {
        Self {
            store,
            layers,
            budget,
            stacked_ids: stacked_ids(layers),
            unpacked: HashMap::new(),
            complete: 0,
            lower: Vec::new(),
            unpublished: Vec::new(),
        }
    }

    /// The layers that are neither unpacked nor in the store, each diff_id once.
    pub(crate) fn missing(&self) -> Vec<&'a ImageLayer> {
        let mut missing: Vec<&ImageLayer> = Vec::new();
        for layer in self.layers {
            if !missing.iter().any(|other| other.diff_id == layer.diff_id) && self.lacks(layer) {
                missing.push(layer);
            }
        }
        missing
    }

    /// Whether a layer is neither unpacked nor in the store.
    pub(crate) fn lacks(&self, layer: &ImageLayer) -> bool {
        let mut places = self.layers.iter().zip(&self.stacked_ids).filter(|(other, _)| other.diff_id == layer.diff_id);
        !self.unpacked.contains_key(layer.diff_id.hex())
            && !places.any(|(_, stacked_id)| in_store(self.store, layer, stacked_id).is_some())
    }

    /// Takes a layer that was unpacked.
    ///
    /// # Errors
    /// The errors of reading the lower layers, or applying attributes.
    pub(crate) fn add(
        &mut self,
        diff_id: &Digest,
        scratch: PathBuf,
        mut unpacked: Unpacked,
        lock: Option<LayerLock>,
    ) -> anyhow::Result<()> {
        if unpacked.dependent.is_empty() {
            self.unpublished.push((scratch.clone(), diff_id.hex().to_owned()));
        }
        // Hardlinks to files of layers below get their content in `fill`.
        if !unpacked.dependent.links.is_empty() {
            unpacked.contents = Contents::default();
        }
        self.unpacked.insert(diff_id.hex().to_owned(), Waiting { path: scratch, unpacked, lock });
        self.advance()?;
        // Any number of layers may have to wait, so their hashes are dropped, and the files are read again.
        if let Some(layer) = self.unpacked.get_mut(diff_id.hex()) {
            layer.unpacked.contents = Contents::default();
        }
        Ok(())
    }

    /// Completes layers from the bottom up to the first one that is missing.
    fn advance(&mut self) -> anyhow::Result<()> {
        while let Some(layer) = self.layers.get(self.complete) {
            let stacked_id = &self.stacked_ids[self.complete];
            let Some(Waiting { path, unpacked, .. }) = self.unpacked.get(layer.diff_id.hex()) else {
                let Some(stored) = in_store(self.store, layer, stacked_id) else { break };
                push(&mut self.lower, stored)?;
                self.complete += 1;
                continue;
            };
            let Unpacked { dependent, contents } = unpacked;
            if !dependent.is_empty() {
                let below = top_first(self.lower.clone());
                let below: Vec<PathBuf> = below.into_iter().filter(|dir| dir != path).collect();
                let complete = || {
                    inherit(path, &dependent.implied, &below)?;
                    fill(path, &dependent.links, &below, self.budget)
                };
                complete().with_context(|| format!("layer {:?}", layer.blob.name()))?;
                // A layer that comes again higher up is completed there.
                if self.layers[self.complete + 1..].iter().all(|other| other.diff_id != layer.diff_id) {
                    checksums::write(path, contents, &checksums::beside(path)).context("checksums")?;
                    self.unpublished.push((path.clone(), stacked_id.clone()));
                }
            }
            push(&mut self.lower, path.clone())?;
            self.complete += 1;
        }
        Ok(())
    }

    /// Whether layers are complete that are not in the store.
    pub(crate) fn has_unpublished(&self) -> bool {
        !self.unpublished.is_empty()
    }

    /// The complete layers that are not in the store, with their IDs, for [`Self::place`] after a sync.
    pub(crate) fn take_unpublished(&mut self) -> Vec<(PathBuf, String)> {
        std::mem::take(&mut self.unpublished)
    }

    /// Makes layers visible that are complete and on disk.
    ///
    /// # Errors
    /// The errors of renaming.
    pub(crate) fn place(&mut self, batch: Vec<(PathBuf, String)>) -> anyhow::Result<()> {
        self.store.publish(&batch)?;
        self.settle(batch);
        Ok(())
    }

    /// Makes all complete layers visible.
    ///
    /// # Errors
    /// The errors of syncing or renaming.
    pub(crate) fn publish(&mut self) -> anyhow::Result<()> {
        let batch = self.take_unpublished();
        self.store.commit(&batch, &[], None)?;
        self.settle(batch);
        Ok(())
    }

    /// Replaces the names of layers that have their place in the store.
    fn settle(&mut self, batch: Vec<(PathBuf, String)>) {
        for (scratch, id) in batch {
            let stored = self.store.layer_path(&id);
            for layer in self.unpacked.values_mut().filter(|layer| layer.path == scratch) {
                (layer.path, layer.lock) = (stored.clone(), None);
            }
            for dir in self.lower.iter_mut().filter(|dir| **dir == scratch) {
                dir.clone_from(&stored);
            }
        }
    }

    /// Lets other pulls fetch the layers that this one cannot publish yet.
    pub(crate) fn unlock(&mut self) {
        self.unpacked.values_mut().for_each(|layer| layer.lock = None);
    }

    /// Makes all layers, the documents and the reference visible. Returns the lower directories, top first.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) fn finish(
        mut self,
        documents: &[(Digest, Vec<u8>)],
        reference: Option<(&str, &Digest)>,
    ) -> anyhow::Result<Vec<PathBuf>> {
        self.advance()?;
        if self.complete < self.layers.len() {
            return Err(anyhow!("a layer vanished from the store"));
        }
        let batch = self.take_unpublished();
        self.store.commit(&batch, documents, reference)?;
        self.settle(batch);
        Ok(top_first(self.lower))
    }
}

/// The stacked ID of each layer, bottom first. A diff_id that occurs twice has the ID of its highest position.
fn stacked_ids(layers: &[ImageLayer]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for layer in layers {
        ids.push(chain::stacked_id(ids.last().map(String::as_str), layer.diff_id.hex()));
    }
    let highest = |layer: &ImageLayer| layers.iter().rposition(|other| other.diff_id == layer.diff_id).unwrap_or(0);
    layers.iter().map(|layer| ids[highest(layer)].clone()).collect()
}

/// A layer in the store. It is stored under its diff_id if its form is the same on any layers, else under its stacked ID.
fn in_store(store: &Store, layer: &ImageLayer, stacked_id: &str) -> Option<PathBuf> {
    store.layer(layer.diff_id.hex()).or_else(|| store.layer(stacked_id))
}

/// The lower directories, top first, if the store has all of them.
pub(crate) fn stored(store: &Store, layers: &[ImageLayer]) -> Option<Vec<PathBuf>> {
    let mut lower = Vec::new();
    for (layer, stacked_id) in layers.iter().zip(stacked_ids(layers)) {
        let stored = in_store(store, layer, &stacked_id)?;
        // A layer that cannot be read is pulled again, and that reports the error.
        push(&mut lower, stored).ok()?;
    }
    Some(top_first(lower))
}

/// Pushes a layer onto those below. overlayfs ignores an opaque root, so the layers that such a root hides are removed.
fn push(lower: &mut Vec<PathBuf>, layer: PathBuf) -> anyhow::Result<()> {
    if whiteout::is_opaque(&Dir::open(&layer)?)? {
        lower.clear();
    }
    lower.push(layer);
    Ok(())
}

/// Turns layers from bottom first to top first. A layer that occurs twice keeps its highest position, which hides the other one;
/// overlayfs refuses a directory that occurs twice.
fn top_first(layers: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for layer in layers.into_iter().rev() {
        if !lower.contains(&layer) {
            lower.push(layer);
        }
    }
    lower
}
