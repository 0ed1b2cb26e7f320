//! Path resolution inside a merged root: component by component across all layers. Symlinks are followed as the guest's kernel would,
//! and `..` at the root stays there. The result is a chain of open directories, and never a path on the host. A layer that is being
//! unpacked is a root with an upper alone.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use super::beneath::{Dir, Name};
use super::merged::{Leaf, Merged, Node};

/// How many symlinks are followed for one path, as in Linux (`path_resolution(7)`).
pub const MAX_SYMLINKS: usize = 40;
/// The longest path, in bytes, without the NUL (`PATH_MAX` less one).
const MAX_PATH: usize = 4095;

/// Whether a symlink at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is followed, as by `open(2)`.
    Follow,
    /// It is the answer, as for `unlink(2)`.
    Keep,
}

/// A directory on the path.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name in the directory before it; empty for the root.
    pub name: OsString,
    /// The directory.
    pub dir: Merged,
}

/// What is at the end of a path.
#[derive(Debug)]
pub enum End {
    /// The last step itself.
    Dir,
    /// A file in the last step.
    Leaf(OsString, Leaf),
    /// Nothing: the missing names below the last step.
    Missing(Vec<OsString>),
}

/// A resolved path.
#[derive(Debug)]
pub struct Resolved {
    /// The directories on the path, from the root on; never empty. Shared, since many paths have the same.
    pub steps: Arc<Vec<Step>>,
    /// What is at the end.
    pub end: End,
}

/// Why a path cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not begin with a slash, or is too long, or a component is.
    #[error("{0}")]
    Unusable(&'static str),
    /// More than 40 symlinks.
    #[error("too many levels of symlinks (a loop?)")]
    Loop,
    /// A component before the last one is a file.
    #[error("{0:?} is not a directory")]
    NotDirectory(PathBuf),
    /// A `..` below a directory that does not exist.
    #[error("{0:?} does not exist")]
    Missing(PathBuf),
    /// A layer could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Resolved {
    /// The path without symlinks, for messages and reports.
    pub fn path(&self) -> PathBuf {
        let mut path = path_of(&self.steps);
        match &self.end {
            End::Dir => {}
            End::Leaf(name, _) => path.push(name),
            End::Missing(names) => path.extend(names),
        }
        path
    }
}

fn path_of(steps: &[Step]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(steps.iter().skip(1).map(|step| &step.name));
    path
}

fn components(path: &OsStr) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    let parts = path.as_bytes().split(|&byte| byte == b'/');
    parts.filter(|part| !matches!(*part, b"" | b".")).map(|part| OsStr::from_bytes(part).to_owned())
}

/// Follows `path` from `root`.
///
/// # Errors
/// See [`Error`]. If the path does not exist, the result is [`End::Missing`].
pub fn resolve(root: &Merged, path: &Path, last: Last) -> Result<Resolved, Error> {
    Trail::default().resolve(root, path, last)
}

/// Makes a directory, from the directories above it and its name.
pub type MakeDir<'a> = dyn FnMut(&[Step], Name<'_>) -> Result<Arc<Dir>, Error> + 'a;

/// Follows `path` from `root`, which has an upper, to a directory. Calls `make` where there is none, with the directories so far and the
/// missing name, or the name of a file that is in the way.
///
/// # Errors
/// See [`Error`], and those of `make`.
pub fn resolve_or_make(root: &Merged, path: &Path, make: &mut MakeDir<'_>) -> Result<Arc<Vec<Step>>, Error> {
    check(path)?;
    let root = Step { name: OsString::new(), dir: root.clone() };
    let pending = components(path.as_os_str()).collect();
    Ok(walk(pending, Arc::new(vec![root]), 0, Goal::Reach(make), |_, _| {})?.steps)
}

/// What a path is followed for.
enum Goal<'a> {
    /// What is at its end.
    Find(Last),
    /// A directory. The function makes those that are missing.
    Reach(&'a mut MakeDir<'a>),
}

/// A cache of the last path's directory, so that many paths in one directory take one lookup each.
///
/// Only a directory in the upper is cached. A new name does not change where existing paths lead; a caller that replaces or removes a
/// name calls [`Trail::forget`].
#[derive(Debug, Default)]
pub struct Trail(Option<CachedDir>);

