//! An OCI image layout (the OCI image specification's `image-layout.md`), in a directory or a tar file.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::archive::Files;
use crate::digest::Digest;
use crate::image::{Blob, Origin};
use crate::manifest::{Descriptor, Document, MAX_MANIFEST};

const INDEX: &str = "index.json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI layout.
pub(crate) struct Layout(Files);

impl Layout {
    /// A layout in a directory.
    ///
    /// # Errors
    /// Words for a directory that is none.
    pub(crate) fn dir(path: &Path) -> anyhow::Result<Self> {
        Self::of(Files::dir(path)?)
    }

    /// A layout of files that are open already.
    ///
    /// # Errors
    /// Words where the index is missing.
    pub(crate) fn of(files: Files) -> anyhow::Result<Self> {
        ensure!(files.has(INDEX), "not an OCI layout: {INDEX:?} is missing");
        Ok(Self(files))
    }

    /// Whether these files are a layout.
    pub(crate) fn is_in(files: &Files) -> bool {
        files.has(INDEX)
    }

    /// The images of this tag, or all where there is no choice to make.
    ///
    /// # Errors
    /// Words that list the tags.
    pub(crate) fn choose(&self, tag: Option<&str>) -> anyhow::Result<Vec<Descriptor>> {
        let text = self.0.document(INDEX, MAX_MANIFEST)?;
        let Document::Index(entries) = Document::parse(&text).context(INDEX)? else {
            bail!("not an OCI layout: {INDEX:?} is no index");
        };
        ensure!(!entries.is_empty(), "the layout holds no image");
        let tag_of =
            |entry: &Descriptor| entry.annotations.get(REF_NAME).and_then(|name| name.as_str()).map(str::to_owned);
        let mut tags: Vec<String> = entries.iter().filter_map(tag_of).collect();
        tags.dedup();
        let listed = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
        match tag {
            Some(tag) => {
                let chosen: Vec<_> =
                    entries.into_iter().filter(|entry| tag_of(entry).as_deref() == Some(tag)).collect();
                ensure!(!chosen.is_empty(), "no tag {tag:?}: it has {listed}");
                Ok(chosen)
            }
            None if tags.len() > 1 => bail!("several tags: {listed} (choose one with :TAG)"),
            None => Ok(entries),
        }
    }
}

impl Origin for Layout {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        self.0.document(&path(digest), MAX_MANIFEST)
    }

    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        self.0.open(&blob.name_in(path))?.copy(out)
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
