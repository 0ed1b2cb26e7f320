//! Folding an upper into the one below it: the merged tree stays as it is, with one upper less. What is folded is small, and the one
//! below may be large, so no more of it is read than the paths that both have.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fstatfs, fsync, syncfs};

use super::attributes::Attributes;
use super::beneath::{Dir, Entry, Name};
use super::journal::{self, Step, Times};
use super::marks::Marks;
use super::merged::{Merged, Node};
use super::whiteout;
use crate::interrupt;

/// `EXT4_SUPER_MAGIC` and `XFS_SUPER_MAGIC` (linux/magic.h).
const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

/// A fold that has been done, with what undoes it.
#[derive(Debug)]
pub struct Fold {
    upper: PathBuf,
    steps: Vec<Step>,
    before: Vec<Before>,
}

/// A directory whose attributes are changed, as it was.
#[derive(Debug)]
struct Before {
    path: PathBuf,
    times: Times,
    attributes: Attributes,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Fold {
    /// Folds `staged`, which is in the work directory `work`, into the upper at `upper` on the layers `lower`. The caller has locked the
    /// work directory and has synced what is staged. After a kill, the next process that locks it completes the fold.
    ///
    /// # Errors
    /// The error of a system call. The upper is as before then, or the journal is still there.
    pub fn run(lower: &[PathBuf], upper: &Path, staged: &Dir, work: &Dir) -> io::Result<Self> {
        let root = Merged::open(lower, Some(upper))?;
        let steps = plan(root, staged)?;
        let top = Dir::open(upper)?;
        let mut before = Vec::new();
        for step in &steps {
            if let Step::Attributes { path, .. } = step {
                let entry = top.descend(path)?.to_entry()?;
                before.push(Before {
                    path: path.clone(),
                    times: journal::times(entry.stat()),
                    attributes: Attributes::of(entry.stat()),
                    xattrs: shown_xattrs(&entry)?,
                });
            }
        }
        let fold = Self { upper: upper.to_owned(), steps, before };
        journal::write(work, upper, &fold.steps)?;
        match journal::run(&fold.steps, staged, &top) {
            Ok(()) => journal::remove(work)?,
            Err(error) => {
                fold.undo(staged, work).map_err(|undo| {
                    let message = format!("{error} (the next use of the upper completes the change: {undo})");
                    io::Error::new(error.kind(), message)
                })?;
                return Err(error);
            }
        }
        Ok(fold)
    }

    /// Restores the upper.
    ///
    /// # Errors
    /// The error of a system call.
    pub fn undo(&self, staged: &Dir, work: &Dir) -> io::Result<()> {
        for Before { path, attributes, xattrs, .. } in &self.before {
            let entry = staged.descend(path)?.to_entry()?;
            attributes.apply(&entry, entry.stat(), || -> io::Result<bool> {
                for (name, _) in
                    shown_xattrs(&entry)?.iter().filter(|(name, _)| xattrs.iter().all(|(old, _)| old != name))
                {
                    entry.remove_xattr(name)?;
                }
                for (name, value) in xattrs {
                    entry.set_xattr(name, value, XattrFlags::empty())?;
                }
                Ok(true)
            })?;
        }
        let mut before = self.before.iter();
        let reverse = |step: &Step| match step {
            Step::Attributes { path, times } => {
                let times = before.next().map_or(*times, |before| before.times);
                Step::Attributes { path: path.clone(), times }
            }
            step => step.reverse(),
        };
        let steps: Vec<_> = self.steps.iter().map(reverse).collect();
        journal::write(work, &self.upper, &steps)?;
        journal::run(&steps, staged, &Dir::open(&self.upper)?)?;
        journal::remove(work)
    }

    /// Waits until the fold is on the disk.
    ///
    /// # Errors
    /// The error of `fsync(2)` or `syncfs(2)`.
    pub fn sync(work: &Dir) -> io::Result<()> {
        // A descriptor of O_PATH cannot be synced.
        let work = std::fs::File::open(work.proc_path())?;
        // ext4 and XFS write all earlier changes too. Others, such as btrfs, may write this directory alone. After a crash the journal
        // would then be gone, and some of the changes that it lists would be missing.
        match fstatfs(&work)?.f_type {
            EXT4 | XFS => Ok(fsync(work)?),
            _ => Ok(syncfs(work)?),
        }
    }
}

/// The xattrs of a directory without those of overlayfs.
fn shown_xattrs(entry: &Entry) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = entry.xattr_names()?.into_iter().filter(|name| !whiteout::is_private_xattr(name));
    names.map(|name| entry.xattr(&name).map(|value| (name, value))).collect()
}

/// A directory that both uppers have.
struct Level {
    path: PathBuf,
    /// The directory in the layers and the upper below.
    below: Merged,
    staged: Dir,
    times: Times,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn new(path: PathBuf, below: Merged, staged: Dir) -> io::Result<Self> {
        let (times, mut names) = (journal::times(&staged.stat()?), Vec::new());
        for child in staged.read()? {
            if let Ok(name) = Name::new(OsStr::from_bytes(child?.file_name().to_bytes())) {
                names.push(name.as_os_str().to_owned());
            }
        }
        names.sort();
        Ok(Self { path, below, staged, times, names: names.into_iter() })
    }
}

