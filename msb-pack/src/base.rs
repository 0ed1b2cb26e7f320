//! The image that the root came from: its documents in the store, and its layers where the record says that they are.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::Record;
use msb::regular_file::{self, Symlinks};
use msb::store::{chain, layout};
use msb_registry::reference::Reference;
use serde_json::Value;

use crate::digest::{Hashing, blob_path, hex_of};
use crate::layer::Layer;
use crate::registry::{Access, Registry};
use crate::root::Root;
use crate::staged::remedy;

/// The largest document that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;
/// docker's media types of layers, and those of OCI for the same bytes.
const DOCKER_TYPES: &[(&str, &str)] = &[
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
];

/// The image below the root.
pub(crate) struct Base {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Value,
    pub(crate) config_text: Vec<u8>,
    /// Bottom first, one for each lower directory of the root.
    pub(crate) layers: Vec<Layer>,
    /// Whether these are all layers of the image.
    pub(crate) is_whole: bool,
}

impl Base {
    /// Finds the image of a record in the store at `home`; `None` if the store has no manifest for the root's layers, such as for
    /// a directory or the archive of a root.
    pub(crate) fn find(home: &Path, record: &Record, root: &Root) -> Option<Self> {
        let (manifest, text) = document(home, record.image.as_ref()?.digest.as_deref()?)?;
        let (mut config, config_text) = document(home, manifest["config"]["digest"].as_str()?)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array()?;
        let descriptors = manifest["layers"].as_array()?;
        // The record of an image that was packed from a root has the layers below its upper.
        let count = root.lower.len();
        if descriptors.len() != diff_ids.len() || descriptors.len() < count {
            return None;
        }
        let mut layers = Vec::new();
        let mut below: Option<String> = None;
        for ((descriptor, diff_id), dir) in descriptors.iter().zip(diff_ids).zip(root.lower.iter().rev()) {
            let diff_id = diff_id.as_str()?;
            let hex = hex_of(diff_id)?;
            let stacked = chain::stacked_id(below.as_deref(), hex);
            let id = layout::layer_id(home, dir)?;
            if id != hex && id != stacked {
                return None;
            }
            below = Some(stacked);
            hex_of(descriptor["digest"].as_str()?)?;
            layers.push(Layer {
                descriptor: in_oci_terms(descriptor),
                diff_id: diff_id.to_owned(),
                file: None,
                created_by: None,
            });
        }
        let is_whole = descriptors.len() == count;
        // An index would add the member where it is missing.
        if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
            let mut left = count;
            let end = history.iter().position(|entry| {
                let has_layer = entry["empty_layer"] != true;
                let is_over = has_layer && left == 0;
                left -= usize::from(has_layer && left > 0);
                is_over
            });
            history.truncate(end.unwrap_or(history.len()));
        }
        Some(Self { manifest: text, config, config_text, layers, is_whole })
    }
}

fn in_oci_terms(descriptor: &Value) -> Value {
    let mut descriptor = descriptor.clone();
    let kind = descriptor["mediaType"].as_str().unwrap_or_default();
    if let Some((_, oci)) = DOCKER_TYPES.iter().find(|(docker, _)| *docker == kind) {
        descriptor["mediaType"] = (*oci).into();
    }
    descriptor
}

/// A document of the store, whose digest is right.
fn document(home: &Path, digest: &str) -> Option<(Value, Vec<u8>)> {
    let mut text = Vec::new();
    File::open(layout::blob(home, hex_of(digest)?)).ok()?.take(MAX_DOCUMENT).read_to_end(&mut text).ok()?;
    if crate::digest::digest(&text) != digest {
        return None;
    }
    Some((serde_json::from_slice(&text).ok()?, text))
}

/// Where the blobs of the base are.
pub(crate) enum Origin {
    /// An OCI layout.
    Layout(PathBuf),
    /// An OCI layout in a tar file.
    Archive(PathBuf),
    /// A repository of a registry.
    Registry(Box<Remote>),
    /// Elsewhere: a name.
    Elsewhere(String),
}

/// A repository of a registry, and the connection to it, which all layers share.
pub(crate) struct Remote {
    reference: Reference,
    access: Access,
    registry: OnceCell<Registry>,
}

impl Remote {
    fn registry(&self) -> anyhow::Result<&Registry> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry);
        }
        let registry = Registry::connect(&self.reference, &self.access)?;
        Ok(self.registry.get_or_init(|| registry))
    }
}

impl Origin {
    /// That of a reference as msb-pull writes it into a record.
    pub(crate) fn of(reference: &str, access: &Access) -> Self {
        // At the first colon, as msb-pull reads it.
        let path = |rest: &str| PathBuf::from(rest.split_once(':').map_or(rest, |(path, _)| path));
        if let Some(rest) = reference.strip_prefix("oci:") {
            Self::Layout(path(rest))
        } else if let Some(rest) = reference.strip_prefix("oci-archive:") {
            Self::Archive(path(rest))
        } else {
            let is_docker_archive = reference.starts_with("docker-archive:");
            match Reference::parse(reference) {
                Ok(reference) if !is_docker_archive => {
                    Self::Registry(Box::new(Remote { reference, access: access.clone(), registry: OnceCell::new() }))
                }
                _ => Self::Elsewhere(reference.to_owned()),
            }
        }
    }