#[derive(Debug)]
struct CachedDir {
    /// The path as given, with a slash at the end.
    path: Vec<u8>,
    steps: Arc<Vec<Step>>,
    symlinks: usize,
}

impl Trail {
    /// Empties the cache.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// As [`resolve`], from the cached directory if the path is in it.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn resolve(&mut self, root: &Merged, path: &Path, last: Last) -> Result<Resolved, Error> {
        check(path)?;
        let bytes = path.as_os_str().as_bytes();
        let (above, name) = bytes.split_at(bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1));
        let has_name = !matches!(name, b"" | b"." | b"..");
        match &self.0 {
            Some(cached) if has_name && cached.path == above => {
                let pending = VecDeque::from([OsStr::from_bytes(name).to_owned()]);
                walk(pending, Arc::clone(&cached.steps), cached.symlinks, Goal::Find(last), |_, _| {})
            }
            _ => {
                let root = Step { name: OsString::new(), dir: root.clone() };
                walk(
                    components(path.as_os_str()).collect(),
                    Arc::new(vec![root]),
                    0,
                    Goal::Find(last),
                    |steps, symlinks| {
                        if has_name && steps.last().is_some_and(|step| step.dir.upper.is_some()) {
                            self.0 = Some(CachedDir { path: above.to_owned(), steps: Arc::clone(steps), symlinks });
                        }
                    },
                )
            }
        }
    }
}

fn check(path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if !bytes.starts_with(b"/") {
        return Err(Error::Unusable("the path is not absolute"));
    }
    if bytes.len() > MAX_PATH {
        return Err(Error::Unusable("the path is longer than 4095 bytes"));
    }
    if bytes.contains(&0) {
        return Err(Error::Unusable("the path holds a NUL"));
    }
    Ok(())
}

/// Follows the pending components. Calls `at_last` with the directories in which the last component of the path itself is looked up.
fn walk(
    mut pending: VecDeque<OsString>,
    mut steps: Arc<Vec<Step>>,
    mut symlinks: usize,
    mut goal: Goal<'_>,
    at_last: impl FnOnce(&Arc<Vec<Step>>, usize),
) -> Result<Resolved, Error> {
    let mut at_last = Some(at_last);
    while let Some(component) = pending.pop_front() {
        if pending.is_empty()
            && let Some(at_last) = at_last.take()
        {
            at_last(&steps, symlinks);
        }
        if component == ".." {
            if steps.len() > 1 {
                Arc::make_mut(&mut steps).pop();
            }
            continue;
        }
        let name = Name::new(&component).map_err(|_| Error::Unusable("a component is longer than 255 bytes"))?;
        let here = &steps.last().expect("the root stays").dir;
        let found = match here.lookup(name)? {
            Some(Node::Dir(dir)) => {
                Arc::make_mut(&mut steps).push(Step { name: component, dir });
                continue;
            }
            Some(Node::Leaf(leaf)) => Some(leaf),
            None => None,
        };
        let is_last = pending.is_empty();
        let keeps_symlink = is_last && matches!(goal, Goal::Find(Last::Keep));
        match (found, &mut goal) {
            (Some(leaf), _) if leaf.entry.file_type() == FileType::Symlink && !keeps_symlink => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Error::Loop);
                }
                let target = leaf.entry.read_link()?;
                if target.as_bytes().starts_with(b"/") {
                    Arc::make_mut(&mut steps).truncate(1);
                }
                for part in components(&target).rev() {
                    pending.push_front(part);
                }
            }
            (_, Goal::Reach(make)) => {
                let dir = here.new_upper(make(&steps, name)?);
                Arc::make_mut(&mut steps).push(Step { name: component, dir });
            }
            (Some(leaf), Goal::Find(_)) if is_last => return Ok(Resolved { steps, end: End::Leaf(component, leaf) }),
            (Some(_), Goal::Find(_)) => {
                let mut file = path_of(&steps);
                file.push(&component);
                return Err(Error::NotDirectory(file));
            }
            (None, Goal::Find(_)) => {
                let missing = missing_names(&steps, component, pending)?;
                return Ok(Resolved { steps, end: End::Missing(missing) });
            }
        }
    }
    Ok(Resolved { steps, end: End::Dir })
}

