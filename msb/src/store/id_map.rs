//! Which users of the host own the files of a store. A user other than root works in a user namespace, where each ID stands for
//! one of the user's own IDs on the host. The mapping is kept in the store: with another one, the files would have other owners.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout;
use super::publish::{make_private_dir, write_file};
use crate::overlay::error::At;
use crate::store::Error;

/// Consecutive IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The first one in the namespace.
    pub inside: u32,
    /// The first one in the namespace around it: the host's.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// The mapping of a user namespace (`user_namespaces(7)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The users.
    pub uid: Vec<Range>,
    /// The groups.
    pub gid: Vec<Range>,
}

impl IdMap {
    /// The mapping of the namespace that this process is in.
    ///
    /// # Errors
    /// That /proc is not mounted.
    pub fn of_this_process() -> io::Result<Self> {
        let read = |file| fs::read_to_string(file).map(|text| ranges(&text));
        Ok(Self { uid: read("/proc/self/uid_map")?, gid: read("/proc/self/gid_map")? })
    }

    /// Whether each ID of `other` stands for the same ID of the host here. There may be more.
    fn covers(&self, other: &Self) -> bool {
        let pairs = [(&self.uid, &other.uid), (&self.gid, &other.gid)];
        pairs.into_iter().all(|(ours, theirs)| theirs.iter().all(|range| has_range(ours, *range)))
    }
}

/// Whether each ID of a range is in these ranges, with the same ID outside.
fn has_range(ranges: &[Range], mut range: Range) -> bool {
    while range.count > 0 {
        let is_first_in = |there: &&Range| range.inside.checked_sub(there.inside).is_some_and(|at| at < there.count);
        let Some(there) = ranges.iter().find(is_first_in) else { return false };
        let offset = range.inside - there.inside;
        if there.outside.checked_add(offset) != Some(range.outside) {
            return false;
        }
        // The next range may have the rest.
        let common = range.count.min(there.count - offset);
        let count = range.count - common;
        let Some((inside, outside)) = range.inside.checked_add(common).zip(range.outside.checked_add(common)) else {
            return count == 0;
        };
        range = Range { inside, outside, count };
    }
    true
}

/// What an ID of the namespace is outside; `None` if it is not mapped.
pub fn outside(ranges: &[Range], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id.checked_sub(range.inside).is_some_and(|offset| offset < range.count))?;
    range.outside.checked_add(id - range.inside)
}

/// What an ID from outside is in the namespace; `None` if it is not mapped.
pub fn inside(ranges: &[Range], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id.checked_sub(range.outside).is_some_and(|offset| offset < range.count))?;
    range.inside.checked_add(id - range.outside)
}

/// The ranges in `/proc/PID/uid_map`.
fn ranges(text: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
        Some(Range { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
    };
    text.lines().filter_map(range).collect()
}

/// Checks that the files of the store at `home` have the same owners for this process as for the one that made them.
///
/// # Errors
/// [`Error::Caller`] if they have not.
pub fn check(home: &Path) -> Result<(), Error> {
    kept(home)?.map_or(Ok(()), |kept| compare(home, &kept, &IdMap::of_this_process()?))
}

/// Checks the same for a process whose namespace has the mapping `current`.
///
/// # Errors
/// As [`check`].
pub fn check_for(home: &Path, current: &IdMap) -> Result<(), Error> {
    kept(home)?.map_or(Ok(()), |kept| compare(home, &kept, current))
}

/// As [`check_for`], and keeps the mapping in the store.
///
/// # Errors
/// As [`check`], and that of writing.
pub fn keep(home: &Path, current: &IdMap) -> Result<(), Error> {
    let kept = kept(home)?;
    if let Some(kept) = &kept {
        compare(home, kept, current)?;
    }
    if kept.as_ref() != Some(current) {
        make_private_dir(home).at(|| format!("{home:?}"))?;
        let path = layout::id_map(home);
        let text = serde_json::to_vec(current).map_err(io::Error::from)?;
        write_file(&path, &text, 0o600).at(|| format!("{path:?}"))?;
    }
    Ok(())
}

fn kept(home: &Path) -> Result<Option<IdMap>, Error> {
    let path = layout::id_map(home);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from).at(|| format!("{path:?}")),
        // A store that cannot be a directory has its own message later.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).at(|| format!("{path:?}")),
    }
}

fn compare(home: &Path, kept: &IdMap, current: &IdMap) -> Result<(), Error> {
    if current.covers(kept) {
        return Ok(());
    }
    let show = |map: &IdMap| {
        let [uid, gid] = [&map.uid, &map.gid].map(|ranges| {
            let ranges = ranges.iter().map(|range| format!("{}:{}", range.outside, range.count));
            ranges.collect::<Vec<_>>().join(",")
        });
        format!("users {uid} and groups {gid}")
    };
    Err(Error::Caller(format!(
        "the store {home:?} was made with other IDs: {}, and these are {} (run this as the user that owns it; if that was you, put the \
         old lines back into /etc/subuid and /etc/subgid; or set MSB_HOME to another directory)",
        show(kept),
        show(current)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(uid: &str) -> IdMap {
        IdMap { uid: ranges(uid), gid: ranges("0 1000 1\n1 100000 65536\n") }
    }

    #[test]
    fn ids_are_translated_in_both_directions() {
        let ranges = ranges("         0       1000          1\n         1     100000      65536\n");
        for (within, without) in
            [(0, Some(1000)), (1, Some(100_000)), (65_536, Some(165_535)), (65_537, None), (u32::MAX, None)]
        {
            assert_eq!(outside(&ranges, within), without, "{within}");
            if let Some(without) = without {
                assert_eq!(inside(&ranges, without), Some(within));
            }
        }
        for unmapped in [0, 999, 1001, 99_999, 165_536] {
            assert_eq!(inside(&ranges, unmapped), None, "{unmapped}");
        }
    }

    #[test]
    fn a_store_is_refused_when_its_files_would_have_other_owners() {
        let home = tempfile::tempdir().unwrap();
        let home = &home.path().join("store");
        let first = map("0 1000 1\n1 100000 65536");
        check(home).unwrap();
        assert!(!home.exists(), "checking makes nothing");
        keep(home, &first).unwrap();
        for (other, fits) in [
            (first.clone(), true),
            (map("0 1000 1\n1 100000 65536\n65537 300000 10"), true),
            (map("0 1000 1\n1 100000 32768\n32769 132768 99999"), true),
            (map("0 1000 1\n1 100000 1000"), false),
            (map("0 1000 1\n1 100000 1000\n1001 500000 1000\n2001 102000 63536"), false),
            (map("0 1000 1\n1 200000 65536"), false),
            (map("0 1001 1\n1 100000 65536"), false),
            (map("0 0 4294967295"), false),
            (map(""), false),
        ] {
            assert_eq!(compare(home, &kept(home).unwrap().unwrap(), &other).is_ok(), fits, "{other:?}");
        }
        let error = keep(home, &map("0 1000 1\n1 200000 65536")).unwrap_err().to_string();
        assert!(error.contains("100000:65536") && error.contains("200000:65536"), "{error}");
        let more = map("0 1000 1\n1 100000 65536\n65537 300000 10");
        keep(home, &more).unwrap();
        assert!(keep(home, &first).is_err(), "the store may have files of the IDs that were added");
        let error = check(home).unwrap_err().to_string();
        assert!(error.contains("other IDs"), "{error}");
    }
}
