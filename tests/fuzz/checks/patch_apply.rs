//! Operations of msb-patch in a root made of hostile layers: nothing outside the upper changes, and an operation that fails leaves the
//! upper as it was.
//!
//! The bytes are a list of choices: the files of two layers, then operations, in up to three runs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use msb::overlay::beneath::{Dir, Name};
use msb::overlay::{Merged, whiteout};
use msb::record::Upper;
use msb::record::owner::Id;
use msb::store::staging::{Staging, Start};
use msb_patch::caps::FileCaps;
use msb_patch::member::{Base64, Mode, Owner, RawPath, Timestamp};
use msb_patch::op::{self, Op};
use msb_patch::target::{Settings, Target};
use msb_patch::user::User;
use rustix::fs::{FileType, Mode as Bits, XattrFlags};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "etc", "file"];
/// The maximum number of files in a layer, and of operations in a run.
const MANY: u8 = 24;

/// # Panics
/// If something outside has changed, or an operation that failed has changed something.
pub fn check(data: &[u8]) {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let place = |name: &str| scratch.path().join(name);
    make_canary(&place("canary"));
    make_source(&place("src"), &place("canary"));
    let mut choices = Choices { data, outside: place("canary") };
    for layer in ["bottom", "top"] {
        fs::create_dir(place(layer)).unwrap();
        make_layer(&place(layer), &mut choices);
    }
    let lower = [place("top"), place("bottom")];
    let outside = [place("canary"), place("src"), place("top"), place("bottom")].map(|dir| facts(&dir, true));
    let (named, upper) = (place("mine"), place("mine/upper"));
    for run in 0..3 {
        let before = upper.exists().then(|| facts(&upper, false));
        let continued = Upper::new(upper.clone(), place("mine/work"));
        let dry_run = choices.one_in(6);
        let is_fresh = choices.one_in(12);
        let start = match is_fresh {
            true => Start::Fresh,
            false if dry_run => Start::Trial,
            false => Start::Fold(if choices.one_in(2) { 0 } else { usize::MAX }),
        };
        let begun = Staging::begin(scratch.path(), &lower, before.is_some().then_some(&continued), Some(&named), start);
        let (staging, layers) = begun.expect("layers that can be opened");
        let epoch = choices.one_in(2).then_some(1_700_000_000);
        let (user, src_dir) = (User::of_this_process(), place("src"));
        let mut target =
            Target::new(layers, Settings { dry_run, is_reported: choices.one_in(2), epoch, user, src_dir });
        let mut changed = is_fresh;
        let mut failed = dry_run;
        for _ in 0..choices.below(MANY) {
            let op = choose_op(&mut choices);
            match op.run(&mut target) {
                Ok(done) => {
                    changed |= done.changed;
                    check_again(&mut target, &op);
                }
                Err(_) => failed = true,
            }
            if failed && !dry_run {
                break;
            }
        }
        if failed {
            staging.discard();
            assert_eq!(upper.exists().then(|| facts(&upper, false)), before, "a failure left something");
        } else {
            target.finish().expect("times");
            staging.publish(changed).expect("an upper").keep();
            Merged::open(&lower, Some(&upper)).and_then(|root| root.list()).expect("a merged root");
        }
        drop(target);
        let now = [place("canary"), place("src"), place("top"), place("bottom")].map(|dir| facts(&dir, true));
        assert_eq!(now, outside, "run {run} changed something outside");
        // A dry run is made in the store, and leaves nothing there.
        let left = fs::read_dir(place("sandboxes")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "run {run} left a sandbox");
        let mut names: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|child| child.unwrap().file_name()).collect();
        names.retain(|name| !["bottom", "canary", "mine", "sandboxes", "src", "top"].iter().any(|known| name == known));
        assert!(names.is_empty(), "run {run} made {names:?}");
        if choices.data.is_empty() {
            break;
        }
    }
}

