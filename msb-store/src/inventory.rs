//! What is in the store, and what needs it. It only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use msb::store::{erofs, layout};

use crate::image::{self, Image};
use crate::sandbox::{self, Sandbox};
use crate::size;
use crate::vm::{self, Vm};

/// What is in the store.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) home: PathBuf,
    pub(crate) images: Vec<Image>,
    /// The IDs of the layers.
    pub(crate) layers: BTreeSet<String>,
    pub(crate) erofs: Vec<Erofs>,
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) vms: Vec<Vm>,
}

/// A kept EROFS image.
#[derive(Debug)]
pub(crate) struct Erofs {
    pub(crate) path: PathBuf,
    /// The IDs of its layers, top first; empty if that is not known.
    pub(crate) layers: Vec<String>,
}

impl Erofs {
    pub(crate) fn name(&self) -> String {
        name_of(&self.path)
    }
}

/// The last component of a path.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Inventory {
    /// Reads the store.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub(crate) fn read(home: &Path) -> anyhow::Result<Self> {
        let vms = vm::vms(home)?;
        let layers = size::children(&layout::layers(home))?.into_iter().map(|path| name_of(&path));
        let erofs = size::children(&layout::images(home))?.into_iter().filter(|path| layout::is_image(path));
        let erofs = erofs.filter(|path| !layout::is_staging(path));
        Ok(Self {
            home: home.to_owned(),
            images: image::images(home)?,
            layers: layers.filter(|id| layout::is_id(id)).collect(),
            erofs: erofs.map(|path| Erofs { layers: erofs::layers_of(&path).unwrap_or_default(), path }).collect(),
            sandboxes: sandbox::sandboxes(home, &vms)?,
            vms,
        })
    }

    /// The layers that VMs, sandboxes and disks need, and what needs each.
    pub(crate) fn layers_in_need(&self) -> BTreeMap<String, &'static str> {
        let mut needed = BTreeMap::new();
        let mut need = |lower: &[PathBuf], why| {
            for id in lower.iter().filter_map(|dir| layout::layer_id(&self.home, dir)) {
                needed.insert(id.to_owned(), why);
            }
        };
        self.vms.iter().for_each(|vm| need(vm.lower(), if vm.is_saved { "a snapshot has it" } else { "a VM has it" }));
        self.sandboxes.iter().for_each(|sandbox| need(&sandbox.owner.lower, "a sandbox has it"));
        for chain_id in self.sandboxes.iter().filter_map(Sandbox::chain_id) {
            for erofs in self.erofs.iter().filter(|erofs| erofs.name().starts_with(&chain_id)) {
                needed.extend(erofs.layers.iter().map(|id| (id.clone(), "a disk belongs to it")));
            }
        }
        needed
    }

    /// How many images have each layer.
    pub(crate) fn layer_counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        let sets: BTreeSet<&BTreeSet<String>> = self.images.iter().map(|image| &image.layers).collect();
        // Two tags of one image share all of it, so that image counts once.
        for id in sets.into_iter().flatten() {
            *counts.entry(id.as_str()).or_default() += 1;
        }
        counts
    }
}
