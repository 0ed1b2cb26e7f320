//! An OCI image layout (the OCI image specification's `image-layout.md`), in a directory or a tar file.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::archive::Files;
use crate::image::{Blob, Origin, Start};
use crate::manifest::{Configuration, Document, IndexEntry, MAX_CONFIG, MAX_MANIFEST, select};
use crate::names;
use crate::platform::Platform;
use msb_registry::digest::Digest;

const INDEX: &str = "index.json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An OCI layout.
pub(crate) struct Layout(Files);

impl Layout {
    /// A layout in a directory.
    ///
    /// # Errors
    /// A message for any other directory.
    pub(crate) fn dir(path: &Path) -> anyhow::Result<Self> {
        Self::of(Files::dir(path)?)
    }

    /// A layout whose files are already open.
    ///
    /// # Errors
    /// A message if the index is missing.
    pub(crate) fn of(files: Files) -> anyhow::Result<Self> {
        ensure!(files.has(INDEX), "not an OCI layout: {INDEX:?} is missing");
        Ok(Self(files))
    }

    /// Whether these files are a layout.
    pub(crate) fn is_in(files: &Files) -> bool {
        files.has(INDEX)
    }

    /// The image with this name, or the only one. Of one image for several platforms, the one that fits `wanted` is returned. The
    /// name is returned too, if the layout has it.
    ///
    /// # Errors
    /// A message that lists the names.
    pub(crate) fn choose(&self, tag: Option<&str>, wanted: &Platform) -> anyhow::Result<(Start, Option<String>)> {
        let text = self.0.document(INDEX, MAX_MANIFEST)?;
        let Document::Index(entries) = Document::parse(&text).context(INDEX)? else {
            bail!("not an OCI layout: {INDEX:?} is not an index");
        };
        let entries: Vec<IndexEntry> = entries.into_iter().filter(|entry| !entry.is_attestation()).collect();
        ensure!(!entries.is_empty(), "the layout holds no image");
        let named = entries.iter().map(|entry| (names(entry), &entry.digest)).collect();
        let chosen = names::choose(named, tag)?;
        let mut candidates: Vec<IndexEntry> = Vec::new();
        for entry in &entries {
            if chosen.images.contains(&&entry.digest) && candidates.iter().all(|other| other.digest != entry.digest) {
                candidates.push(entry.clone());
            }
        }
        if candidates.len() > 1 {
            // skopeo and umoci write no platforms into the index.
            for candidate in
                candidates.iter_mut().filter(|entry| entry.platform.as_ref().is_none_or(Platform::is_empty))
            {
                candidate.platform = Digest::parse(&candidate.digest).ok().and_then(|digest| self.platform(&digest));
            }
        }
        let best = select(&candidates, wanted)?;
        let rivals = candidates.iter().filter(|other| other.platform == best.platform).count();
        ensure!(rivals == 1, names::AMBIGUOUS.replace("{}", &chosen.listed));
        Ok((Start { digest: Digest::parse(&best.digest)?, platform: best.platform.clone() }, chosen.name))
    }

    /// The platform of a manifest, as its configuration says.
    fn platform(&self, digest: &Digest) -> Option<Platform> {
        let text = self.0.document(&digest.path_in_layout(), MAX_MANIFEST).ok()?;
        let Ok(Document::Manifest { config, .. }) = Document::parse(&text) else { return None };
        let text = self.0.document(&config.digest.path_in_layout(), MAX_CONFIG).ok()?;
        Some(Configuration::parse(&text).ok()?.platform)
    }
}

/// The name of an entry. docker and containerd put the full name into an annotation of their own.
fn names(entry: &IndexEntry) -> Vec<String> {
    [IMAGE_NAME, REF_NAME].iter().filter_map(|name| entry.annotation(name)).map(str::to_owned).collect()
}

impl Origin for Layout {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        self.0.document(&digest.path_in_layout(), MAX_MANIFEST)
    }

    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        self.0.open(&blob.name_in(Digest::path_in_layout))?.copy(out)
    }
}
