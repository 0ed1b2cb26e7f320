//! In which names two merged directories may differ, so that a comparison need not read what both have in common.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::beneath::{Dir, Name};
use super::merged::{Layer, Merged, Node};
use crate::interrupt;

impl Merged {
    /// Whether both directories merge the same directories of lower layers. Then they can only differ in names that an upper has.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn has_lower_of(&self, other: &Self) -> io::Result<bool> {
        if self.lower.len() != other.lower.len() {
            return Ok(false);
        }
        for (one, other) in self.lower.iter().zip(&other.lower) {
            if !is_one_dir(&one.dir, &other.dir)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The names in which this directory and `other` may differ, sorted. One that is in neither is a whiteout without a file to
    /// hide.
    ///
    /// # Errors
    /// The error of reading in a layer.
    pub fn names_to_compare(&self, other: &Self) -> io::Result<Vec<OsString>> {
        let mut names = BTreeSet::new();
        if self.has_lower_of(other)? {
            match (&self.upper, &other.upper) {
                (Some(one), Some(other)) if is_one_dir(one, other)? => {}
                (one, other) => {
                    for upper in [one, other].into_iter().flatten() {
                        Self::list_part(upper, Layer::Upper, |listed, _| {
                            names.insert(listed.name);
                        })?;
                    }
                }
            }
        } else {
            for dir in [self, other] {
                names.extend(dir.list()?.into_iter().map(|listed| listed.name));
            }
        }
        Ok(names.into_iter().collect())
    }
}

/// The longest path, in bytes, without the NUL (`PATH_MAX` less one).
const MAX_PATH: usize = 4095;

/// A walk over the names in which a merged tree may differ from another, or over all of its names. A directory comes before its entries,
/// and those are sorted. The caller decides which directories are entered.
#[derive(Debug)]
pub struct Changes {
    /// The directories down to the current one. No others are open.
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    before: Option<Merged>,
    now: Merged,
    names: std::vec::IntoIter<OsString>,
}

/// A step of a walk. Paths are relative to the root.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Visit {
    /// What a path stood for, and what it stands for. One of them exists.
    Path(PathBuf, Option<Node>, Option<Node>),
    /// The entries of a directory have been visited.
    End(PathBuf),
}

impl Changes {
    /// Starts in the root `now`. Without `before`, all names are visited.
    ///
    /// # Errors
    /// The error of reading in a layer.
    pub fn new(before: Option<Merged>, now: Merged) -> io::Result<Self> {
        let mut changes = Self { open: Vec::new() };
        changes.enter(PathBuf::new(), before, now)?;
        Ok(changes)
    }

    /// Visits the entries of the directory `path` next.
    ///
    /// # Errors
    /// The error of reading in a layer, with the path.
    pub fn enter(&mut self, path: PathBuf, before: Option<Merged>, now: Merged) -> io::Result<()> {
        let names = match &before {
            Some(before) => now.names_to_compare(before),
            None => now.list().map(|names| {
                let mut names: Vec<_> = names.into_iter().map(|listed| listed.name).collect();
                names.sort();
                names
            }),
        };
        let names = names.map_err(|error| at(&path, &error))?.into_iter();
        self.open.push(Open { path, before, now, names });
        Ok(())
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// The error of reading in a layer, with the path; a path longer than `PATH_MAX`, as no image may have; and [`interrupt::check`].
    pub fn step(&mut self) -> io::Result<Option<Visit>> {
        while let Some(dir) = self.open.last_mut() {
            interrupt::check()?;
            let Some(name) = dir.names.next() else {
                return Ok(self.open.pop().map(|dir| Visit::End(dir.path)));
            };
            let path = dir.path.join(&name);
            if path.as_os_str().len() > MAX_PATH {
                // The paths of all open directories are kept.
                let start = String::from_utf8_lossy(&path.as_os_str().as_bytes()[..80]);
                let error = format!("{start:?}…: the path is longer than {MAX_PATH} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidFilename, error));
            }
            let name = Name::new(&name)?;
            let lookup = |dir: &Merged| dir.lookup(name).map_err(|error| at(&path, &error));
            let before = dir.before.as_ref().map(lookup).transpose()?.flatten();
            let now = lookup(&dir.now)?;
            // A whiteout without a file to hide is in neither.
            if before.is_some() || now.is_some() {
                return Ok(Some(Visit::Path(path, before, now)));
            }
        }
        Ok(None)
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path:?}: {error}"))
}

fn is_one_dir(one: &Arc<Dir>, other: &Arc<Dir>) -> io::Result<bool> {
    if Arc::ptr_eq(one, other) {
        return Ok(true);
    }
    let (one, other) = (one.stat()?, other.stat()?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs;

    fn names(one: &Merged, other: &Merged) -> Vec<String> {
        one.names_to_compare(other).unwrap().into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    fn dir(root: &Merged, name: &str) -> Merged {
        match root.lookup(Name::new(OsStr::new(name)).unwrap()).unwrap() {
            Some(Node::Dir(dir)) => dir,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_an_upper_does_not_have_is_not_compared() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |path: &str| scratch.path().join(path);
        for path in ["lower/a", "lower/b", "lower/hidden", "upper/a", "upper/hidden", "other"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["lower/a/1", "lower/a/2", "lower/hidden/3", "upper/a/2", "upper/hidden/4", "other/5"] {
            fs::write(at(path), "").unwrap();
        }
        // Opaque.
        rustix::fs::setxattr(at("upper/hidden"), "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let lower = [at("lower")];
        let base = Merged::open(&lower, None).unwrap();
        let changed = Merged::open(&lower, Some(&at("upper"))).unwrap();
        assert!(changed.has_lower_of(&base).unwrap());
        assert_eq!(names(&changed, &base), ["a", "hidden"]);
        assert_eq!(names(&dir(&changed, "a"), &dir(&base, "a")), ["2"]);
        assert_eq!(names(&dir(&changed, "hidden"), &dir(&base, "hidden")), ["3", "4"]);
        assert!(names(&changed, &changed).is_empty());
        let other = Merged::open(&[at("other").as_path(), Path::new(&lower[0])], None).unwrap();
        assert_eq!(names(&other, &base), ["5", "a", "b", "hidden"]);
        let alone = Merged::open(&[] as &[&Path], Some(&at("other"))).unwrap();
        assert_eq!(names(&alone, &base), ["5", "a", "b", "hidden"]);
    }

    #[test]
    fn a_path_that_no_image_may_have_ends_the_walk() {
        let scratch = tempfile::tempdir().unwrap();
        let name = "d".repeat(250);
        let mut dir = Dir::open(scratch.path()).unwrap();
        for _ in 0..17 {
            dir = dir.mkdir(Name::new(OsStr::new(&name)).unwrap(), rustix::fs::Mode::RWXU).unwrap();
        }
        let mut walk = Changes::new(None, Merged::open(&[scratch.path()], None).unwrap()).unwrap();
        let mut depth = 0;
        let error = loop {
            match walk.step() {
                Ok(Some(Visit::Path(path, _, Some(Node::Dir(dir))))) => walk.enter(path, None, dir).unwrap(),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error.to_string(),
            }
            depth += 1;
        };
        assert_eq!(depth, 16);
        assert!(
            error.starts_with("\"dddd") && error.ends_with("dddd\"…: the path is longer than 4095 bytes"),
            "{error}"
        );
    }
}