/// The bytes, read one after the other. After the last one, zeros follow.
struct Choices<'a> {
    data: &'a [u8],
    /// A directory outside of the layers, to which symlinks may point.
    outside: PathBuf,
}

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.data.split_first() else { return 0 };
        self.data = rest;
        first
    }

    fn below(&mut self, end: u8) -> u8 {
        self.next() % end
    }

    /// True once in `many`, and false for a zero.
    fn one_in(&mut self, many: u8) -> bool {
        self.below(many) == many - 1
    }

    fn name(&mut self) -> &'static str {
        NAMES[usize::from(self.below(NAMES.len() as u8))]
    }

    /// The target of a symlink, or the path of an operation, which is `absolute`.
    fn path(&mut self, absolute: bool) -> String {
        let mut path = String::from(if absolute || self.one_in(3) { "/" } else { "" });
        if self.one_in(8) {
            path = self.outside.to_str().expect("a path of ours").to_owned() + "/";
        }
        for _ in 0..=self.below(4) {
            match self.below(12) {
                0 => path += "../",
                1 => path += "./",
                2 => path += "../../../../../../../../",
                3 => path += &format!("{}//", self.name()),
                _ => path += &format!("{}/", self.name()),
            }
        }
        if !self.one_in(10) {
            path.truncate(path.trim_end_matches('/').len());
        }
        if path.is_empty() { "/".to_owned() } else { path }
    }

    fn content(&mut self) -> String {
        "x".repeat(usize::from(self.below(5)))
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(3).then(|| value(self))
    }

    fn mode(&mut self) -> Option<Mode> {
        self.maybe(|choices| Mode([0o644, 0o600, 0o4755, 0o2770, 0o1777, 0][usize::from(choices.below(6))]))
    }

    fn owner(&mut self) -> Option<Owner> {
        self.maybe(|choices| match choices.below(5) {
            // Most layers have no passwd file.
            3 => Owner::Name("root".to_owned()),
            number => Owner::Id(Id::new(number.into()).expect("a small number")),
        })
    }
}

/// After an operation, its request is met, so running it again changes nothing.
fn check_again(target: &mut Target, op: &Op) {
    match op {
        Op::Append(append) if !append.once => {}
        // After these, the path may be gone or lead to another file.
        Op::Rename(_) | Op::Remove(_) | Op::CopyDir(_) => {}
        op => {
            let again = op.run(target).unwrap_or_else(|error| panic!("{op:?} again: {error:#}"));
            assert!(!again.changed, "{op:?} changes something again");
        }
    }
}

fn choose_op(choices: &mut Choices<'_>) -> Op {
    let kind = choices.below(24);
    let path = RawPath::from(choices.path(true));
    match kind {
        0 | 9 => Op::Text(op::Text {
            path,
            content: choices.content(),
            replace: choices.one_in(2),
            mode: choices.mode(),
            uid: choices.owner(),
            gid: choices.owner(),
            create: !choices.one_in(8),
        }),
        1 => Op::File(op::File {
            path,
            content_base64: Base64(choices.content().into_bytes()),
            replace: choices.one_in(2),
            mode: choices.mode(),
            uid: choices.owner(),
            gid: choices.owner(),
            create: true,
        }),
        2 | 10 => Op::Mkdir(op::Mkdir { path, mode: choices.mode(), uid: choices.owner(), gid: choices.owner() }),
        3 => Op::Append(op::Append {
            path,
            content: choices.content(),
            once: choices.one_in(2),
            create: choices.one_in(2),
        }),
        4 => Op::CopyFile(op::CopyFile {
            src: ["file", "hard", "leak"][usize::from(choices.below(3))].to_owned().into(),
            dst: path,
            replace: choices.one_in(2),
            mode: choices.mode(),
            uid: choices.owner(),
            gid: choices.owner(),
        }),
        5 | 11 => Op::CopyDir(op::CopyDir {
            src: if choices.one_in(2) { "etc" } else { "." }.to_owned().into(),
            dst: path,
            replace: choices.one_in(2),
            mode: choices.mode(),
            uid: choices.owner(),
            gid: choices.owner(),
        }),
        6 => Op::Symlink(op::Symlink { target: choices.path(false).into(), link: path, replace: choices.one_in(2) }),
        7 | 8 => Op::Remove(op::Remove { path }),
        12 | 13 => {
            Op::Hardlink(op::Hardlink { target: choices.path(true).into(), link: path, replace: choices.one_in(2) })
        }
        14..=16 => Op::Rename(op::Rename { from: path, to: choices.path(true).into(), replace: choices.one_in(2) }),
        17 => Op::Chmod(op::Chmod { path, mode: choices.mode().unwrap_or(Mode(0o751)) }),
        18 | 19 => Op::Chown(op::Chown {
            path,
            uid: choices.owner(),
            gid: choices.owner(),
            recursive: choices.one_in(2),
            follow: choices.one_in(2),
        }),
        20 => Op::Touch(op::Touch {
            path,
            mtime: choices.maybe(|choices| Timestamp { seconds: choices.next().into(), nanoseconds: 0 }),
            create: choices.one_in(2),
            follow: choices.one_in(2),
        }),
        21 => {
            let value = choices.maybe(Choices::content);
            Op::Xattr(op::Xattr {
                path,
                name: ["user.note", "user.other", "trusted.overlay.opaque"][usize::from(choices.below(3))].to_owned(),
                remove: value.is_none(),
                value,
                value_base64: None,
                follow: choices.one_in(2),
            })
        }
        22 => {
            let caps = ["cap_kill=ep", "", "=i"][usize::from(choices.below(3))];
            Op::Capability(op::Capability { path, caps: FileCaps::from_text(caps).expect("good"), rootid: None })
        }
        23 => Op::Edit(op::Edit {
            path,
            line: Some("x".repeat(usize::from(choices.below(4)))),
            regex: None,
            with: choices.content(),
            count: None,
        }),
        _ => unreachable!(),
    }
}

