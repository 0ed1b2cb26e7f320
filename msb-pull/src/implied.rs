//! Directories that a layer implies without listing them. In the merged tree they must have the attributes that the layers below
//! give them. overlayfs takes the attributes of a directory from the topmost layer that has it, so they are copied.

use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::overlay::attributes::{copy_attributes, keeping_times};
use msb::overlay::beneath::{Dir, Name};
use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::{Merged, Node, whiteout};
use rustix::fs::RenameFlags;

/// Completes the layer at `layer`, which will be on top of `lower` (top first).
///
/// # Errors
/// The error of reading the lower layers or setting attributes.
pub(crate) fn inherit(layer: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> anyhow::Result<()> {
    if lower.is_empty() || implied.is_empty() {
        return Ok(());
    }
    let below = Merged::open(lower, None)?;
    let root = Dir::open(layer)?;
    let moving = behind_symlinks(&root, &below, implied);
    // Parents come first, so a symlink is handled before the entries that were unpacked below it.
    for path in implied.iter().chain(&moving) {
        inherit_one(&root, &below, path).with_context(|| format!("implied directory {path:?}"))?;
    }
    Ok(())
}

/// The final paths of the implied directories that are below a symlink of a lower layer. Directories that this layer lists there
/// itself are left out, because they have attributes of their own.
fn behind_symlinks(root: &Dir, below: &Merged, implied: &[PathBuf]) -> Vec<PathBuf> {
    let moved = implied.iter().filter_map(|path| {
        let from = Path::new("/").join(path);
        let to = resolve(below, &from, Last::Keep).ok()?.path();
        let to = (to != from).then(|| to.strip_prefix("/").map(Path::to_owned).ok())??;
        root.descend(&to).is_err().then_some(to)
    });
    moved.collect()
}

fn inherit_one(root: &Dir, below: &Merged, path: &Path) -> anyhow::Result<()> {
    let (mut own, mut theirs) = (root.try_clone()?, below.clone());
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        // The layer's directory is opaque, so nothing of the lower layers is visible here.
        if whiteout::is_opaque(&own)? {
            return Ok(());
        }
        let name = Name::new(part.as_os_str())?;
        match theirs.lookup(name)? {
            Some(Node::Dir(dir)) => theirs = dir,
            Some(Node::Leaf(_)) if parts.peek().is_none() => return follow(root, below, path),
            _ => return Ok(()),
        }
        match own.entry(name)? {
            Some(entry) if entry.is_dir() => own = entry.to_dir()?,
            // It was moved below a symlink's target with its parent, and is handled at its new path.
            _ => return Ok(()),
        }
    }
    Ok(copy_attributes(&theirs.top().0.to_entry()?, &own.to_entry()?)?)
}

/// A lower layer has a file where this layer has an implied directory. If that file is a symlink to a directory, the entries
/// belong into its target: `bin/sh` on an image whose `bin` is a symlink to `usr/bin`.
fn follow(root: &Dir, below: &Merged, path: &Path) -> anyhow::Result<()> {
    let Ok(found) = resolve(below, &Path::new("/").join(path), Last::Follow) else { return Ok(()) };
    if !matches!(found.end, End::Dir) || found.path() == Path::new("/").join(path) {
        return Ok(());
    }
    let mut to = root.try_clone()?;
    for step in &found.steps[1..] {
        let name = Name::new(&step.name)?;
        to = match to.entry(name)? {
            Some(entry) if entry.is_dir() => entry.to_dir()?,
            // The layer itself replaces the symlink's target.
            Some(_) => return Ok(()),
            None => {
                let made = keeping_times(&to, || to.mkdir(name, rustix::fs::Mode::RWXU))?;
                copy_attributes(&step.dir.top().0.to_entry()?, &made.to_entry()?)?;
                made
            }
        };
    }
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    let parent = root.descend(parent)?;
    let name = Name::new(name)?;
    let from = parent.dir(name)?;
    keeping_times(&to, || merge(&from, &to))?;
    Ok(keeping_times(&parent, || parent.remove_tree(name))?)
}