    /// The repository of `registry` that has the blobs, if that is where they are.
    pub(crate) fn repository_of(&self, registry: &str) -> Option<&str> {
        match self {
            Self::Registry(remote) if remote.reference.registry == registry => Some(&remote.reference.repository),
            _ => None,
        }
    }

    /// The blob of a layer of the base, if it is a file in a layout. Only its length is checked, so a symlink is not followed: it could
    /// point to any file of the host.
    pub(crate) fn file(&self, layer: &Layer) -> Option<File> {
        let Self::Layout(dir) = self else { return None };
        let file = regular_file::open(&dir.join(blob_path(layer.digest()).ok()?), Symlinks::Refuse).ok()?;
        let is_whole = file.metadata().is_ok_and(|meta| meta.len() == layer.size());
        is_whole.then_some(file)
    }

    /// Writes the blob of a layer of the base to `out`, and checks it.
    ///
    /// # Errors
    /// A message that says what to do if the blob is not there.
    pub(crate) fn copy(&self, layer: &Layer, out: &mut dyn Write) -> anyhow::Result<()> {
        let digest = layer.digest();
        // One byte more than there may be, so that the digest of a longer blob is wrong.
        let limit = layer.size().saturating_add(1);
        let copy = || -> anyhow::Result<()> {
            let mut hashing = Hashing::new(out);
            let blob = blob_path(digest)?;
            match self {
                Self::Layout(dir) => {
                    let path = dir.join(&blob);
                    let file = regular_file::open(&path, Symlinks::Follow).with_context(|| format!("{path:?}"))?;
                    io::copy(&mut file.take(limit), &mut hashing)?;
                }
                Self::Archive(file) => {
                    copy_member(file, &blob, limit, &mut hashing).with_context(|| format!("{file:?}"))?
                }
                Self::Registry(remote) => remote.registry()?.fetch(digest, layer.size(), &mut hashing)?,
                Self::Elsewhere(name) => bail!("{name:?} is not a place on this host"),
            }
            let (_, actual, _) = hashing.finish();
            ensure!(actual == digest, "wrong digest: expected {digest}, got {actual}");
            Ok(())
        };
        copy().map_err(|error| match remedy(&error).is_some() {
            true => error.context(format!("layer {digest} of the base")),
            false => {
                anyhow!("layer {digest} of the base: {error:#} (pull the base again, or use --squash or --repack)")
            }
        })
    }
}

fn copy_member(file: &Path, name: &str, limit: u64, out: &mut impl Write) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(regular_file::open(file, Symlinks::Follow)?);
    for member in archive.entries_with_seek()? {
        let member = member?;
        if member.path()?.strip_prefix(".").unwrap_or(&member.path()?) == Path::new(name) {
            io::copy(&mut member.take(limit), out)?;
            return Ok(());
        }
    }
    bail!("no {name:?} in it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::record::{Image, Rootfs};
    use std::fs;

    #[test]
    fn a_configuration_without_a_history_stays_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let diff_id = "a".repeat(64);
        let layer = layout::layer(home.path(), &diff_id);
        fs::create_dir_all(&layer).unwrap();
        fs::create_dir_all(layout::blobs(home.path())).unwrap();
        let put = |text: &str| {
            let name = crate::digest::digest(text.as_bytes());
            fs::write(layout::blob(home.path(), hex_of(&name).unwrap()), text).unwrap();
            name
        };
        let config = put(&format!(r#"{{"rootfs":{{"diff_ids":["sha256:{diff_id}"]}}}}"#));
        let manifest = put(&format!(r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{config}"}}]}}"#));
        let mut image = Image::new("x".into());
        image.digest = Some(manifest);
        let mut record = Record::new();
        record.image = Some(image);
        record.rootfs = Some(Rootfs::layers(vec![layer]));
        let base = Base::find(home.path(), &record, &Root::open(&record).unwrap()).unwrap();
        assert!(base.is_whole);
        assert_eq!(base.config, serde_json::from_slice::<Value>(&base.config_text).unwrap());
    }

    #[test]
    fn a_reference_says_where_the_blobs_are() {
        for (reference, layout, archive) in [
            ("oci:/a/b:latest", Some("/a/b"), None),
            ("oci:/a/b", Some("/a/b"), None),
            ("oci-archive:/a.tar:x:y", None, Some("/a.tar")),
            ("docker.io/library/alpine:latest", None, None),
            ("docker-archive:/a.tar", None, None),
        ] {
            let (is_layout, is_archive) = match Origin::of(reference, &Access::default()) {
                Origin::Layout(path) => (Some(path), None),
                Origin::Archive(path) => (None, Some(path)),
                Origin::Registry(..) | Origin::Elsewhere(_) => (None, None),
            };
            assert_eq!((is_layout, is_archive), (layout.map(Into::into), archive.map(Into::into)), "{reference}");
        }
    }
}
