//! Pushing an image: what the registry lacks, and last the manifest, so that a tag never names half an image.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use msb_registry::reference::Reference;

use crate::base::Origin;
use crate::digest::digest;
use crate::document::{MANIFEST_TYPE, NewImage};
use crate::layout::fetched;
use crate::registry::{Access, Registry};

/// Pushes an image. Layers of the base that are elsewhere go through a file without a name in `home`.
///
/// # Errors
/// A message that names the image, and the registry or a layer.
pub(crate) fn push(
    reference: &Reference,
    access: &Access,
    image: &NewImage,
    origin: &Origin,
    home: &Path,
) -> anyhow::Result<()> {
    let push = || -> anyhow::Result<()> {
        let registry = Registry::connect(reference, access)?;
        for layer in &image.layers {
            let name = layer.digest();
            if registry.has(name)? {
                continue;
            }
            let from = if layer.file.is_none() { origin.repository_of(&reference.registry) } else { None };
            if let Some(from) = from
                && registry.mount(name, from)?
            {
                continue;
            }
            // The registry checks the digest of what it gets.
            let on_disk = if layer.file.is_none() { origin.file(layer) } else { None };
            let file = Arc::new(on_disk.map_or_else(|| fetched(layer, origin, home), Ok)?);
            registry.upload(name, layer.size(), &file).with_context(|| format!("layer {name}"))?;
        }
        let config = digest(&image.config);
        if !registry.has(&config)? {
            registry.upload_bytes(&config, &image.config).context("configuration")?;
        }
        let tag = reference.tag.as_deref().unwrap_or("latest");
        registry.put_manifest(tag, MANIFEST_TYPE, &image.manifest)
    };
    push().with_context(|| format!("image {:?}", reference.whole()))
}