/// The steps that fold what is staged into the upper of `root`. Marks of what is staged are changed where its new place needs that.
fn plan(root: Merged, staged: &Dir) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut levels = vec![Level::new(PathBuf::new(), root, staged.try_clone()?)?];
    while let Some(level) = levels.last_mut() {
        interrupt::check()?;
        let Some(name) = level.names.next() else {
            // This is last, because the steps in it change its times.
            steps.push(Step::Attributes { path: std::mem::take(&mut level.path), times: level.times });
            levels.pop();
            continue;
        };
        let path = level.path.join(&name);
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        let name = Name::new(&name)?;
        let Some(entry) = level.staged.entry(name).map_err(at)? else { continue };
        let upper = level.below.upper.as_ref().ok_or(rustix::io::Errno::NOENT)?;
        let old = upper.entry(name).map_err(at)?;
        let (new, old_ino) = (entry.stat().st_ino, old.as_ref().map(|old| old.stat().st_ino));
        if whiteout::is_either_whiteout(&entry).map_err(at)? {
            let shows_through = level.below.shows_through(name).map_err(at)?;
            match old_ino {
                _ if shows_through => steps.push(Step::Place { path, new, old: old_ino }),
                Some(old) => steps.push(Step::Remove { path, new, old }),
                None => {}
            }
            continue;
        }
        if entry.is_dir() && !Marks::of(&entry).map_err(at)?.is_opaque {
            if old.as_ref().is_some_and(Entry::is_dir)
                && let Some(Node::Dir(below)) = level.below.lookup(name).map_err(at)?
            {
                let next = Level::new(path, below, entry.into_dir()?)?;
                levels.push(next);
                continue;
            }
            // Until now the upper below has hidden what the layers have here.
            if old.is_some() && matches!(level.below.lookup_lower(name).map_err(at)?, Some(Node::Dir(_))) {
                whiteout::make_opaque(&entry.to_dir()?).map_err(at)?;
            }
        }
        steps.push(Step::Place { path, new, old: old_ino });
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::upper::{Writer, lock_to_read};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// Everything about the merged tree, and the raw upper's names.
    fn facts(lower: &Path, upper: &Path) -> Vec<String> {
        let mut facts = Vec::new();
        let mut pending = vec![(PathBuf::from("/"), Merged::open(&[lower], Some(upper)).unwrap())];
        while let Some((path, dir)) = pending.pop() {
            let stat = dir.top().0.stat().unwrap();
            facts.push(format!("{path:?} {:o} {}", stat.st_mode, stat.st_mtime));
            for listed in dir.list().unwrap() {
                let path = path.join(&listed.name);
                match dir.lookup(Name::new(&listed.name).unwrap()).unwrap().unwrap() {
                    Node::Dir(dir) => pending.push((path, dir)),
                    Node::Leaf(leaf) => {
                        facts.push(format!("{path:?} {}", fs::read_to_string(leaf.data().proc_path()).unwrap()));
                    }
                }
            }
        }
        facts.sort();
        facts
    }

    /// Layers, an upper with a file of every kind to be changed, and the changes above it, in a scratch directory.
    struct Case {
        scratch: tempfile::TempDir,
        lower: PathBuf,
        upper: PathBuf,
        work: PathBuf,
        staged: PathBuf,
    }

    impl Case {
        fn new() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let at = |name: &str| scratch.path().join(name);
            let case = Self {
                lower: at("lower"),
                upper: at("upper"),
                work: at("work"),
                staged: at("work/msb.upper"),
                scratch,
            };
            let write = |root: &Path, path: &str| {
                fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                fs::write(root.join(path), format!("{path} of {:?}", root.file_name())).unwrap();
            };
            for path in ["both/a", "gone/a", "hidden/a", "low"] {
                write(&case.lower, path);
            }
            for path in ["both/b", "both/deep/c", "gone/b", "up", "kept/x", "turned"] {
                write(&case.upper, path);
            }
            for path in ["both/b", "both/deep/c", "both/new", "low", "new/dir/x", "turned/x", "hidden/x", "up"] {
                write(&case.staged, path);
            }
            let dir = |path: &Path| Dir::open(path).unwrap();
            let whiteout = |parent: &Path, name: &str| {
                whiteout::make_whiteout(&dir(parent), Name::new(OsStr::new(name)).unwrap()).unwrap();
            };
            whiteout(&case.upper, "hidden");
            for name in ["gone", "kept"] {
                whiteout(&case.staged, name);
            }
            whiteout(&case.staged.join("both"), "a");
            fs::set_permissions(case.staged.join("both"), fs::Permissions::from_mode(0o711)).unwrap();
            for path in ["", "both", "both/deep", "new", "new/dir", "turned", "hidden"] {
                let entry = dir(&case.staged.join(path)).to_entry().unwrap();
                let mut times = crate::overlay::beneath::times_of(entry.stat());
                times.last_modification.tv_sec = 1000;
                entry.set_times(&times).unwrap();
            }
            case
        }

        fn facts(&self) -> Vec<String> {
            facts(&self.lower, &self.upper)
        }

        fn run(&self) -> Fold {
            let (staged, work) = (Dir::open(&self.staged).unwrap(), Dir::open(&self.work).unwrap());
            Fold::run(std::slice::from_ref(&self.lower), &self.upper, &staged, &work).unwrap()
        }
    }

    #[test]
    fn a_fold_gives_the_tree_that_the_two_uppers_gave_and_can_be_undone() {
        let case = Case::new();
        let before = case.facts();
        let stack = [case.upper.clone(), case.lower.clone()];
        let expected: Vec<_> = {
            // The upper below is a lower layer here.
            let merged = case.scratch.path().join("one");
            fs::create_dir(&merged).unwrap();
            let root = Merged::open(&stack, Some(&case.staged)).unwrap();
            assert!(root.lookup(Name::new(OsStr::new("kept")).unwrap()).unwrap().is_none());
            let Some(Node::Dir(hidden)) = root.lookup(Name::new(OsStr::new("hidden")).unwrap()).unwrap() else {
                panic!()
            };
            hidden.list().unwrap().into_iter().map(|listed| listed.name).collect()
        };
        assert_eq!(expected, ["x"]);
        let fold = case.run();
        let after = case.facts();
        let lines: Vec<&str> = after.iter().map(String::as_str).collect();
        assert!(lines.contains(&"\"/\" 40755 1000") && lines.contains(&"\"/both\" 40711 1000"), "{lines:#?}");
        for (path, root) in [
            ("both/b", "msb.upper"),
            ("low", "msb.upper"),
            ("turned/x", "msb.upper"),
            ("hidden/x", "msb.upper"),
            ("new/dir/x", "msb.upper"),
        ] {
            assert!(after.contains(&format!("\"/{path}\" {path} of Some(\"{root}\")")), "{path}: {after:#?}");
        }
        for gone in ["both/a", "gone", "kept", "hidden/a"] {
            assert!(!after.iter().any(|line| line.starts_with(&format!("\"/{gone}"))), "{gone}: {after:#?}");
        }
        // A name that only the upper had needs no whiteout.
        assert!(!case.upper.join("kept").exists() && fs::symlink_metadata(case.upper.join("kept")).is_err());
        fold.undo(&Dir::open(&case.staged).unwrap(), &Dir::open(&case.work).unwrap()).unwrap();
        assert_eq!(case.facts(), before);
        assert!(!journal::exists(&Dir::open(&case.work).unwrap()).unwrap());
    }

    #[test]
    fn a_journal_does_not_change_another_upper_at_the_same_path() {
        let case = Case::new();
        let (staged, work) = (Dir::open(&case.staged).unwrap(), Dir::open(&case.work).unwrap());
        let root = Merged::open(&[&case.lower], Some(&case.upper)).unwrap();
        journal::write(&work, &case.upper, &plan(root, &staged).unwrap()).unwrap();
        let moved = case.scratch.path().join("moved");
        fs::rename(&case.upper, &moved).unwrap();
        assert_eq!(lock_to_read(&case.work).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::create_dir(&case.upper).unwrap();
        let error = Writer::open(&case.work, false).unwrap_err();
        assert!(error.to_string().contains("another directory"), "{error}");
        assert_eq!(fs::read_dir(&case.upper).unwrap().count(), 0);
        fs::remove_dir(&case.upper).unwrap();
        fs::rename(&moved, &case.upper).unwrap();
        drop(Writer::open(&case.work, false).unwrap());
        assert!(!journal::exists(&work).unwrap() && case.upper.join("new/dir/x").exists());
    }

    #[test]
    fn a_fold_that_is_killed_after_any_step_is_completed_by_the_next_lock() {
        let whole = Case::new();
        whole.run();
        let expected = whole.facts();
        for reads in [false, true] {
            for count in 0.. {
                let case = Case::new();
                let (staged, work) = (Dir::open(&case.staged).unwrap(), Dir::open(&case.work).unwrap());
                let root = Merged::open(&[&case.lower], Some(&case.upper)).unwrap();
                let steps = plan(root, &staged).unwrap();
                journal::write(&work, &case.upper, &steps).unwrap();
                journal::run(&steps[..count], &staged, &Dir::open(&case.upper).unwrap()).unwrap();
                match reads {
                    true => drop(lock_to_read(&case.work).unwrap()),
                    false => drop(Writer::open(&case.work, false).unwrap()),
                }
                assert_eq!(case.facts(), expected, "{count} of {steps:#?}");
                assert_eq!(fs::read_dir(&case.work).unwrap().count(), usize::from(reads));
                if count == steps.len() {
                    break;
                }
            }
        }
    }
}
