//! The names of a merged directory, and what a listing already says about each: the layer that answers for it, so that it can be looked
//! up without a search of the others.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;

use super::beneath::{Dir, Name};
use super::marks::Marks;
use super::merged::{Layer, Merged};
use super::whiteout::{self, OciName, read_oci_name};

/// A name in a merged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// The file's type.
    pub file_type: FileType,
    /// The file's inode number in its layer.
    pub ino: u64,
    /// The device of the directory that has the name, whose number the inode belongs to.
    pub device: u64,
    /// The layer that answers for the name.
    pub layer: Layer,
    /// Of a directory: the lower layers below `layer` that have the name too, top first.
    pub below: Vec<usize>,
}

impl Listed {
    /// Whether a search for the name may find it in a layer.
    pub(super) fn may_be_in(&self, layer: Layer) -> bool {
        match (self.layer, layer) {
            (Layer::Upper, Layer::Upper) => true,
            (Layer::Lower(own), Layer::Lower(layer)) if own == layer => true,
            (Layer::Lower(_), Layer::Upper) => false,
            (_, Layer::Lower(layer)) if self.file_type == FileType::Directory => self.below.contains(&layer),
            (Layer::Upper, Layer::Lower(_)) => true,
            // The data of a metacopy is below it.
            (Layer::Lower(own), Layer::Lower(layer)) => layer > own,
        }
    }
}

impl Merged {
    /// The visible names without `.` and `..`, each once, in no particular order.
    ///
    /// # Errors
    /// The error of reading in a layer.
    pub fn list(&self) -> io::Result<Vec<Listed>> {
        if !self.is_merge() {
            let (dir, layer) = self.top();
            let mut names = Vec::new();
            Self::list_part(dir, layer, |listed, is_whiteout| {
                if !is_whiteout && !self.is_oci_mark(layer, &listed.name) {
                    names.push(listed);
                }
            })?;
            return Ok(names);
        }
        // The places of the names in the list; `None` for those with a whiteout, which hides them in the layers below.
        let mut seen: HashMap<OsString, Option<usize>> = HashMap::new();
        let mut names: Vec<Listed> = Vec::new();
        let upper = self.upper.iter().map(|dir| (dir, Layer::Upper));
        let lower = self.lower.iter().map(|part| (&part.dir, Layer::Lower(part.layer)));
        for (part, layer) in upper.chain(lower) {
            // They hide nothing in their own layer.
            let mut hidden = Vec::new();
            Self::list_part(part, layer, |listed, is_whiteout| {
                if self.is_oci_mark(layer, &listed.name) {
                    if let OciName::Whiteout(name) = read_oci_name(&listed.name) {
                        hidden.push(name.to_owned());
                    }
                    return;
                }
                match (seen.get(&listed.name), layer) {
                    (None, _) => {
                        seen.insert(listed.name.clone(), (!is_whiteout).then_some(names.len()));
                        names.extend((!is_whiteout).then_some(listed));
                    }
                    (Some(&Some(place)), Layer::Lower(layer)) if names[place].file_type == FileType::Directory => {
                        names[place].below.push(layer);
                    }
                    _ => {}
                }
            })?;
            for name in hidden {
                seen.entry(name).or_default();
            }
        }
        Ok(names)
    }

    /// Whether a name in a layer is not that of a file, but means something for the layers below.
    fn is_oci_mark(&self, layer: Layer, name: &OsStr) -> bool {
        self.has_oci_whiteouts && layer != Layer::Upper && read_oci_name(name) != OciName::Plain
    }

    pub(super) fn list_part(dir: &Dir, layer: Layer, mut each: impl FnMut(Listed, bool)) -> io::Result<()> {
        let own = dir.to_entry()?;
        // As in the kernel, only a directory with this mark is searched for whiteouts that are files.
        let files_may_be = Marks::of(&own)?.has_xattr_whiteouts;
        for child in dir.read()? {
            let child = child?;
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            let mut file_type = child.file_type();
            let mut is_whiteout = false;
            // Some file systems do not return types.
            if file_type == FileType::CharacterDevice {
                let Some(stat) = dir.stat_of(name)? else { continue };
                is_whiteout = whiteout::is_whiteout(&stat);
            } else if file_type == FileType::Unknown || files_may_be && file_type == FileType::RegularFile {
                let Some(entry) = dir.entry(name)? else { continue };
                file_type = entry.file_type();
                is_whiteout = whiteout::is_either_whiteout(&entry)?;
            }
            let (name, ino, device) = (name.as_os_str().to_owned(), child.ino(), own.stat().st_dev);
            each(Listed { name, file_type, ino, device, layer, below: Vec::new() }, is_whiteout);
        }
        Ok(())
    }

    /// Whether no name is visible.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.list()?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_where_a_name_can_be_found() {
        let listed = |file_type, layer, below: &[usize]| Listed {
            name: "a".into(),
            file_type,
            ino: 1,
            device: 1,
            layer,
            below: below.to_vec(),
        };
        let layers = [Layer::Upper, Layer::Lower(0), Layer::Lower(1), Layer::Lower(2), Layer::Lower(3)];
        for (listed, found) in [
            (listed(FileType::Directory, Layer::Lower(1), &[3]), [false, false, true, false, true]),
            (listed(FileType::Directory, Layer::Upper, &[2]), [true, false, false, true, false]),
            (listed(FileType::RegularFile, Layer::Upper, &[]), [true, true, true, true, true]),
            (listed(FileType::RegularFile, Layer::Lower(1), &[]), [false, false, true, true, true]),
        ] {
            assert_eq!(layers.map(|layer| listed.may_be_in(layer)), found, "{listed:?}");
        }
    }
}
