//! The names of a directory in a stable order. A name keeps its offset as long as the kernel knows the directory, whatever is made or
//! removed meanwhile, so an open directory needs no state of its own.

use std::collections::HashMap;
use std::ffi::OsString;

use msb::overlay::Listed;

/// The offsets of `.` and `..`.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOTDOT: u64 = 2;

/// A directory's names in the order of their offsets.
#[derive(Debug)]
pub(crate) struct Listing {
    entries: Vec<(u64, Listed)>,
    next: u64,
    /// The version of the directory ([`crate::node::DirNode::version`]).
    pub(crate) version: u64,
}

impl Listing {
    /// Assigns offsets to `names`: those that they had in `before`, else new ones after all others.
    pub(crate) fn new(names: Vec<Listed>, before: Option<&Self>, version: u64) -> Self {
        let mut next = before.map_or(DOTDOT + 1, |before| before.next);
        let known: HashMap<&OsString, u64> = before
            .map(|before| before.entries.iter().map(|(offset, listed)| (&listed.name, *offset)).collect())
            .unwrap_or_default();
        let mut entries = Vec::with_capacity(names.len());
        for listed in names {
            let offset = known.get(&listed.name).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            entries.push((offset, listed));
        }
        entries.sort_unstable_by_key(|(offset, _)| *offset);
        Self { entries, next, version }
    }

    /// The entries after `offset`.
    pub(crate) fn after(&self, offset: u64) -> &[(u64, Listed)] {
        let start = self.entries.partition_point(|(own, _)| *own <= offset);
        self.entries.get(start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::overlay::Layer;
    use rustix::fs::FileType;

    fn names(names: &[&str]) -> Vec<Listed> {
        let listed = |name: &&str| Listed {
            name: name.into(),
            file_type: FileType::RegularFile,
            ino: 1,
            device: 1,
            layer: Layer::Upper,
            below: Vec::new(),
        };
        names.iter().map(listed).collect()
    }

    #[test]
    fn a_name_keeps_its_offset_and_a_new_one_comes_last() {
        let first = Listing::new(names(&["a", "b", "c"]), None, 0);
        assert_eq!(first.after(0).iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3, 4, 5]);
        let second = Listing::new(names(&["new", "c", "b"]), Some(&first), 1);
        let after_a: Vec<_> = second.after(3).iter().map(|(_, listed)| listed.name.to_str().unwrap()).collect();
        assert_eq!(after_a, ["b", "c", "new"]);
        let third = Listing::new(names(&["again"]), Some(&second), 2);
        assert_eq!(third.after(0)[0].0, 7);
        assert!(third.after(7).is_empty());
    }
}
