//! An OCI image layout (the OCI image specification's `image-layout.md`): in a directory, or in a tar file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use msb::lock::{self, Lock};
use msb::record::path::absolute;
use msb::regular_file::{self, Symlinks};
use msb::store::publish;
use serde_json::{Value, json};

use crate::base::Origin;
use crate::digest::blob_path;
use crate::document::{MANIFEST_TYPE, NewImage};
use crate::layer::Layer;
use crate::staged::{StagedDir, StagedFile, link_or_copy, parent, unnamed, write_blob};
use crate::tar_out::TarOut;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The largest index that is read, in bytes.
const MAX_INDEX: u64 = 4 << 20;
const FILE_MODE: u32 = 0o644;

/// Adds an image to the layout in a directory, which is made if it is missing or empty. What the layout has is not written again.
/// The index is replaced last.
///
/// # Errors
/// Those of writing; a directory that is not a layout.
pub(crate) fn write_dir(dir: &Path, tag: Option<&str>, image: &NewImage, origin: &Origin) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let is_new = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            other => other?.next().is_none(),
        };
        if is_new {
            let staged = StagedDir::begin(dir)?;
            fs::create_dir_all(staged.path.join("blobs/sha256"))?;
            fs::write(staged.path.join("oci-layout"), MARKER)?;
            add(&staged.path, image, origin)?;
            fs::write(staged.path.join("index.json"), serde_json::to_vec(&index(None, tag, image))?)?;
            return staged.commit();
        }
        ensure!(
            dir.join("oci-layout").is_file(),
            "not an OCI layout: \"oci-layout\" is missing (name another directory)"
        );
        // Of two runs that add to the layout, one waits with its index.
        let _lock = lock::open(dir, Lock::Exclusive)?;
        let path = dir.join("index.json");
        let mut text = Vec::new();
        match regular_file::open(&path, Symlinks::Follow) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => drop(file.context("index.json")?.take(MAX_INDEX).read_to_end(&mut text)?),
        }
        let old = if text.is_empty() { None } else { Some(serde_json::from_slice(&text).context("index.json")?) };
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        add(dir, image, origin)?;
        let index = serde_json::to_vec(&index(old, tag, image))?;
        if index != text {
            let mode =
                fs::metadata(&path).map_or(FILE_MODE, |meta| std::os::unix::fs::MetadataExt::mode(&meta) & 0o777);
            publish::write_file(&absolute(&path)?, &index, mode)?;
        }
        Ok(())
    };
    write().with_context(|| format!("layout {dir:?}"))
}

/// Adds the blobs of an image that are missing or not whole.
fn add(dir: &Path, image: &NewImage, origin: &Origin) -> anyhow::Result<()> {
    let path = |digest: &str| -> anyhow::Result<_> { Ok(dir.join(blob_path(digest)?)) };
    let is_there = |path: &Path, size: u64| path.metadata().is_ok_and(|meta| meta.len() == size);
    for layer in &image.layers {
        let path = path(layer.digest())?;
        if is_there(&path, layer.size()) {
            continue;
        }
        match &layer.file {
            Some(file) => {
                file.sync_all()?;
                link_or_copy(file, &path)?;
            }
            None => {
                let mut file = unnamed(&dir.join("blobs/sha256"))?;
                origin.copy(layer, &mut file)?;
                file.sync_all()?;
                link_or_copy(&file, &path)?;
            }
        }
    }
    for text in [&image.config, &image.manifest] {
        let path = path(&crate::digest::digest(text))?;
        if !is_there(&path, text.len() as u64) {
            write_blob(&path, text)?;
        }
    }
    Ok(())
}

/// The index with the image in it, in place of one with the same tag.
fn index(old: Option<Value>, tag: Option<&str>, image: &NewImage) -> Value {
    let mut index =
        old.filter(Value::is_object).unwrap_or_else(|| json!({"schemaVersion": 2, "mediaType": INDEX_TYPE}));
    let mut entries = index["manifests"].as_array().cloned().unwrap_or_default();
    entries.retain(|entry| entry["annotations"][REF_NAME].as_str() != tag);
    let mut entry = json!({"mediaType": MANIFEST_TYPE, "digest": image.digest(), "size": image.manifest.len()});
    if let Some(tag) = tag {
        entry["annotations"] = json!({REF_NAME: tag});
    }
    entries.push(entry);
    index["manifests"] = entries.into();
    index
}

/// Writes a layout with the image as a tar file.
///
/// # Errors
/// Those of writing.
pub(crate) fn write_archive(file: &Path, tag: Option<&str>, image: &NewImage, origin: &Origin) -> anyhow::Result<()> {
    let staged = StagedFile::begin(file)?;
    let write = || -> anyhow::Result<()> {
        let mut tar = TarOut::new(BufWriter::new(&staged.file), false, None);
        tar.add_file("oci-layout".as_ref(), FILE_MODE, 0, MARKER)?;
        tar.add_file("index.json".as_ref(), FILE_MODE, 0, &serde_json::to_vec(&index(None, tag, image))?)?;
        for text in [&image.manifest, &image.config] {
            tar.add_file(blob_path(&crate::digest::digest(text))?.as_ref(), FILE_MODE, 0, text)?;
        }
        let place = absolute(file)?;
        let mut seen = Vec::new();
        for layer in &image.layers {
            if !seen.contains(&layer.digest()) {
                seen.push(layer.digest());
                let file = fetched(layer, origin, parent(&place))?;
                tar.add_open_file(blob_path(layer.digest())?.as_ref(), &file, layer.size())?;
            }
        }
        tar.finish()?.flush()?;
        Ok(())
    };
    write().with_context(|| format!("archive {file:?}"))?;
    staged.commit()
}

/// The blob of a layer, at its beginning. One of the base is first copied to a file without a name in `dir`.
///
/// # Errors
/// Those of copying.
pub(crate) fn fetched(layer: &Layer, origin: &Origin, dir: &Path) -> anyhow::Result<File> {
    let mut file = match &layer.file {
        Some(file) => file.try_clone()?,
        None => {
            let mut file = publish::unnamed_file(dir)?;
            origin.copy(layer, &mut file)?;
            file
        }
    };
    file.rewind()?;
    if file.metadata()?.len() != layer.size() {
        bail!("layer {}: its size is not that of its descriptor", layer.digest());
    }
    Ok(file)
}
