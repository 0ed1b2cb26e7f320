//! The comparison of two merged roots. It descends only where they may differ.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;

use msb::overlay::beneath::Entry;
use msb::overlay::whiteout::is_private_xattr;
use msb::overlay::{Changes, Leaf, Merged, Node, Visit};
use msb::tool::interrupt;
use rustix::fs::FileType;

use crate::difference::{Difference, State};

/// How much of two files is compared at once, in bytes.
const BLOCK: usize = 1 << 16;

/// Calls `report` for every difference, in the order of the paths. It returns whether to go on.
///
/// # Errors
/// The error of reading, with the path, and those of `report`.
pub(crate) fn compare(
    before: Merged,
    now: Merged,
    report: &mut dyn FnMut(Difference) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let root = (Node::Dir(before.clone()), Node::Dir(now.clone()));
    let what = aspects(&root.0, &root.1)?;
    if !what.is_empty() {
        let (was, is) = (State::of(&root.0)?, State::of(&root.1)?);
        if !report(Difference::new(Path::new(""), Some(was), Some(is), what))? {
            return Ok(());
        }
    }
    let mut changes = Changes::new(Some(before), now)?;
    while let Some(visit) = changes.step()? {
        let Visit::Path(path, was, is) = visit else { continue };
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        let what = match (&was, &is) {
            (Some(was), Some(is)) => aspects(was, is).map_err(at)?,
            _ => Vec::new(),
        };
        if was.is_none() || is.is_none() || !what.is_empty() {
            let state = |node: &Option<Node>| node.as_ref().map(State::of).transpose();
            if !report(Difference::new(&path, state(&was).map_err(at)?, state(&is).map_err(at)?, what))? {
                return Ok(());
            }
        }
        if let Some(Node::Dir(is)) = is {
            let was = match was {
                Some(Node::Dir(was)) => Some(was),
                _ => None,
            };
            changes.enter(path, was, is)?;
        }
    }
    Ok(())
}

/// In what two files differ.
fn aspects(was: &Node, is: &Node) -> io::Result<Vec<&'static str>> {
    match (was, is) {
        (Node::Dir(was), Node::Dir(is)) => attributes(&was.top().0.to_entry()?, &is.top().0.to_entry()?),
        (Node::Leaf(was), Node::Leaf(is)) => leaf(was, is),
        _ => Ok(vec!["type"]),
    }
}

fn leaf(was: &Leaf, is: &Leaf) -> io::Result<Vec<&'static str>> {
    let key = |leaf: &Leaf| (leaf.entry.stat().st_dev, leaf.entry.stat().st_ino);
    let (old, new) = (was.entry.stat(), is.entry.stat());
    if was.entry.file_type() != is.entry.file_type() {
        return Ok(vec!["type"]);
    }
    if key(was) == key(is) {
        return Ok(Vec::new());
    }
    let mut what = Vec::new();
    match is.entry.file_type() {
        FileType::RegularFile if !has_content_of(was, is)? => what.push("content"),
        FileType::Symlink if was.entry.read_link()? != is.entry.read_link()? => what.push("target"),
        FileType::CharacterDevice | FileType::BlockDevice if old.st_rdev != new.st_rdev => what.push("device"),
        _ => {}
    }
    what.extend(attributes(&was.entry, &is.entry)?);
    if (old.st_mtime, old.st_mtime_nsec) != (new.st_mtime, new.st_mtime_nsec) {
        what.push("mtime");
    }
    Ok(what)
}

fn attributes(was: &Entry, is: &Entry) -> io::Result<Vec<&'static str>> {
    let mut what = Vec::new();
    if was.stat().st_mode != is.stat().st_mode {
        what.push("mode");
    }
    if (was.stat().st_uid, was.stat().st_gid) != (is.stat().st_uid, is.stat().st_gid) {
        what.push("owner");
    }
    if xattrs(was)? != xattrs(is)? {
        what.push("xattrs");
    }
    Ok(what)
}

fn xattrs(entry: &Entry) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut xattrs = Vec::new();
    for name in entry.xattr_names()?.into_iter().filter(|name| !is_private_xattr(name)) {
        let value = entry.xattr(&name)?;
        xattrs.push((name, value));
    }
    xattrs.sort();
    Ok(xattrs)
}

fn has_content_of(was: &Leaf, is: &Leaf) -> io::Result<bool> {
    if was.entry.stat().st_size != is.entry.stat().st_size {
        return Ok(false);
    }
    let (mut was, mut is) = (was.data().open_to_read()?, is.data().open_to_read()?);
    let (mut old, mut new) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    loop {
        interrupt::check()?;
        old.clear();
        new.clear();
        (&mut was).take(BLOCK as u64).read_to_end(&mut old)?;
        (&mut is).take(BLOCK as u64).read_to_end(&mut new)?;
        if old != new || old.is_empty() {
            return Ok(old == new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn lines(before: &Path, now: &Path) -> Vec<String> {
        let open = |path: &Path| Merged::open(&[path], None).unwrap();
        let mut lines = Vec::new();
        compare(open(before), open(now), &mut |difference| {
            lines.push(difference.text());
            Ok(true)
        })
        .unwrap();
        lines
    }

    #[test]
    fn every_kind_of_difference_is_named_once() {
        let scratch = tempfile::tempdir().unwrap();
        let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
        for root in [&old, &new] {
            fs::create_dir_all(root.join("same/dir")).unwrap();
            fs::write(root.join("same/file"), "same").unwrap();
            fs::write(root.join("content"), root.to_str().unwrap()).unwrap();
            fs::write(root.join("mode"), "").unwrap();
            symlink(root, root.join("link")).unwrap();
            let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            for path in ["same/file", "content", "mode"] {
                fs::File::options().write(true).open(root.join(path)).unwrap().set_times(time).unwrap();
            }
            let link = fs::File::open(root).unwrap();
            let zero = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
            let zero = rustix::fs::Timestamps { last_access: zero, last_modification: zero };
            rustix::fs::utimensat(&link, "link", &zero, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        fs::create_dir_all(old.join("gone/below")).unwrap();
        fs::create_dir_all(new.join("made/below")).unwrap();
        fs::create_dir(old.join("turned")).unwrap();
        fs::write(new.join("turned"), "").unwrap();
        fs::set_permissions(new.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(new.join("same/dir"), fs::Permissions::from_mode(0o700)).unwrap();
        let expected = [
            "C /content (content)",
            "D /gone",
            "C /link (target)",
            "A /made",
            "A /made/below",
            "C /mode (mode)",
            "C /same/dir (mode)",
            "C /turned (type)",
        ];
        assert_eq!(lines(&old, &new), expected);
        assert!(lines(&old, &old).is_empty());
    }
}
