//! An image's documents, found and verified: from a reference to the manifest of one platform, its configuration and the
//! layers to unpack. Nothing here writes.

use std::io::Write;

use anyhow::{Context, bail, ensure};

use crate::manifest::{Configuration, Descriptor, Document, IndexEntry, MAX_CONFIG, MAX_MANIFEST, select};
use crate::platform::Platform;
use crate::store::Store;
use msb_registry::digest::{Digest, Verifier};

/// How deep indexes may nest.
const MAX_DEPTH: usize = 4;
/// How many configurations are read to find the platform, where an index has none.
const MAX_SILENT: usize = 32;

/// A tar archive without members.
pub(crate) const EMPTY_LAYER: [u8; 1024] = [0; 1024];

/// A source of documents and blobs. What it returns is not verified.
pub(crate) trait Origin: Sync {
    /// An index or a manifest.
    ///
    /// # Errors
    /// A message, also for a document over [`MAX_MANIFEST`].
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>>;

    /// Writes a blob's bytes to `out`.
    ///
    /// # Errors
    /// A message, or the writer's own error unchanged.
    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()>;
}

/// A blob of an image.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Option<Digest>,
    member: String,
    pub(crate) size: u64,
}

impl Blob {
    fn described(descriptor: &Descriptor) -> Self {
        let digest = Some(descriptor.digest.clone());
        Self { digest, member: String::new(), size: descriptor.size }
    }

    /// A blob that has a name in an archive instead of a digest.
    pub(crate) fn member(size: u64, name: String) -> Self {
        Self { digest: None, member: name, size }
    }

    /// The layer of an image without layers: overlayfs needs at least one lower directory.
    fn empty_layer() -> Self {
        Self::member(EMPTY_LAYER.len() as u64, String::new())
    }

    /// Whether this is the layer of an image without layers, which no origin has.
    pub(crate) fn is_empty_layer(&self) -> bool {
        self.digest.is_none() && self.member.is_empty()
    }

    /// Its name in an origin, where `path` turns a digest into a name.
    pub(crate) fn name_in(&self, path: impl Fn(&Digest) -> String) -> String {
        self.digest.as_ref().map_or_else(|| self.member.clone(), path)
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> String {
        self.name_in(Digest::to_string)
    }
}

/// Where the search for an image begins: an index or a manifest, and the platform that an index says it is for.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) digest: Digest,
    pub(crate) platform: Option<Platform>,
}

impl From<Digest> for Start {
    fn from(digest: Digest) -> Self {
        Self { digest, platform: None }
    }
}

/// A layer of an image.
pub(crate) struct ImageLayer {
    pub(crate) blob: Blob,
    pub(crate) diff_id: Digest,
}

/// An image whose documents have been read.
pub(crate) struct ResolvedImage {
    pub(crate) digest: Option<Digest>,
    pub(crate) configuration: Configuration,
    /// Bottom first, one for each diff_id.
    pub(crate) layers: Vec<ImageLayer>,
    /// The documents to store, the most specific first.
    pub(crate) documents: Vec<(Digest, Vec<u8>)>,
}

/// An origin without anything, with which the store alone is tried.
pub(crate) struct Nowhere;

impl Origin for Nowhere {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        bail!("{digest} is not in the store")
    }

    fn copy_blob(&self, blob: &Blob, _: &mut dyn Write) -> anyhow::Result<()> {
        bail!("{} is not in the store", blob.name())
    }
}

