//! The layers of an image that are being added to the store. They are unpacked in any order, but become visible from the bottom up,
//! because the form of a layer may depend on those below it. A failed pull leaves the complete layers, and the next pull continues from
//! there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use msb::overlay::beneath::Dir;
use msb::overlay::whiteout;
use msb::store::chain;

use crate::digest::Digest;
use crate::image::ImageLayer;
use crate::implied::inherit;
use crate::store::Store;

/// How long complete layers may wait to be published. Each time costs a sync of the file system.
const INTERVAL: Duration = Duration::from_secs(2);

/// The layers of one image.
pub(crate) struct Stack<'a> {
    store: &'a Store,
    layers: &'a [ImageLayer],
    /// The stacked ID of each layer, for layers whose form depends on those below.
    stacked_ids: Vec<String>,
    /// Scratch directory and implied directories of unpacked layers, by diff_id.
    unpacked: HashMap<String, (PathBuf, Vec<PathBuf>)>,
    /// How many layers are complete, counted from the bottom.
    complete: usize,
    /// The lower directories so far, bottom first.
    lower: Vec<PathBuf>,
    /// Complete layers that are not published, with their IDs.
    unpublished: Vec<(PathBuf, String)>,
    published: Instant,
}

impl<'a> Stack<'a> {
    /// The layers of an image, bottom first.
    pub(crate) fn new(store: &'a Store, layers: &'a [ImageLayer]) -> Self {
        Self {
            store,
            layers,
            stacked_ids: stacked_ids(layers),
            unpacked: HashMap::new(),
            complete: 0,
            lower: Vec::new(),
            unpublished: Vec::new(),
            published: Instant::now(),
        }
    }

    /// The layers that the store does not have, each diff_id once.
    pub(crate) fn missing(&self) -> Vec<&'a ImageLayer> {
        let mut missing: Vec<&ImageLayer> = Vec::new();
        for (layer, stacked_id) in self.layers.iter().zip(&self.stacked_ids) {
            let is_listed = missing.iter().any(|other| other.diff_id == layer.diff_id);
            if !is_listed && in_store(self.store, layer, stacked_id).is_none() {
                missing.push(layer);
            }
        }
        missing
    }

    /// Takes a layer that was unpacked. Publishes what is complete, unless it did so a moment ago.
    ///
    /// # Errors
    /// The errors of reading the lower layers, applying attributes or renaming.
    pub(crate) fn add(&mut self, diff_id: &Digest, scratch: PathBuf, implied: Vec<PathBuf>) -> anyhow::Result<()> {
        self.unpacked.insert(diff_id.hex().to_owned(), (scratch, implied));
        self.advance()?;
        if self.published.elapsed() < INTERVAL { Ok(()) } else { self.publish() }
    }

    /// Completes layers from the bottom up to the first one that is missing.
    fn advance(&mut self) -> anyhow::Result<()> {
        while let Some(layer) = self.layers.get(self.complete) {
            let stacked_id = &self.stacked_ids[self.complete];
            let Some((scratch, implied)) = self.unpacked.get(layer.diff_id.hex()) else {
                let Some(stored) = in_store(self.store, layer, stacked_id) else { break };
                push(&mut self.lower, stored)?;
                self.complete += 1;
                continue;
            };
            let below = top_first(self.lower.clone());
            let below: Vec<PathBuf> = below.into_iter().filter(|dir| dir != scratch).collect();
            inherit(scratch, implied, &below).with_context(|| format!("layer {:?}", layer.blob.name()))?;
            // A layer that comes again higher up is completed there.
            if self.layers[self.complete + 1..].iter().all(|other| other.diff_id != layer.diff_id) {
                let id = if implied.is_empty() { layer.diff_id.hex() } else { stacked_id };
                self.unpublished.push((scratch.clone(), id.to_owned()));
            }
            push(&mut self.lower, scratch.clone())?;
            self.complete += 1;
        }
        Ok(())
    }

    /// Makes complete layers visible.
    ///
    /// # Errors
    /// The errors of syncing or renaming.
    pub(crate) fn publish(&mut self) -> anyhow::Result<()> {
        self.store.commit(&self.unpublished, &[])?;
        self.place();
        Ok(())
    }

    fn place(&mut self) {
        for (scratch, id) in self.unpublished.drain(..) {
            let stored = self.store.layer_path(&id);
            for dir in self.lower.iter_mut().filter(|dir| **dir == scratch) {
                dir.clone_from(&stored);
            }
        }
        self.published = Instant::now();
    }

    /// Makes all layers and then the documents visible. Returns the lower directories, top first.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) fn finish(mut self, documents: &[(Digest, Vec<u8>)]) -> anyhow::Result<Vec<PathBuf>> {
        self.advance()?;
        if self.complete < self.layers.len() {
            return Err(anyhow!("a layer vanished from the store"));
        }
        self.store.commit(&self.unpublished, documents)?;
        self.place();
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
