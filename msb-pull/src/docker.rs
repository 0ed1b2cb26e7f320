//! What `docker save` and skopeo's `docker-archive:` write: `manifest.json`, configurations and layers in a tar file.
//! It has no digests of layers; the diff_ids of the configuration cover the same bytes.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::archive::Files;
use crate::digest::Digest;
use crate::image::{Blob, Origin};
use crate::manifest::{MAX_CONFIG, MAX_MANIFEST};

const MANIFEST: &str = "manifest.json";

/// An image of the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A docker archive.
pub(crate) struct DockerArchive(Files);

impl DockerArchive {
    /// An archive whose files are open already.
    ///
    /// # Errors
    /// Words where its manifest is missing.
    pub(crate) fn of(files: Files) -> anyhow::Result<Self> {
        ensure!(files.has(MANIFEST), "not a docker archive: {MANIFEST:?} is missing");
        Ok(Self(files))
    }

    /// The configuration and the layers of the image of this tag, or of the only one.
    ///
    /// # Errors
    /// Words that list the tags.
    pub(crate) fn choose(&self, tag: Option<&str>) -> anyhow::Result<(Vec<u8>, Vec<Blob>)> {
        let text = self.0.document(MANIFEST, MAX_MANIFEST)?;
        let mut images: Vec<Saved> = serde_json::from_slice(&text).context(MANIFEST)?;
        let tags: Vec<&str> =
            images.iter().flat_map(|image| image.repo_tags.iter().flatten()).map(String::as_str).collect();
        let listed = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
        if let Some(tag) = tag {
            let is_it = |name: &String| name == tag || *name == format!("{tag}:latest");
            let position = images.iter().position(|image| image.repo_tags.iter().flatten().any(is_it));
            let Some(position) = position else { bail!("no tag {tag:?}: it has {listed}") };
            images = vec![images.swap_remove(position)];
        }
        ensure!(images.len() < 2, "several images: {listed} (choose one with :TAG)");
        let Some(image) = images.pop() else { bail!("the archive holds no image") };
        let config = self.0.document(&image.config, MAX_CONFIG)?;
        let layer = |name: String| Ok(Blob::member(self.0.open(&name)?.size, name));
        Ok((config, image.layers.into_iter().map(layer).collect::<anyhow::Result<_>>()?))
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
