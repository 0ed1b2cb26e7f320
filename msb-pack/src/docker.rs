//! The archive that `docker load` reads: a configuration, layers without compression, and `manifest.json`.

use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use msb::record::path::absolute;
use msb::store::publish::unnamed_file;
use serde_json::json;

use crate::base::Origin;
use crate::digest::{Hashing, digest, hex_of};
use crate::document::NewImage;
use crate::layer::Layer;
use crate::layout::fetched;
use crate::staged::{StagedFile, parent};
use crate::tar_out::TarOut;

const FILE_MODE: u32 = 0o644;

/// Writes the archive.
///
/// # Errors
/// Those of writing.
pub(crate) fn write(file: &Path, name: Option<&str>, image: &NewImage, origin: &Origin) -> anyhow::Result<()> {
    let staged = StagedFile::begin(file)?;
    let write = || -> anyhow::Result<()> {
        let mut tar = TarOut::new(BufWriter::new(&staged.file), false, None);
        let config = digest(&image.config);
        let config = format!("{}.json", hex_of(&config).context("not a sha256 digest")?);
        let place = absolute(file)?;
        let mut names = Vec::new();
        for layer in &image.layers {
            let name = format!("{}.tar", hex_of(&layer.diff_id).context("not a sha256 digest")?);
            if !names.contains(&name) {
                let unpacked = unpacked(layer, origin, parent(&place))?;
                let size = unpacked.metadata()?.len();
                tar.add_open_file(name.as_ref(), &unpacked, size)?;
            }
            names.push(name);
        }
        tar.add_file(config.as_ref(), FILE_MODE, 0, &image.config)?;
        let tags: Vec<String> = name.map(whole).into_iter().collect();
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        tar.add_file("manifest.json".as_ref(), FILE_MODE, 0, &serde_json::to_vec(&manifest)?)?;
        tar.finish()?.flush()?;
        Ok(())
    };
    write().with_context(|| format!("archive {file:?}"))?;
    staged.commit()
}

/// A name with a tag: docker reads no other.
fn whole(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

/// The archive of a layer, without its compression, in a file without a name in `dir`.
fn unpacked(layer: &Layer, origin: &Origin, dir: &Path) -> anyhow::Result<std::fs::File> {
    let mut blob = fetched(layer, origin, dir)?;
    let mut head = [0; 4];
    let count = (&blob).take(4).read(&mut head)?;
    blob.rewind()?;
    let mut packed: Box<dyn Read> = match &head[..count] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 17, blob))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(blob)?),
        _ => Box::new(blob),
    };
    let mut out = Hashing::new(BufWriter::new(unnamed_file(dir)?));
    io::copy(&mut packed, &mut out)?;
    let (out, diff_id, _) = out.finish();
    ensure!(
        diff_id == layer.diff_id,
        "layer {}: wrong diff_id: expected {}, got {diff_id}",
        layer.digest(),
        layer.diff_id
    );
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_gets_a_tag_unless_it_has_one() {
        for (name, whole) in
            [("a", "a:latest"), ("a:v1", "a:v1"), ("h:5000/a", "h:5000/a:latest"), ("h:5000/a:b", "h:5000/a:b")]
        {
            assert_eq!(super::whole(name), whole);
        }
    }
}
