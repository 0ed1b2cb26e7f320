//! The tar file of a root file system: what `docker export` and `mmdebstrap` write. It becomes an image of one layer.

use std::io::{self, Write};

use anyhow::bail;
use msb::record::ImageConfig;
use serde_json::json;

use crate::archive::ArchiveFile;
use crate::image::{Blob, Origin};
use crate::platform::Platform;
use msb_registry::digest::{Digest, Hash};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A tar file of a root.
pub(crate) struct RootArchive(ArchiveFile);

impl RootArchive {
    pub(crate) fn new(tar: ArchiveFile) -> Self {
        Self(tar)
    }

    /// A configuration for an image with this one layer, generated here, and the layer.
    ///
    /// # Errors
    /// The errors of reading the file.
    pub(crate) fn image(&self, config: &ImageConfig, platform: &Platform) -> anyhow::Result<(Vec<u8>, Blob)> {
        let mut hash = Hashing(Hash::default());
        self.0.copy(&mut hash)?;
        let Platform { os, architecture, variant, .. } = platform;
        let diff_ids = [hash.0.finish().to_string()];
        let mut text = json!({"architecture": architecture, "os": os, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        if let Some(variant) = variant {
            text["variant"] = json!(variant);
        }
        Ok((text.to_string().into_bytes(), Blob::member(self.0.size, "the root's tar archive".to_owned())))
    }
}

impl Origin for RootArchive {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        bail!("a root's tar archive has no manifest {digest}")
    }

    fn copy_blob(&self, _: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        self.0.copy(out)
    }
}

/// The options for the image's configuration. By default it runs a shell with the usual PATH.
pub(crate) fn config(config: ImageConfig) -> ImageConfig {
    let mut config = config;
    if !config.env.iter().any(|variable| variable.starts_with("PATH=")) {
        config.env.insert(0, PATH.to_owned());
    }
    if config.cmd.is_none() && config.entrypoint.is_none() {
        config.cmd = Some(vec!["/bin/sh".to_owned()]);
    }
    config
}

/// Reads a command as a Dockerfile has it: a JSON array, or a line for a shell.
///
/// # Errors
/// A message for a malformed array.
pub(crate) fn parse_command(text: &str) -> Result<Vec<String>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|_| format!("{text:?}: not a JSON array of strings"));
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).into())
}

struct Hashing(Hash);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_or_a_line() {
        assert_eq!(parse_command(r#" ["a", "b c"]"#).unwrap(), ["a", "b c"]);
        assert_eq!(parse_command("a | b").unwrap(), ["/bin/sh", "-c", "a | b"]);
        assert!(parse_command("[1]").is_err());
    }

    #[test]
    fn a_root_has_a_shell_and_a_path_unless_it_says_otherwise() {
        let plain = config(ImageConfig::default());
        assert_eq!((plain.cmd.unwrap(), plain.env), (vec!["/bin/sh".to_owned()], vec![PATH.to_owned()]));
        let mut own = ImageConfig::default();
        own.entrypoint = Some(vec!["/init".to_owned()]);
        own.env = vec!["PATH=/bin".to_owned()];
        let own = config(own);
        assert_eq!((own.cmd, own.env), (None, vec!["PATH=/bin".to_owned()]));
    }
}
