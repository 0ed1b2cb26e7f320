//! What files take of the disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::overlay::beneath::Dir;
use msb::store::{checksums, layout};

/// The paths in a directory, sorted; none if it is missing.
///
/// # Errors
/// The error names the directory.
pub(crate) fn children(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{dir:?}"))?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What a file or a tree takes of the disk, in bytes; a hardlinked file counts once. Zero for what vanishes meanwhile.
///
/// # Errors
/// The error names the path.
pub(crate) fn of(path: &Path) -> anyhow::Result<u64> {
    match measure(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.with_context(|| format!("{path:?}")),
    }
}

fn measure(path: &Path) -> io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.blocks() * 512);
    }
    let mut seen = HashSet::new();
    let mut bytes = 0;
    Dir::open(path)?.walk(|_, entry| {
        let stat = entry.stat();
        if stat.st_nlink < 2 || entry.is_dir() || seen.insert(stat.st_ino) {
            bytes += stat.st_blocks.unsigned_abs() * 512;
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// The size of a layer: its checksums have it, if it was unpacked with them.
///
/// # Errors
/// The error names the layer.
pub(crate) fn of_layer(home: &Path, id: &str) -> anyhow::Result<u64> {
    match checksums::size(&layout::checksums(home, id)) {
        Ok(bytes) => Ok(bytes),
        Err(_) => of(&layout::layer(home, id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardlinked_file_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        let once = of(dir.path()).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(of(dir.path()).unwrap(), once);
        assert!(once >= 100_000);
        assert_eq!(of(&dir.path().join("missing")).unwrap(), 0);
    }
}
