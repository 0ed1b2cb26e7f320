//! The merge rule and its writer, judged by the kernel's overlayfs on the same directories. Needs root, for whiteouts
//! and for mounting. Nothing may be started here: a child has this process's locks until it execs.

mod marks;

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use msb::overlay::WHOLE;
use msb::overlay::beneath::{Dir, Name};
use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::upper::{Writer, upper_of};
use msb::overlay::{Layer, Merged, Node, whiteout};
use rustix::fs::{Mode, RenameFlags};
use rustix::mount::{MountFlags, UnmountFlags};

struct Stack {
    scratch: tempfile::TempDir,
}

impl Stack {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests make whiteouts: run them as root");
        let scratch = tempfile::tempdir().unwrap();
        for part in ["upper", "work", "top", "bottom", "merged"] {
            fs::create_dir(scratch.path().join(part)).unwrap();
        }
        Self { scratch }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn open(&self) -> Merged {
        Merged::open(&[self.path("top"), self.path("bottom")], Some(&self.path("upper"))).unwrap()
    }

    fn writer(&self) -> Writer {
        Writer::open(&self.path("work"), false).unwrap()
    }

    /// Every path below the root with its type and content, by our rule.
    fn ours(&self) -> Vec<String> {
        fn walk(dir: &Merged, path: &Path, lines: &mut Vec<String>) {
            for listed in dir.list().unwrap() {
                let path = path.join(&listed.name);
                let searched = dir.lookup(Name::new(&listed.name).unwrap()).unwrap().unwrap();
                match dir.lookup_listed(&listed).unwrap().unwrap() {
                    Node::Dir(below) => {
                        let Node::Dir(searched) = searched else { panic!("{path:?}") };
                        assert!(
                            below.has_lower_of(&searched).unwrap() && below.upper.is_some() == searched.upper.is_some()
                        );
                        lines.push(format!("{} dir {:o}", path.display(), below.top().0.stat().unwrap().st_mode));
                        walk(&below, &path, lines);
                    }
                    Node::Leaf(leaf) => {
                        assert!(matches!(searched, Node::Leaf(searched) if searched.layer == leaf.layer));
                        assert_eq!(leaf.layer, listed.layer);
                        lines.push(format!(
                            "{} {:o} {}",
                            path.display(),
                            leaf.entry.stat().st_mode,
                            leaf.entry.stat().st_size
                        ));
                    }
                }
            }
        }
        let mut lines = Vec::new();
        walk(&self.open(), Path::new(""), &mut lines);
        lines.sort();
        lines
    }

    /// The same, by the kernel.
    fn kernels(&self) -> Vec<String> {
        self.kernels_with("")
    }

    /// Options begin with a comma.
    fn kernels_with(&self, options: &str) -> Vec<String> {
        fn walk(dir: &Path, path: &Path, lines: &mut Vec<String>) {
            for child in fs::read_dir(dir).unwrap() {
                let child = child.unwrap();
                let path = path.join(child.file_name());
                let meta = child.metadata().unwrap();
                if meta.is_dir() {
                    lines.push(format!("{} dir {:o}", path.display(), meta.mode()));
                    walk(&child.path(), &path, lines);
                } else {
                    lines.push(format!("{} {:o} {}", path.display(), meta.mode(), meta.size()));
                }
            }
        }
        let scratch = self.scratch.path().display();
        let dirs = format!("lowerdir={scratch}/top:{scratch}/bottom,upperdir={scratch}/upper,workdir={scratch}/work");
        let options = dirs + options;
        let merged = self.path("merged");
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), &*CString::new(options).unwrap())
            .unwrap();
        let mut lines = Vec::new();
        walk(&merged, Path::new(""), &mut lines);
        rustix::mount::unmount(&merged, UnmountFlags::empty()).unwrap();
        lines.sort();
        lines
    }
}

fn name(name: &str) -> Name<'_> {
    Name::new(OsStr::new(name)).unwrap()
}

#[test]
fn layers_merge_as_the_kernel_merges_them() {
    let stack = Stack::new();
    stack.write("bottom/etc/motd", "bottom");
    stack.write("bottom/etc/hosts", "bottom!");
    stack.write("bottom/var/cache/old", "x");
    stack.write("bottom/var/file", "x");
    stack.write("bottom/opt/dir-below-file/x", "x");
    stack.write("bottom/usr/share/doc/x", "x");
    stack.write("top/usr/share/doc/y", "y");
    stack.write("top/etc/motd", "top wins");
    stack.write("top/var/cache/new", "yy");
    stack.write("top/opt/dir-below-file", "a file above a directory");
    let top = Dir::open(&stack.path("top")).unwrap();
    whiteout::make_whiteout(&top.dir(name("var")).unwrap(), name("file")).unwrap();
    whiteout::make_opaque(&top.dir(name("var")).unwrap().dir(name("cache")).unwrap()).unwrap();
    let ours = stack.ours();
    assert_eq!(ours, stack.kernels());
    // Only a directory is looked up in further layers.
    let root = stack.open();
    let Some(Node::Dir(etc)) = root.lookup(name("etc")).unwrap() else { panic!() };
    assert!(etc.list().unwrap().iter().all(|listed| listed.below.is_empty()));
    assert!(root.list().unwrap().iter().all(|listed| listed.below == [1]));
    assert!(!root.is_empty().unwrap());
    assert!(Merged::open(&[stack.path("merged")], None).unwrap().is_empty().unwrap());
    assert!(ours.iter().any(|line| line.starts_with("var/cache/new")));
    assert!(!ours.iter().any(|line| line.starts_with("var/cache/old") || line.starts_with("var/file")));
}

