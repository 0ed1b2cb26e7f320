//! Paths in the guest's root: where a path leads, even if nothing exists there yet, and the directories above it. The symlinks are the
//! image's, so none is followed out of the root or into a file system of the kernel.
//!
//! [`msb::overlay::resolve`] is not used here. It finds open directories in layers that do not change and contain no mounts; here the
//! result is a path for `mount(2)` in the guest's root with everything that is mounted there, and its missing part is created afterwards.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use msb::overlay::attributes::keeping_times;
use msb::overlay::beneath::Dir;
use msb::overlay::resolve::MAX_SYMLINKS;
use nix::errno::Errno;

use crate::cleanup::Cleanup;

/// Where the scripts are mounted in the root.
pub const MSB_DIR: &str = ".msb";

/// Resolves a path below `root`, which is `/` except in tests. All symlinks are followed, the last one too; components that do not
/// exist are kept. The result is absolute and does not contain `root`.
///
/// # Errors
/// ELOOP for too many symlinks.
pub fn follow(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut followed = PathBuf::from("/");
    let mut left = names(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            followed.pop();
            continue;
        }
        let next = followed.join(&name);
        let Ok(target) = fs::read_link(below(root, &next)) else {
            followed = next;
            continue;
        };
        links += 1;
        if links > MAX_SYMLINKS {
            return Err(Errno::ELOOP.into());
        }
        if target.is_absolute() {
            followed = PathBuf::from("/");
        }
        left.extend(names(&target));
    }
    Ok(followed)
}

/// The components of a path, in reverse order.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// The path on which a path from [`follow`] is reached.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    if root == Path::new("/") { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap_or(path)) }
}

/// Whether a path from [`follow`] is the root itself, or in a file system that is not the root's.
pub fn is_foreign(path: &Path) -> bool {
    let foreign = ["/proc", "/sys", "/dev"].into_iter().chain([MSB_DIR]);
    path == Path::new("/") || foreign.into_iter().any(|dir| path.starts_with(Path::new("/").join(dir)))
}

/// Creates a directory below `root` if it is missing, with its parents, owned by root and with mode 0755. What was created is added to
/// `cleanup`, the innermost first. Returns the resolved path.
///
/// # Errors
/// Those of `mkdir(2)`: ENOTDIR or EEXIST if something else is there. ELOOP. EPERM for a path into a file system that is not the
/// root's.
pub fn make_directories(root: &Path, path: &Path, cleanup: &mut Cleanup) -> io::Result<PathBuf> {
    let path = follow(root, path)?;
    if is_foreign(&path) && !below(root, &path).is_dir() {
        return Err(Errno::EPERM.into());
    }
    make_each(root, &path, cleanup)?;
    Ok(path)
}

/// Creates a directory at a path from [`follow`], wherever that is, as [`make_directories`] does. What is not in the root's own file
/// system is not added to `cleanup`.
///
/// # Errors
/// Those of `mkdir(2)`.
pub fn make_each(root: &Path, path: &Path, cleanup: &mut Cleanup) -> io::Result<()> {
    let mut step = PathBuf::from("/");
    for name in path.components().skip(1) {
        step.push(name);
        let dir = below(root, &step);
        if !dir.is_dir() && make(&dir, || fs::create_dir(&dir))? && is_in_file_system_of(root, &dir) {
            cleanup.add(&step);
        }
    }
    Ok(())
}

/// Whether a path is in the root's own file system, and in nothing that is mounted in the root.
pub fn is_in_file_system_of(root: &Path, path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    device(root) == device(path)
}

