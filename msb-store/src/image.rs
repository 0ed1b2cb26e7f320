//! The images of the store: what each reference names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use msb::store::{layers, layout};

use crate::document::{Document, hex_of, stored_ids};
use crate::size;

/// The largest document that is read, in bytes: msb-pull stores no larger ones.
const MAX_DOCUMENT: u64 = 8 << 20;
/// The largest file of a reference, in bytes.
const MAX_REFERENCE: u64 = 1 << 16;
/// What the names of images that are in no registry begin with.
const TRANSPORTS: [&str; 5] = ["oci:", "oci-archive:", "docker-archive:", "containers-storage:", "docker-daemon:"];
/// The most documents of one image.
const MAX_DOCUMENTS: usize = 10_000;

/// An image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The reference, as msb-pull noted it.
    pub(crate) name: String,
    pub(crate) digest: String,
    /// The file of the reference.
    pub(crate) path: PathBuf,
    /// The documents that the store has, by digest in hex.
    pub(crate) documents: BTreeSet<String>,
    /// The IDs of the layers that the store has.
    pub(crate) layers: BTreeSet<String>,
    /// Whether all layers of one of its configurations are there.
    pub(crate) is_complete: bool,
    /// When it was last pulled, or a layer of its own was used.
    pub(crate) last_use: SystemTime,
}

/// The images, sorted by name. A file that is not a reference is left out.
///
/// # Errors
/// A directory that cannot be read.
pub(crate) fn images(home: &Path) -> anyhow::Result<Vec<Image>> {
    let mut images = Vec::new();
    for path in size::children(&layout::references(home))? {
        if let Some(image) = image(home, &path).with_context(|| format!("{path:?}"))? {
            images.push(image);
        }
    }
    images.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(images)
}

fn image(home: &Path, path: &Path) -> anyhow::Result<Option<Image>> {
    let Some(text) = read(path, MAX_REFERENCE)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text).into_owned();
    let Some((name, digest)) = text.trim_end().rsplit_once(' ') else { return Ok(None) };
    let mut image = Image {
        name: name.to_owned(),
        digest: digest.to_owned(),
        path: path.to_owned(),
        documents: BTreeSet::new(),
        layers: BTreeSet::new(),
        is_complete: false,
        last_use: fs::symlink_metadata(path)?.modified()?,
    };
    let mut pending: Vec<String> = hex_of(digest).into_iter().collect();
    while let Some(hex) = pending.pop() {
        if image.documents.len() >= MAX_DOCUMENTS || image.documents.contains(&hex) {
            continue;
        }
        let Some(text) = read(&layout::blob(home, &hex), MAX_DOCUMENT)? else { continue };
        image.documents.insert(hex);
        match Document::parse(&text) {
            Some(Document::Documents(names)) => pending.extend(names),
            Some(Document::Layers(diff_ids)) => image.add_layers(home, &diff_ids),
            None => {}
        }
    }
    // The top layer is used whenever the image is, but others share the ones below.
    let used = image.layers.iter().filter_map(|id| layers::last_use(home, id)).min();
    image.last_use = image.last_use.max(used.unwrap_or(image.last_use));
    Ok(Some(image))
}

impl Image {
    fn add_layers(&mut self, home: &Path, diff_ids: &[String]) {
        let mut is_complete = true;
        for ids in stored_ids(diff_ids) {
            let stored: Vec<String> = ids.into_iter().filter(|id| layout::layer(home, id).is_dir()).collect();
            is_complete &= !stored.is_empty();
            self.layers.extend(stored);
        }
        self.is_complete |= is_complete;
    }

    /// Whether a person means this image: by its whole reference, or by the short name of one from Docker Hub.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        if self.name == name || self.digest == name {
            return true;
        }
        // Only a registry's names have a short form.
        if name.starts_with('/') || TRANSPORTS.iter().any(|transport| name.starts_with(transport)) {
            return false;
        }
        let tail = name.rsplit('/').next().unwrap_or(name);
        let tag = if tail.contains([':', '@']) { "" } else { ":latest" };
        let spelled = |prefix: &str| self.name == format!("{prefix}{name}{tag}");
        ["", "docker.io/", "docker.io/library/"].into_iter().any(spelled)
    }
}

/// Reads a regular file of at most `limit` bytes; `None` for anything else.
fn read(path: &Path, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= limit) {
        return Ok(None);
    }
    let mut text = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_docker_hub_has_a_short_name() {
        let image = |name: &str| Image {
            name: name.into(),
            digest: "sha256:0".into(),
            path: PathBuf::new(),
            documents: BTreeSet::new(),
            layers: BTreeSet::new(),
            is_complete: true,
            last_use: SystemTime::UNIX_EPOCH,
        };
        let alpine = image("docker.io/library/alpine:latest");
        for name in
            ["alpine", "alpine:latest", "docker.io/library/alpine", "docker.io/library/alpine:latest", "sha256:0"]
        {
            assert!(alpine.is_named(name), "{name}");
        }
        for name in ["alpin", "alpine:3", "lpine", "localhost/alpine", "library", ""] {
            assert!(!alpine.is_named(name), "{name}");
        }
        assert!(image("localhost:5000/demo:latest").is_named("localhost:5000/demo"));
        assert!(image("docker.io/jrei/systemd-debian:12").is_named("jrei/systemd-debian:12"));
        assert!(image("oci:/a layout:v1").is_named("oci:/a layout:v1"));
        assert!(!image("oci:/a layout:latest").is_named("oci:/a layout"));
    }
}