#[test]
fn what_is_removed_is_hidden_by_a_whiteout_only_where_a_layer_has_it() {
    let stack = Stack::new();
    stack.write("bottom/etc/motd", "m");
    stack.write("bottom/etc/conf.d/a", "a");
    stack.write("upper/etc/own", "o");
    stack.write("upper/etc/own.d/x/y", "o");
    let writer = stack.writer();
    let Some(Node::Dir(etc)) = stack.open().lookup(name("etc")).unwrap() else { panic!() };
    for gone in ["motd", "conf.d", "own", "own.d", "never-there"] {
        writer.remove(&etc, name(gone)).unwrap();
    }
    let mut left: Vec<_> = fs::read_dir(stack.path("upper/etc")).unwrap().map(|c| c.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["conf.d", "motd"]);
    assert_eq!(stack.ours().len(), 1);
    assert_eq!(stack.ours(), stack.kernels());
    assert_eq!(
        fs::read_dir(stack.path("work")).unwrap().filter(|c| c.as_ref().unwrap().file_name() != "work").count(),
        0
    );
}

#[test]
fn a_directory_made_where_one_was_removed_is_empty_and_opaque() {
    let stack = Stack::new();
    stack.write("bottom/etc/conf.d/a", "a");
    let writer = stack.writer();
    let mut resolved = resolve(&stack.open(), Path::new("/etc"), Last::Follow).unwrap();
    writer.copy_up_steps(&mut resolved.steps).unwrap();
    let etc = &resolved.steps[1].dir;
    writer.remove(etc, name("conf.d")).unwrap();
    writer.make_dir(etc, name("conf.d"), Mode::from_raw_mode(0o755)).unwrap();
    let made = upper_of(etc).unwrap().dir(name("conf.d")).unwrap();
    assert!(whiteout::is_opaque(&made).unwrap());
    assert_eq!(stack.ours(), stack.kernels());
    assert_eq!(stack.ours(), ["etc dir 40755", "etc/conf.d dir 40755"]);
}

#[test]
fn copy_up_keeps_data_owner_mode_xattrs_times_and_the_parents_times() {
    let stack = Stack::new();
    stack.write("bottom/etc/shadow", "root:*:::::::\n");
    let shadow = stack.path("bottom/etc/shadow");
    std::os::unix::fs::chown(&shadow, Some(0), Some(42)).unwrap();
    fs::set_permissions(&shadow, fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(&shadow, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    std::os::unix::fs::chown(stack.path("bottom/etc"), Some(7), Some(8)).unwrap();
    for path in ["bottom/etc/shadow", "bottom/etc"] {
        fs::File::open(stack.path(path)).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
    }
    let mut resolved = resolve(&stack.open(), Path::new("/etc/shadow"), Last::Follow).unwrap();
    let writer = stack.writer();
    writer.copy_up_steps(&mut resolved.steps).unwrap();
    let End::Leaf(leaf_name, leaf) = &resolved.end else { panic!() };
    assert_eq!(leaf.layer, Layer::Lower(1));
    let etc = resolved.steps[1].dir.upper.as_ref().unwrap();
    writer.copy_up(etc, Name::new(leaf_name).unwrap(), leaf, WHOLE).unwrap();
    let copy = stack.path("upper/etc/shadow");
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o640, 0, 42, 1000));
    assert_eq!(fs::read_to_string(&copy).unwrap(), "root:*:::::::\n");
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&copy, "user.note", &mut value).unwrap(), 4);
    let etc = fs::metadata(stack.path("upper/etc")).unwrap();
    assert_eq!((etc.uid(), etc.gid(), etc.mtime()), (7, 8, 1000));
    assert_eq!(stack.ours(), stack.kernels());
}