/// The names from the first one that is missing on.
fn missing_names(steps: &[Step], first: OsString, rest: VecDeque<OsString>) -> Result<Vec<OsString>, Error> {
    let mut missing = vec![first];
    for name in rest {
        if name == ".." {
            let mut gone = path_of(steps);
            gone.extend(&missing);
            return Err(Error::Missing(gone));
        }
        if name.len() > super::beneath::NAME_MAX {
            return Err(Error::Unusable("a component is longer than 255 bytes"));
        }
        missing.push(name);
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Merged) {
        let scratch = tempfile::tempdir().unwrap();
        let (top, bottom) = (scratch.path().join("top"), scratch.path().join("bottom"));
        fs::create_dir_all(bottom.join("usr/bin")).unwrap();
        fs::write(bottom.join("usr/bin/tar"), "").unwrap();
        fs::create_dir_all(top.join("etc")).unwrap();
        for (target, link) in [
            ("usr/bin", "bin"),
            ("/usr/bin/tar", "etc/tar"),
            ("../../../../bin", "etc/out"),
            ("loop-b", "loop-a"),
            ("loop-a", "loop-b"),
            ("/nowhere/file", "etc/dangling"),
        ] {
            symlink(target, top.join(link)).unwrap();
        }
        let merged = Merged::open(&[top, bottom], None).unwrap();
        (scratch, merged)
    }

    #[test]
    fn paths_lead_where_the_guest_would_go() {
        let (_scratch, root) = tree();
        for (path, last, leads_to) in [
            ("/", Last::Follow, "/"),
            ("/../..", Last::Follow, "/"),
            ("//usr/./bin/", Last::Follow, "/usr/bin"),
            ("/bin/tar", Last::Follow, "/usr/bin/tar"),
            ("/bin", Last::Keep, "/bin"),
            ("/bin", Last::Follow, "/usr/bin"),
            ("/etc/tar", Last::Follow, "/usr/bin/tar"),
            ("/etc/tar", Last::Keep, "/etc/tar"),
            ("/etc/out/tar", Last::Keep, "/usr/bin/tar"),
            ("/etc/dangling", Last::Follow, "/nowhere/file"),
            ("/etc/dangling", Last::Keep, "/etc/dangling"),
            ("/bin/new/deep", Last::Follow, "/usr/bin/new/deep"),
        ] {
            let resolved = resolve(&root, Path::new(path), last).unwrap();
            assert_eq!(resolved.path(), Path::new(leads_to), "{path}");
        }
    }

    #[test]
    fn a_trail_leads_where_one_starting_at_the_root_leads() {
        let (scratch, root) = tree();
        let upper = scratch.path().join("upper");
        fs::create_dir_all(upper.join("usr/bin/deep")).unwrap();
        fs::create_dir_all(upper.join("etc")).unwrap();
        let root = Merged { upper: Some(Merged::open(&[&upper], None).unwrap().lower[0].dir.clone()), ..root };
        let paths = [
            "/bin/tar",
            "/bin/new",
            "/bin/deep/x",
            "/bin/../x",
            "/bin/deep/..",
            "/bin/deep/../y",
            "/bin/deep/",
            "/bin/deep/.",
            "/etc/tar",
            "/etc/out/tar",
            "/etc/out",
            "/x",
            "/etc/tar/x",
        ];
        let mut trail = Trail::default();
        let mut remembered = 0;
        for one in paths {
            for other in paths {
                for path in [one, other, one] {
                    for last in [Last::Follow, Last::Keep] {
                        let far = resolve(&root, Path::new(path), last)
                            .map(|way| way.path())
                            .map_err(|error| error.to_string());
                        let near = trail.resolve(&root, Path::new(path), last).map(|way| way.path());
                        assert_eq!(near.map_err(|error| error.to_string()), far, "{path}");
                        remembered += usize::from(trail.0.is_some());
                    }
                }
                trail.forget();
            }
        }
        assert!(remembered > 500, "{remembered}");
        // The limit of symlinks counts those of the way that is remembered.
        for link in 0..39 {
            symlink(
                if link == 0 { "usr".into() } else { format!("link{}", link - 1) },
                upper.join(format!("link{link}")),
            )
            .unwrap();
        }
        for (target, link) in [("deep", "one"), ("one", "two")] {
            symlink(target, upper.join("usr/bin").join(link)).unwrap();
        }
        let mut trail = Trail::default();
        for path in ["/link38/bin/x", "/link38/bin/one"] {
            trail.resolve(&root, Path::new(path), Last::Follow).unwrap();
        }
        assert!(matches!(trail.resolve(&root, Path::new("/link38/bin/two"), Last::Follow), Err(Error::Loop)));
    }

    #[test]
    fn a_trail_that_forgets_sees_what_has_changed() {
        let upper = tempfile::tempdir().unwrap();
        for dir in ["a", "b/below"] {
            fs::create_dir_all(upper.path().join(dir)).unwrap();
        }
        let root = Merged::open(&[] as &[&Path], Some(upper.path())).unwrap();
        let mut trail = Trail::default();
        let exists = |trail: &mut Trail| {
            let found = trail.resolve(&root, Path::new("/a/below"), Last::Follow).unwrap();
            matches!(found.end, End::Dir)
        };
        assert!(!exists(&mut trail));
        fs::remove_dir(upper.path().join("a")).unwrap();
        fs::rename(upper.path().join("b"), upper.path().join("a")).unwrap();
        assert!(!exists(&mut trail), "the directory of the last path is not looked up again");
        trail.forget();
        assert!(exists(&mut trail));
    }

    #[test]
    fn directories_are_made_where_a_path_does_not_go_on() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("usr")).unwrap();
        fs::write(scratch.path().join("usr/file"), "").unwrap();
        for (target, link) in [("usr", "lib"), ("../../../gone/../other", "usr/up"), ("loop", "loop")] {
            symlink(target, scratch.path().join(link)).unwrap();
        }
        let root = Merged::open(&[] as &[&Path], Some(scratch.path())).unwrap();
        let mut made = Vec::new();
        let mut make = |steps: &[Step], name: Name<'_>| {
            made.push(path_of(steps).join(name.as_os_str()));
            let dir = steps.last().unwrap().dir.top().0;
            let _ = dir.unlink(name);
            Ok(Arc::new(dir.mkdir(name, rustix::fs::Mode::RWXU)?))
        };
        for (path, leads_to) in [("/lib/a/b", "/usr/a/b"), ("/usr/file/x", "/usr/file/x"), ("/usr/up/y", "/other/y")] {
            assert_eq!(path_of(&resolve_or_make(&root, Path::new(path), &mut make).unwrap()), Path::new(leads_to));
            assert_eq!(path_of(&resolve_or_make(&root, Path::new(path), &mut make).unwrap()), Path::new(leads_to));
        }
        assert!(matches!(resolve_or_make(&root, Path::new("/loop/x"), &mut make), Err(Error::Loop)));
        let expected = ["/usr/a", "/usr/a/b", "/usr/file", "/usr/file/x", "/gone", "/other", "/other/y"];
        assert_eq!(made, expected.map(PathBuf::from));
    }

    #[test]
    fn paths_that_cannot_be_resolved_have_a_message() {
        let (_scratch, root) = tree();
        let longest = format!("/none/{}", "x".repeat(255));
        assert_eq!(resolve(&root, Path::new(&longest), Last::Follow).unwrap().path(), Path::new(&longest));
        for (path, message) in [
            ("etc", "not absolute"),
            ("/loop-a", "too many levels of symlinks"),
            ("/usr/bin/tar/x", "\"/usr/bin/tar\" is not a directory"),
            ("/none/../etc", "\"/none\" does not exist"),
            (&format!("/{}", "x".repeat(256)), "longer than 255 bytes"),
            (&format!("/none/{}", "x".repeat(256)), "longer than 255 bytes"),
            (&"/a".repeat(2048), "longer than 4095 bytes"),
            (&format!("/none/..{}", "/".repeat(4087)), "\"/none\" does not exist"),
        ] {
            let error = resolve(&root, Path::new(path), Last::Follow).unwrap_err().to_string();
            assert!(error.contains(message), "{path}: {error}");
        }
    }
}
