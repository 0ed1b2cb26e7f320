//! The archives of `docker save` and skopeo's `docker-archive:`: `manifest.json`, configurations and layers in a tar file.
//! It has no digests of layers; the diff_ids of the configuration cover the same bytes.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::archive::Files;
use crate::image::{Blob, Origin};
use crate::manifest::{MAX_CONFIG, MAX_MANIFEST};
use crate::names;
use msb_registry::digest::Digest;
use msb_registry::json::null_is_default;

const MANIFEST: &str = "manifest.json";

/// An image of the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<String>,
}

/// The chosen image of the archive.
pub(crate) struct Image {
    pub(crate) configuration: Vec<u8>,
    pub(crate) layers: Vec<Blob>,
    pub(crate) name: Option<String>,
}

/// A docker archive.
pub(crate) struct DockerArchive(Files);

impl DockerArchive {
    /// An archive whose files are already open.
    ///
    /// # Errors
    /// A message if its manifest is missing.
    pub(crate) fn of(files: Files) -> anyhow::Result<Self> {
        ensure!(files.has(MANIFEST), "not a docker archive: {MANIFEST:?} is missing");
        Ok(Self(files))
    }

    /// Whether these files are a docker archive.
    pub(crate) fn is_in(files: &Files) -> bool {
        files.has(MANIFEST)
    }

    /// The image of this name, or the only one.
    ///
    /// # Errors
    /// A message that lists the names.
    pub(crate) fn choose(&self, tag: Option<&str>) -> anyhow::Result<Image> {
        let text = self.0.document(MANIFEST, MAX_MANIFEST)?;
        let mut saved: Vec<Saved> = serde_json::from_slice(&text).context(MANIFEST)?;
        ensure!(!saved.is_empty(), "the archive holds no image");
        let mut named: Vec<(Vec<String>, &String)> = Vec::new();
        for image in &saved {
            // Each name is listed on its own, because all names of an image have equal rank.
            named.extend(image.repo_tags.iter().map(|name| (vec![name.clone()], &image.config)));
            if image.repo_tags.is_empty() {
                named.push((Vec::new(), &image.config));
            }
        }
        let chosen = names::choose(named, tag)?;
        ensure!(chosen.images.len() == 1, names::AMBIGUOUS.replace("{}", &chosen.listed));
        let (config, name) = (chosen.images[0].clone(), chosen.name);
        saved.retain(|image| image.config == config);
        let layer = |name: String| Ok(Blob::member(self.0.open(&name)?.size, name));
        let layers = saved.swap_remove(0).layers.into_iter().map(layer).collect::<anyhow::Result<_>>()?;
        Ok(Image { configuration: self.0.document(&config, MAX_CONFIG)?, layers, name })
    }
}

impl Origin for DockerArchive {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        bail!("a docker archive has no manifest {digest}")
    }

    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        self.0.open(&blob.name_in(Digest::to_string))?.copy(out)
    }
}