#[test]
fn a_copy_keeps_holes() {
    let stack = Stack::new();
    stack.write("bottom/sparse", "start");
    let file = fs::File::options().write(true).open(stack.path("bottom/sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", (64 << 20) - 3).unwrap();
    let resolved = resolve(&stack.open(), Path::new("/sparse"), Last::Follow).unwrap();
    let End::Leaf(_, leaf) = &resolved.end else { panic!() };
    let upper = stack.open().upper.unwrap();
    stack.writer().copy_up(&upper, name("sparse"), leaf, WHOLE).unwrap();
    let copy = fs::metadata(stack.path("upper/sparse")).unwrap();
    assert_eq!(copy.size(), 64 << 20);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let content = fs::read(stack.path("upper/sparse")).unwrap();
    assert!(content.starts_with(b"start\0") && content.ends_with(b"\0end"));
}

#[test]
fn a_second_writer_is_refused_and_a_dead_ones_leavings_are_cleared() {
    let stack = Stack::new();
    stack.write("work/msb.7/half/made", "x");
    stack.write("work/kernels-own", "x");
    let writer = stack.writer();
    assert!(!stack.path("work/msb.7").exists());
    assert!(stack.path("work/kernels-own").exists());
    assert_eq!(Writer::open(&stack.path("work"), false).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(writer);
    Writer::open(&stack.path("work"), false).unwrap();
}

#[test]
fn a_symlink_in_the_upper_does_not_lead_out() {
    let stack = Stack::new();
    stack.write("outside/file", "untouched");
    fs::create_dir(stack.path("bottom/etc")).unwrap();
    symlink(stack.path("outside"), stack.path("upper/etc")).unwrap();
    let resolved = resolve(&stack.open(), Path::new("/etc/file"), Last::Follow).unwrap();
    assert!(matches!(resolved.end, End::Missing(_)), "the target is looked up inside the root");
}

#[test]
fn renames_leave_whiteouts_and_cover_lower_directories() {
    let stack = Stack::new();
    stack.write("bottom/etc/motd", "m");
    stack.write("bottom/etc/conf.d/below", "b");
    stack.write("upper/etc/motd", "copied up");
    stack.write("upper/made/file", "f");
    stack.write("upper/other/file", "o");
    let writer = stack.writer();
    let root = stack.open();
    let Some(Node::Dir(etc)) = root.lookup(name("etc")).unwrap() else { panic!() };
    let none = RenameFlags::empty();
    writer.rename(&etc, name("motd"), &root, name("motd"), none).unwrap();
    assert!(etc.lookup(name("motd")).unwrap().is_none());
    writer.remove(&etc, name("conf.d")).unwrap();
    writer.rename(&root, name("made"), &etc, name("conf.d"), none).unwrap();
    let Some(Node::Dir(moved)) = etc.lookup(name("conf.d")).unwrap() else { panic!() };
    assert!(whiteout::is_opaque(moved.top().0).unwrap());
    writer.rename(&root, name("other"), &etc, name("conf.d"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(stack.ours(), stack.kernels());
    let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let exdev = writer.rename(&root, name("etc"), &root, name("etc2"), none);
    assert_eq!(refused(exdev), Some(rustix::io::Errno::XDEV.raw_os_error()));
    let eexist = writer.rename(&root, name("motd"), &etc, name("conf.d"), RenameFlags::NOREPLACE);
    assert_eq!(refused(eexist), Some(rustix::io::Errno::EXIST.raw_os_error()));
}

#[test]
fn a_file_and_a_directory_can_be_made_where_a_whiteout_is() {
    let stack = Stack::new();
    stack.write("bottom/file", "b");
    stack.write("bottom/dir/below", "b");
    let writer = stack.writer();
    let root = stack.open();
    let make = |dir: &Dir, name: Name<'_>| dir.create(name, Mode::from_raw_mode(0o644)).map(drop);
    for gone in ["file", "dir"] {
        writer.remove(&root, name(gone)).unwrap();
    }
    writer.make(&root, name("file"), make).unwrap();
    writer.make_dir(&root, name("dir"), Mode::from_raw_mode(0o755)).unwrap();
    let again = writer.make(&root, name("file"), make).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(stack.ours(), stack.kernels());
    assert_eq!(stack.ours(), ["dir dir 40755", "file 100644 0"]);
}

#[test]
fn a_prepared_copy_shows_only_once_it_is_put() {
    let stack = Stack::new();
    stack.write("bottom/file", "content");
    let writer = stack.writer();
    let root = stack.open();
    let Some(Node::Leaf(leaf)) = root.lookup(name("file")).unwrap() else { panic!() };
    drop(writer.prepare_copy(&leaf, WHOLE).unwrap());
    assert_eq!(fs::read_dir(stack.path("work")).unwrap().count(), 0);
    let (_, prepared) = writer.prepare_copy(&leaf, 3).unwrap();
    assert!(!stack.path("upper/file").exists());
    prepared.put(root.upper.as_ref().unwrap(), name("file")).unwrap();
    assert_eq!(fs::read_to_string(stack.path("upper/file")).unwrap(), "con");
}