/// Moves the entries of `from` into `to`. Directories are merged, and an entry that is already in `to` stays.
fn merge(from: &Dir, to: &Dir) -> std::io::Result<()> {
    for name in names(from)? {
        let name = Name::new(&name)?;
        match from.rename(name, to, name, RenameFlags::NOREPLACE) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if let (Ok(from), Ok(to)) = (from.dir(name), to.dir(name)) {
                    keeping_times(&to, || merge(&from, &to))?;
                }
            }
            other => other?,
        }
    }
    Ok(())
}

fn names(dir: &Dir) -> std::io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for child in dir.read()? {
        let child = child?;
        let name = std::ffi::OsStr::from_bytes(child.file_name().to_bytes());
        if Name::new(name).is_ok() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn an_implied_directory_looks_as_below_and_one_behind_a_symlink_moves() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, lower) = (scratch.path().join("layer"), scratch.path().join("lower"));
        fs::create_dir_all(lower.join("usr/bin")).unwrap();
        fs::create_dir_all(lower.join("var/spool")).unwrap();
        fs::set_permissions(lower.join("var/spool"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("usr/bin", lower.join("bin")).unwrap();
        fs::create_dir_all(layer.join("bin/deep")).unwrap();
        fs::create_dir_all(layer.join("var/spool")).unwrap();
        fs::write(layer.join("bin/tool"), "tool").unwrap();
        let implied = ["", "bin", "bin/deep", "var", "var/spool"].map(PathBuf::from);
        inherit(&layer, &implied, std::slice::from_ref(&lower)).unwrap();
        assert_eq!(fs::read(layer.join("usr/bin/tool")).unwrap(), b"tool");
        assert!(!layer.join("bin").exists());
        let (own, theirs) =
            (fs::metadata(layer.join("var/spool")).unwrap(), fs::metadata(lower.join("var/spool")).unwrap());
        assert_eq!((own.mode(), own.mtime(), own.mtime_nsec()), (theirs.mode(), theirs.mtime(), theirs.mtime_nsec()));
    }

    #[test]
    fn what_moves_behind_a_symlink_looks_as_it_does_there() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, lower) = (scratch.path().join("layer"), scratch.path().join("lower"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
        let set = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for dir in ["var", "run/pg/deep", "run/own", "srv/far"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        symlink("/run", lower.join("var/run")).unwrap();
        symlink("../srv/far", lower.join("run/far")).unwrap();
        for (dir, mode) in [("run/pg", 0o2770), ("run/pg/deep", 0o700), ("run/own", 0o2770), ("srv/far", 0o711)] {
            set(lower.join(dir), mode);
        }
        for dir in ["var/run/pg/deep", "var/run/own", "var/run/far", "run/own"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        fs::write(layer.join("var/run/far/file"), "far").unwrap();
        set(layer.join("run/own"), 0o705);
        let implied = ["", "run", "var", "var/run", "var/run/far", "var/run/own", "var/run/pg", "var/run/pg/deep"]
            .map(PathBuf::from);
        inherit(&layer, &implied, std::slice::from_ref(&lower)).unwrap();
        assert!(!layer.join("var/run").exists());
        assert_eq!(mode(layer.join("run/pg")), 0o2770);
        assert_eq!(mode(layer.join("run/pg/deep")), 0o700);
        assert_eq!(mode(layer.join("run/own")), 0o705);
        assert_eq!(mode(layer.join("srv/far")), 0o711);
        assert_eq!(fs::read(layer.join("srv/far/file")).unwrap(), b"far");
    }

    #[test]
    fn nothing_shows_through_an_opaque_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, lower) = (scratch.path().join("layer"), scratch.path().join("lower"));
        fs::create_dir_all(lower.join("a/b")).unwrap();
        fs::set_permissions(lower.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(layer.join("a/b")).unwrap();
        fs::set_permissions(layer.join("a/b"), fs::Permissions::from_mode(0o755)).unwrap();
        whiteout::make_opaque(&Dir::open(&layer.join("a")).unwrap()).unwrap();
        inherit(&layer, &["", "a", "a/b"].map(PathBuf::from), &[lower]).unwrap();
        assert_eq!(fs::metadata(layer.join("a/b")).unwrap().mode() & 0o7777, 0o755);
    }
}
