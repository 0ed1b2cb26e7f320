//! Hardlinks to files of the layers below. In a single tree such a link gives a file a second name. On layers, the file is copied
//! into the layer that has the link, with both names, as overlayfs copies it up. While the layer is unpacked, an empty file
//! stands there; it gets its content when the layers below are complete.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use msb::overlay::attributes::copy_attributes;
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::{Merged, copy_data, whiteout};
use rustix::fs::{FileType, OFlags};

use crate::budget::Budget;

const MISSING: &str = "neither this layer nor one below has such a file";

/// A hardlink to a file of a layer below.
#[derive(Debug)]
pub(crate) struct LowerLink {
    /// The path of the file below, from the root.
    pub(crate) target: PathBuf,
    /// The path of the link.
    pub(crate) name: PathBuf,
    /// The empty file, which had both names at first.
    pub(crate) inode: u64,
}

/// What of a layer depends on the layers below it.
#[derive(Debug, Default)]
pub(crate) struct Dependent {
    /// Directories that the layer has no entry for, parents first.
    pub(crate) implied: Vec<PathBuf>,
    /// Links to files below.
    pub(crate) links: Vec<LowerLink>,
}

impl Dependent {
    /// Whether the layer has the same form on any layers.
    pub(crate) fn is_empty(&self) -> bool {
        self.implied.is_empty() && self.links.is_empty()
    }
}

/// Gives the linked files of the layer at `layer` the content and attributes that they have in `lower` (top first).
///
/// # Errors
/// A message if there is no such file; the errors of copying and of exceeding `budget`.
pub(crate) fn fill(layer: &Path, links: &[LowerLink], lower: &[PathBuf], budget: &Budget) -> anyhow::Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let root = Dir::open(layer)?;
    let below = if lower.is_empty() { None } else { Some(Merged::open(lower, None)?) };
    for link in links {
        let fill = || fill_one(&root, below.as_ref().context(MISSING)?, link, budget);
        fill().with_context(|| format!("hardlink target {:?}", link.target))?;
    }
    Ok(())
}

fn fill_one(root: &Dir, below: &Merged, link: &LowerLink, budget: &Budget) -> anyhow::Result<()> {
    let found = resolve(below, &Path::new("/").join(&link.target), Last::Keep)?;
    let path = found.path();
    let path = path.strip_prefix("/").unwrap_or(&path);
    let End::Leaf(_, leaf) = &found.end else { bail!(MISSING) };
    ensure!(!is_hidden(root, path)?, "this layer hides it");
    ensure!(leaf.entry.file_type() == FileType::RegularFile, "not a regular file");
    let names = [path, &link.target, &link.name];
    // Entries that came later may have taken its names; then nothing is missed.
    let Some(empty) = names.into_iter().find_map(|path| file_at(root, path, link.inode)) else { return Ok(()) };
    let file = empty.open(OFlags::WRONLY)?;
    let length = u64::try_from(leaf.entry.stat().st_size)?;
    budget.data(length)?;
    // A layer that occurs twice in an image is completed twice.
    file.set_len(0)?;
    copy_data(&leaf.data().open_to_read()?, &file, length)?;
    Ok(copy_attributes(&leaf.entry, &Entry::of_open(file)?)?)
}

/// Whether the root of the layer or another directory of it on the path is opaque.
fn is_hidden(root: &Dir, path: &Path) -> anyhow::Result<bool> {
    let mut dir = root.try_clone()?;
    let mut parts = path.parent().unwrap_or(Path::new("")).components();
    loop {
        if whiteout::is_opaque(&dir)? {
            return Ok(true);
        }
        let Some(part) = parts.next() else { return Ok(false) };
        dir = match dir.entry(Name::new(part.as_os_str())?)? {
            Some(entry) if entry.is_dir() => entry.to_dir()?,
            _ => return Ok(false),
        };
    }
}

fn file_at(root: &Dir, path: &Path, inode: u64) -> Option<Entry> {
    let parent = root.descend(path.parent()?).ok()?;
    let entry = parent.entry(Name::new(path.file_name()?).ok()?).ok()??;
    (entry.stat().st_ino == inode && entry.file_type() == FileType::RegularFile).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Limits;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn both_names_of_a_lower_link_get_what_the_file_below_has() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, lower) = (scratch.path().join("layer"), scratch.path().join("lower"));
        fs::create_dir_all(lower.join("bin")).unwrap();
        fs::write(lower.join("bin/tool"), "tool").unwrap();
        fs::set_permissions(lower.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir_all(layer.join("bin")).unwrap();
        fs::write(layer.join("bin/tool"), "").unwrap();
        fs::hard_link(layer.join("bin/tool"), layer.join("name")).unwrap();
        let inode = fs::metadata(layer.join("name")).unwrap().ino();
        let link = |target: &str| LowerLink { target: target.into(), name: "name".into(), inode };
        let budget = |size| Budget::new(Limits { size, files: 9 }, scratch.path()).unwrap();
        let lowers = [lower];
        assert!(fill(&layer, &[link("bin/tool")], &lowers, &budget(3)).is_err());
        for _ in 0..2 {
            fill(&layer, &[link("bin/tool")], &lowers, &budget(4)).unwrap();
        }
        let (tool, name) = (fs::metadata(layer.join("bin/tool")).unwrap(), fs::metadata(layer.join("name")).unwrap());
        assert_eq!(fs::read(layer.join("name")).unwrap(), b"tool");
        assert_eq!((tool.ino(), name.mode() & 0o7777), (name.ino(), 0o4755));
        for missing in ["bin/none", "bin", "none/tool"] {
            assert!(fill(&layer, &[link(missing)], &lowers, &budget(4)).is_err(), "{missing}");
        }
        for opaque in ["bin", ""] {
            let copy = scratch.path().join(format!("copy{opaque}"));
            fs::create_dir_all(copy.join("bin")).unwrap();
            whiteout::make_opaque(&Dir::open(&copy.join(opaque)).unwrap()).unwrap();
            let error = fill(&copy, &[link("bin/tool")], &lowers, &budget(4)).unwrap_err();
            assert!(format!("{error:#}").contains("hides it"), "{error:#}");
        }
    }
}