/// Makes files without following symlinks. Those that cannot be made are left out.
fn make_layer(layer: &Path, choices: &mut Choices<'_>) {
    let root = Dir::open(layer).unwrap();
    for _ in 0..choices.below(MANY) {
        let mut dir = root.try_clone().unwrap();
        for _ in 0..choices.below(3) {
            let name = Name::new(OsStr::new(choices.name())).unwrap();
            let Ok(next) = dir.dir(name).or_else(|_| dir.mkdir(name, Bits::from_raw_mode(0o755))) else { break };
            dir = next;
        }
        let name = Name::new(OsStr::new(choices.name())).unwrap();
        let _ = match choices.below(9) {
            0 | 8 => dir.create(name, Bits::from_raw_mode(0o640)).and_then(|file| file.set_len(3)),
            1 => dir.mkdir(name, Bits::from_raw_mode(0o2755)).map(drop),
            2 | 3 => dir.symlink(name, OsStr::new(&choices.path(false))),
            4 => whiteout::make_whiteout(&dir, name),
            5 => dir.dir(name).and_then(|dir| whiteout::make_opaque(&dir)),
            6 => dir.mknod(name, FileType::Fifo, Bits::from_raw_mode(0o600), 0),
            _ => {
                let other = Name::new(OsStr::new(choices.name())).unwrap();
                match dir.entry(other) {
                    Ok(Some(entry)) if !entry.is_dir() => dir.link(name, &entry),
                    _ => Ok(()),
                }
            }
        };
        if choices.one_in(6)
            && let Ok(Some(entry)) = dir.entry(name)
        {
            let _ = entry.set_xattr(OsStr::new("user.note"), b"note", XattrFlags::empty());
            let _ = entry.set_owner(Some(7), Some(8));
        }
    }
}

/// Files that must not change, although symlinks lead to them.
fn make_canary(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    for file in ["file", "a/file", "a/b/c", "etc"] {
        fs::write(dir.join(file), "canary").unwrap();
    }
}

/// A tree for copy_dir: names that the layers have too, a hardlink, and symlinks that lead outside.
fn make_source(dir: &Path, canary: &Path) {
    fs::create_dir_all(dir.join("etc/d")).unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    for file in ["file", "a/b", "etc/file", "etc/d/c"] {
        fs::write(dir.join(file), "source").unwrap();
    }
    fs::hard_link(dir.join("file"), dir.join("hard")).unwrap();
    fs::hard_link(dir.join("etc/file"), dir.join("etc/hard")).unwrap();
    symlink(canary, dir.join("etc/out")).unwrap();
    symlink(canary.join("file"), dir.join("leak")).unwrap();
}

/// All attributes and content of a tree. Without change times, since hardlinks that were made and removed change them.
fn facts(dir: &Path, with_change_times: bool) -> BTreeMap<PathBuf, String> {
    let mut facts = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut fact = format!(
            "{:o} {}:{} {} {} {} {}.{}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            meta.nlink(),
            if meta.is_dir() { 0 } else { meta.len() },
            meta.mtime(),
            meta.mtime_nsec()
        );
        if with_change_times {
            fact += &format!(" {} {}.{}", meta.ino(), meta.ctime(), meta.ctime_nsec());
        }
        if meta.is_symlink() {
            fact += &format!(" {:?}", fs::read_link(&path).unwrap());
        } else if meta.is_file() {
            fact += &format!(" {:?}", fs::read(&path).unwrap());
        } else if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|child| child.unwrap().path()));
        }
        if meta.is_file() || meta.is_dir() {
            let mut names = vec![0; 4096];
            let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
            for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
                let mut value = [0u8; 64];
                let name = OsStr::from_bytes(name);
                let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap_or(0);
                fact += &format!(" {name:?}={:?}", &value[..length]);
            }
        }
        facts.insert(path, fact);
    }
    facts
}