/// Creates something at a path and restores the times of its directory. False: another VM with this root has created it.
///
/// # Errors
/// Those of `make`.
pub fn make(path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    let parent = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    match keeping_times(&parent, make) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Anything else is the image's.
            if path.is_dir() || path.is_file() { Ok(false) } else { Err(error) }
        }
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/run/inner")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for (target, link) in [
            ("/var/run", "run"),
            ("../var", "var/up"),
            ("../../../../var", "beyond"),
            ("/nowhere/at/all", "dangling"),
            ("loop-b", "loop-a"),
            ("/loop-a", "loop-b"),
            ("/proc/self", "process"),
            ("/", "all"),
            ("run", "chain"),
        ] {
            symlink(target, root.path().join(link)).unwrap();
        }
        root
    }

    #[test]
    fn a_path_is_followed_inside_the_root_also_to_what_does_not_exist() {
        let root = root();
        for (path, expected) in [
            ("/run", "/var/run"),
            ("/run/inner/x", "/var/run/inner/x"),
            ("/chain/a/b", "/var/run/a/b"),
            ("relative", "/relative"),
            ("/var/up/up/up/x", "/var/x"),
            ("/beyond/x", "/var/x"),
            ("/../../x", "/x"),
            ("/run/../y", "/var/y"),
            ("/dangling", "/nowhere/at/all"),
            ("/dangling/../z", "/nowhere/at/z"),
            ("/all", "/"),
            ("/", "/"),
            ("/process/fd", "/proc/self/fd"),
        ] {
            assert_eq!(follow(root.path(), Path::new(path)).unwrap(), Path::new(expected), "{path}");
        }
        assert_eq!(follow(root.path(), Path::new("/loop-a")).unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn forty_symlinks_are_followed_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..42 {
            symlink(format!("{}", number + 1), root.path().join(number.to_string())).unwrap();
        }
        assert_eq!(follow(root.path(), Path::new("/2")).unwrap(), Path::new("/42"));
        assert!(follow(root.path(), Path::new("/1")).is_err());
    }

    #[test]
    fn the_kernels_file_systems_are_not_the_roots() {
        for (path, expected) in [
            ("/", true),
            ("/proc", true),
            ("/proc/1/root", true),
            ("/sys/fs", true),
            ("/dev", true),
            ("/.msb/scripts", true),
            ("/process", false),
            ("/etc/hosts", false),
            ("/var/dev", false),
        ] {
            assert_eq!(is_foreign(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn missing_directories_are_made_in_the_root_and_written_down_innermost_first() {
        let root = root();
        let mut cleanup = Cleanup::default();
        let at = |path: &str| root.path().join(path);
        let mut make = |path: &str| make_directories(root.path(), Path::new(path), &mut cleanup);
        assert_eq!(make("/run/a/b").unwrap(), Path::new("/var/run/a/b"));
        assert_eq!(make("/run/a/b").unwrap(), Path::new("/var/run/a/b"));
        assert_eq!(make("/dangling").unwrap(), Path::new("/nowhere/at/all"));
        assert_eq!(make("/").unwrap(), Path::new("/"));
        assert!(make("/file/x").is_err());
        assert!(make("/loop-a/x").is_err());
        assert_eq!(make("/process/x").unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        assert!(at("var/run/a/b").is_dir() && at("nowhere/at/all").is_dir() && !at("proc").exists());
        assert_eq!(fs::metadata(at("var/run/a")).unwrap().permissions().mode() & 0o7777, 0o755);
        let expected = ["/nowhere/at/all", "/nowhere/at", "/nowhere", "/var/run/a/b", "/var/run/a"];
        assert_eq!(cleanup.mount_points, expected.map(PathBuf::from));
    }

    #[test]
    fn the_times_of_the_directory_stay() {
        let root = root();
        let times = || {
            let meta = fs::metadata(root.path().join("var")).unwrap();
            (meta.modified().unwrap(), meta.accessed().unwrap())
        };
        let before = times();
        assert!(make(&root.path().join("var/x"), || fs::create_dir(root.path().join("var/x"))).unwrap());
        assert!(!make(&root.path().join("var/x"), || fs::create_dir(root.path().join("var/x"))).unwrap());
        assert_eq!(times(), before);
    }
}