/// Follows indexes to the manifest of the platform, and reads its configuration.
///
/// # Errors
/// A message for a document that is missing, malformed or not the one its digest names, and for an image of another platform.
pub(crate) fn find(
    origin: &dyn Origin,
    store: &Store,
    start: &Start,
    wanted: &Platform,
) -> anyhow::Result<ResolvedImage> {
    let mut documents = Vec::new();
    let Start { mut digest, platform: mut offered } = start.clone();
    for _ in 0..MAX_DEPTH {
        let text = manifest(origin, store, &digest)?;
        let parsed = Document::parse(&text)?;
        documents.insert(0, (digest.clone(), text));
        match parsed {
            Document::Index(mut entries) => {
                add_platforms(origin, store, wanted, &mut entries);
                let entry = select(&entries, wanted)?;
                offered = entry.platform.clone().filter(|platform| !platform.is_empty()).or(offered);
                digest = Digest::parse(&entry.digest)?;
            }
            Document::Manifest { config, layers } => {
                let text = configuration(origin, store, &config)?;
                let mut configuration = Configuration::parse(&text)?;
                match offered {
                    // The index decides. docker, too, runs an image whose configuration was copied from that of another platform.
                    Some(offered)
                        if !configuration.platform.is_complete() || !wanted.covers(&configuration.platform) =>
                    {
                        configuration.platform = offered;
                    }
                    Some(_) => {}
                    None => configuration.check_platform(wanted)?,
                }
                documents.insert(0, (config.digest, text));
                let layers = pair(layers.iter().map(Blob::described).collect(), &configuration)?;
                return Ok(ResolvedImage { digest: Some(digest), configuration, layers, documents });
            }
        }
    }
    bail!("indexes are nested more than {MAX_DEPTH} deep")
}

fn manifest(origin: &dyn Origin, store: &Store, digest: &Digest) -> anyhow::Result<Vec<u8>> {
    if let Some(text) = store.document(digest, MAX_MANIFEST)? {
        return Ok(text);
    }
    let fetch = || {
        let text = origin.manifest(digest)?;
        digest.check(&text).map(|()| text)
    };
    fetch().with_context(|| format!("manifest \"{digest}\""))
}

/// Where an index does not say which platforms its entries are for, their configurations may.
fn add_platforms(origin: &dyn Origin, store: &Store, wanted: &Platform, entries: &mut [IndexEntry]) {
    if entries.iter().filter_map(|entry| wanted.fit(entry.platform.as_ref()?)).any(|fit| fit > 0) {
        return;
    }
    let is_silent = |entry: &&mut IndexEntry| {
        let is_blank = |platform: &Platform| platform.os.is_empty() && platform.architecture.is_empty();
        entry.platform.as_ref().is_none_or(is_blank) && !entry.is_attestation()
    };
    let mut silent: Vec<_> = entries.iter_mut().filter(is_silent).collect();
    if silent.len() < 2 {
        return;
    }
    for entry in silent.iter_mut().take(MAX_SILENT) {
        // One that is not an image may be there without harm.
        entry.platform = Digest::parse(&entry.digest).and_then(|digest| platform(origin, store, &digest)).ok();
    }
}

fn platform(origin: &dyn Origin, store: &Store, digest: &Digest) -> anyhow::Result<Platform> {
    match Document::parse(&manifest(origin, store, digest)?)? {
        Document::Manifest { config, .. } => {
            Ok(Configuration::parse(&configuration(origin, store, &config)?)?.platform)
        }
        Document::Index(_) => bail!("an index"),
    }
}

fn configuration(origin: &dyn Origin, store: &Store, config: &Descriptor) -> anyhow::Result<Vec<u8>> {
    if let Some(text) = store.document(&config.digest, MAX_CONFIG)? {
        return Ok(text);
    }
    let fetch = || {
        ensure!(config.size <= MAX_CONFIG, "{} bytes, {MAX_CONFIG} at most", config.size);
        let mut verifier = Verifier::new(Vec::new(), Some(&config.digest), config.size);
        origin.copy_blob(&Blob::described(config), &mut verifier)?;
        verifier.finish(Some(&config.digest))
    };
    fetch().with_context(|| format!("configuration \"{}\"", config.digest))
}

/// Pairs the layers of a manifest with the diff_ids of its configuration.
///
/// # Errors
/// A message if their numbers differ.
pub(crate) fn pair(blobs: Vec<Blob>, configuration: &Configuration) -> anyhow::Result<Vec<ImageLayer>> {
    let diff_ids = &configuration.diff_ids;
    ensure!(
        blobs.len() == diff_ids.len(),
        "{} layers, but {} diff_ids in the configuration",
        blobs.len(),
        diff_ids.len()
    );
    if blobs.is_empty() {
        return Ok(vec![ImageLayer { blob: Blob::empty_layer(), diff_id: Digest::of(&EMPTY_LAYER) }]);
    }
    Ok(blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| ImageLayer { blob, diff_id: diff_id.clone() }).collect())
}
