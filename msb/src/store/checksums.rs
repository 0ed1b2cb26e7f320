//! The checksums of a layer: a line of text for each of its files, written when the layer was unpacked, so that damage is found
//! later.
//!
//! ```text
//! KIND MODE UID GID SIZE MTIME DEVICE XATTRS CONTENT PATH
//! f 755 0 0 48392 1700000000.000000000 - - 4d1c… usr/bin/env
//! end BYTES HASH
//! ```
//!
//! KIND is one of `d f l c b p s`; a member that a kind does not have is `-`. XATTRS and CONTENT are BLAKE3 hashes, of a
//! symlink's target too. Of a file, the blocks that are not zero are hashed with their numbers, so a hole costs nothing and
//! counts as zeros. In PATH all bytes but visible ASCII are octal, as in mountinfo. The last line has what the layer takes of the
//! disk, and the hash of the lines before it.

mod content;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blake3::Hasher;
use rustix::fs::{FileType, SeekFrom, Stat};

use crate::interrupt;
use crate::overlay::beneath::{Dir, Entry};

use self::content::{BLOCK, xattr_names};
pub use self::content::{ContentHash, Contents};

/// How many files with several links are remembered, so that each is read once.
const MAX_LINKED: usize = 4096;
/// The longest line that is read. A path has at most 4095 bytes, of four characters each.
const MAX_LINE: u64 = 1 << 15;
/// The members of a line before the path, and what a difference in one of them is called.
const MEMBERS: [&str; 9] = ["type", "mode", "owner", "owner", "size", "mtime", "device", "xattrs", "content"];
/// The value of a member that does not apply to a file.
const NONE: &str = "-";

/// Writes the checksums of the tree `layer` to the new file `to`. Files in `contents` are not read again.
///
/// # Errors
/// The error of reading or of writing, and [`interrupt::check`].
pub fn write(layer: &Path, contents: &Contents, to: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create_new(to)?);
    let mut hash = Hasher::new();
    let mut bytes = 0;
    each_line(layer, contents, &mut bytes, |path, members| {
        let line = format!("{members} {}\n", escape(path));
        hash.update(line.as_bytes());
        out.write_all(line.as_bytes())
    })?;
    writeln!(out, "end {bytes} {}", hash.finalize().to_hex())?;
    out.flush()
}

/// A hash of a file, or of a directory with all that is below it: everything that the checksums of a layer cover. It does not depend
/// on the order of names in a directory.
///
/// # Errors
/// The error of reading, and [`interrupt::check`]; [`io::ErrorKind::InvalidInput`] for what is neither a file nor a directory.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut lines: Vec<[u8; 32]> = Vec::new();
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        each_line(path, &Contents::default(), &mut 0, |path, members| {
            lines.push(blake3::hash(format!("{members} {}", escape(path)).as_bytes()).into());
            Ok(())
        })?;
    } else if meta.is_file() {
        let entry = Entry::of_open(File::open(path)?)?;
        let content = content(&entry, &mut vec![0; BLOCK])?;
        lines.push(blake3::hash(members(entry.stat(), &xattrs(&entry)?, &content).as_bytes()).into());
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a directory"));
    }
    lines.sort_unstable();
    let mut hash = Hasher::new();
    lines.iter().for_each(|line| _ = hash.update(line));
    Ok(hash.finalize().to_hex().to_string())
}

/// What the last line of checksums says that the layer takes of the disk, in bytes.
///
/// # Errors
/// The error of reading; [`io::ErrorKind::InvalidData`] for a file without a last line.
pub fn size(checksums: &Path) -> io::Result<u64> {
    let file = File::open(checksums)?;
    let mut tail = vec![0; 128];
    let start = file.metadata()?.len().saturating_sub(tail.len() as u64);
    let got = file.read_at(&mut tail, start)?;
    let text = String::from_utf8_lossy(&tail[..got]);
    let last = text.lines().next_back().unwrap_or_default();
    let bytes = last.strip_prefix("end ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no last line"))
}

/// How a file of a layer differs from its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path in the layer; empty for its root.
    pub path: PathBuf,
    /// The kind of the difference.
    pub kind: Kind,
    /// What was changed: `type`, `mode`, `owner`, `size`, `mtime`, `device`, `xattrs` or `content`.
    pub members: Vec<&'static str>,
}

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file was changed.
    Changed,
    /// The file is gone.
    Missing,
    /// The file was not there when the layer was unpacked.
    Added,
}

/// Compares a layer with its checksums. Returns the differences, those of missing files last.
///
/// # Errors
/// The error of reading; [`io::ErrorKind::InvalidData`] if the checksums themselves are damaged; that of [`interrupt::check`].
pub fn verify(layer: &Path, checksums: &Path) -> io::Result<Vec<Difference>> {
    let mut expected = read(checksums)?;
    let mut differences = Vec::new();
    each_line(layer, &Contents::default(), &mut 0, |path, members| {
        let (kind, changed) = match expected.remove(path.as_os_str().as_bytes()) {
            None => (Kind::Added, Vec::new()),
            Some(old) if old == members => return Ok(()),
            Some(old) => (Kind::Changed, differing(&old, members)),
        };
        differences.push(Difference { path: path.to_owned(), kind, members: changed });
        Ok(())
    })?;
    let missing = expected.into_keys().map(|path| PathBuf::from(OsString::from_vec(path)));
    differences.extend(missing.map(|path| Difference { path, kind: Kind::Missing, members: Vec::new() }));
    Ok(differences)
}

/// The names of the members in which two lines differ.
fn differing(old: &str, new: &str) -> Vec<&'static str> {
    let mut changed: Vec<&'static str> = Vec::new();
    for ((old, new), name) in old.split(' ').zip(new.split(' ')).zip(MEMBERS) {
        if old != new && changed.last() != Some(&name) {
            changed.push(name);
        }
    }
    changed
}

/// The members of each line, by path.
fn read(checksums: &Path) -> io::Result<BTreeMap<Vec<u8>, String>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the checksums are damaged");
    let mut file = BufReader::new(File::open(checksums)?);
    let (mut hash, mut lines) = (Hasher::new(), BTreeMap::new());
    loop {
        interrupt::check()?;
        let mut line = String::new();
        io::Read::take(&mut file, MAX_LINE).read_line(&mut line).map_err(|_| damaged())?;
        let text = line.strip_suffix('\n').ok_or_else(damaged)?;
        if let Some(end) = text.strip_prefix("end ") {
            let is_whole =
                end.split_once(' ').is_some_and(|(_, expected)| expected == hash.finalize().to_hex().as_str());
            return if is_whole && file.fill_buf()?.is_empty() { Ok(lines) } else { Err(damaged()) };
        }
        hash.update(line.as_bytes());
        let (members, path) = text.rsplit_once(' ').ok_or_else(damaged)?;
        lines.insert(unescape(path).ok_or_else(damaged)?, members.to_owned());
    }
}

/// Calls `put` with the path and the members of each file of a tree. Adds what the tree takes of the disk to `bytes`.
fn each_line(
    layer: &Path,
    contents: &Contents,
    bytes: &mut u64,
    mut put: impl FnMut(&Path, &str) -> io::Result<()>,
) -> io::Result<()> {
    let mut linked = HashMap::new();
    let mut block = vec![0; BLOCK];
    let mut visit = |path: &Path, stat: &Stat, entry: Option<&Entry>| -> io::Result<bool> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let written = contents.of(stat).filter(|_| file_type == FileType::RegularFile);
        if entry.is_none() && written.is_none_or(|written| written.has_xattrs) {
            return Ok(false);
        }
        let is_linked = stat.st_nlink > 1 && file_type != FileType::Directory;
        let known = linked.get(&stat.st_ino).filter(|_| is_linked).cloned();
        if known.is_none() {
            *bytes += stat.st_blocks.unsigned_abs() * 512;
        }
        let content = match (known, written, entry) {
            (Some(known), ..) => known,
            (None, Some(written), _) => written.content.to_hex().to_string(),
            (None, None, Some(entry)) if file_type == FileType::RegularFile => content(entry, &mut block)?,
            (None, None, Some(entry)) if file_type == FileType::Symlink => {
                blake3::hash(entry.read_link()?.as_bytes()).to_hex().to_string()
            }
            _ => NONE.to_owned(),
        };
        if is_linked {
            if linked.len() >= MAX_LINKED {
                linked.clear();
            }
            linked.insert(stat.st_ino, content.clone());
        }
        let xattrs = entry.map_or(Ok(NONE.to_owned()), xattrs)?;
        put(path, &members(stat, &xattrs, &content))?;
        Ok(true)
    };
    let root = Dir::open(layer)?;
    match contents.is_empty() {
        true => root.walk(|path, entry| visit(path, entry.stat(), Some(entry)).map(drop)),
        false => root.walk_lazily(visit),
    }
}

fn members(stat: &Stat, xattrs: &str, content: &str) -> String {
    let (letter, has_size, is_device) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => ('d', false, false),
        FileType::RegularFile => ('f', true, false),
        FileType::Symlink => ('l', false, false),
        FileType::CharacterDevice => ('c', false, true),
        FileType::BlockDevice => ('b', false, true),
        FileType::Fifo => ('p', false, false),
        _ => ('s', false, false),
    };
    let mut members = format!("{letter} {:o} {} {} ", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    let _ = if has_size { write!(members, "{} ", stat.st_size) } else { write!(members, "{NONE} ") };
    let _ = write!(members, "{}.{:09} ", stat.st_mtime, stat.st_mtime_nsec);
    let _ = if is_device { write!(members, "{:x} ", stat.st_rdev) } else { write!(members, "{NONE} ") };
    let _ = write!(members, "{xattrs} {content}");
    members
}

/// The hash of the xattrs, those of overlayfs among them.
fn xattrs(entry: &Entry) -> io::Result<String> {
    let names = xattr_names(entry)?;
    if names.is_empty() {
        return Ok(NONE.to_owned());
    }
    let mut hash = Hasher::new();
    for name in names {
        let value = entry.xattr(&name)?;
        for part in [name.as_bytes(), &value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hash.finalize().to_hex()[..32].to_owned())
}

/// The hash of a file's blocks that are not zero.
fn content(entry: &Entry, block: &mut [u8]) -> io::Result<String> {
    let file = entry.open_to_read()?;
    let size = entry.stat().st_size.unsigned_abs();
    let is_sparse = entry.stat().st_blocks.unsigned_abs() * 512 < size;
    let mut hash = ContentHash::default();
    let mut at = 0;
    while at < size {
        interrupt::check()?;
        if is_sparse {
            match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => break,
                // A file system without this call has data everywhere.
                Err(_) => {}
                Ok(data) => at = data - data % BLOCK as u64,
            }
        }
        let got = read_block(&file, block, at)?;
        hash.seek(at);
        hash.update(&block[..got]);
        at += BLOCK as u64;
    }
    Ok(hash.finish().to_hex().to_string())
}

/// Reads a whole block, or what the file still has.
fn read_block(file: &File, block: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match file.read_at(&mut block[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A path in visible ASCII without spaces. The root is a dot.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'\\' | ..=b' ' | 0x7f.. => _ = write!(text, "\\{byte:03o}"),
            byte => text.push(char::from(byte)),
        }
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let (mut path, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            path.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(3)?;
        path.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
        rest = after;
    }
    Some(if path == b"." { Vec::new() } else { path })
}

/// The temporary name of the checksums of a layer that is being unpacked.
pub fn beside(layer: &Path) -> PathBuf {
    layer.with_extension("checksums")
}

/// Makes checksums visible, before their layer is.
///
/// # Errors
/// The error of making the directory or of renaming.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(dir) = to.parent() {
        super::publish::make_private_dir(dir)?;
    }
    fs::rename(from, to)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The differences as text, sorted.
    fn differences(layer: &Path, checksums: &Path) -> Vec<String> {
        let text = |found: &Difference| format!("{:?} {:?} {}", found.kind, found.path, found.members.join(","));
        let mut found: Vec<String> = verify(layer, checksums).unwrap().iter().map(text).collect();
        found.sort();
        found
    }

    #[test]
    fn a_changed_a_missing_and_an_added_file_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, checksums) = (scratch.path().join("layer"), scratch.path().join("checksums"));
        fs::create_dir_all(layer.join("d")).unwrap();
        for name in ["a", "b", "c", "d/e", "sp ace\n"] {
            fs::write(layer.join(name), name).unwrap();
        }
        fs::hard_link(layer.join("a"), layer.join("a2")).unwrap();
        symlink("b", layer.join("link")).unwrap();
        write(&layer, &Contents::default(), &checksums).unwrap();
        assert!(differences(&layer, &checksums).is_empty());
        assert!(size(&checksums).unwrap() > 0);

        let keep_times = |path: &Path, change: &dyn Fn()| {
            let times = fs::symlink_metadata(path).unwrap().modified().unwrap();
            change();
            File::open(path).unwrap().set_modified(times).unwrap();
        };
        let a = layer.join("a");
        keep_times(&a, &|| fs::write(&a, "A").unwrap());
        fs::set_permissions(layer.join("b"), PermissionsExt::from_mode(0o4755)).unwrap();
        keep_times(&layer.join("d"), &|| {
            fs::remove_file(layer.join("d/e")).unwrap();
            fs::write(layer.join("d/new"), "").unwrap();
        });
        keep_times(&layer, &|| {
            fs::remove_file(layer.join("link")).unwrap();
            symlink("c", layer.join("link")).unwrap();
        });
        let found = differences(&layer, &checksums);
        assert_eq!(found.len(), 6, "{found:?}");
        assert_eq!(found[0], "Added \"d/new\" ");
        assert_eq!(found[1..4], ["Changed \"a\" content", "Changed \"a2\" content", "Changed \"b\" mode"]);
        assert!(found[4].starts_with("Changed \"link\" ") && found[4].ends_with("content"), "{found:?}");
        assert_eq!(found[5], "Missing \"d/e\" ");
    }

    #[test]
    fn holes_count_as_zeros_and_cost_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let hash = |name: &str, make: &dyn Fn(&File)| {
            let file = File::create(scratch.path().join(name)).unwrap();
            make(&file);
            let dir = Dir::open(scratch.path()).unwrap();
            let entry = dir.entry(crate::overlay::beneath::Name::new(name.as_ref()).unwrap()).unwrap().unwrap();
            content(&entry, &mut vec![0; BLOCK]).unwrap()
        };
        let at = 5 * BLOCK as u64 + 10;
        let sparse = hash("sparse", &|file| file.write_all_at(b"data", at).unwrap());
        let dense = hash("dense", &|file| {
            file.write_all_at(&vec![0; at as usize], 0).unwrap();
            file.write_all_at(b"data", at).unwrap();
        });
        let moved = hash("moved", &|file| file.write_all_at(b"data", at + BLOCK as u64).unwrap());
        assert_eq!(sparse, dense);
        assert_ne!(sparse, moved);
        // A terabyte of zeros would take minutes.
        hash("huge", &|file| file.set_len(1 << 40).unwrap());
    }

    #[test]
    fn a_remembered_file_is_not_read_again() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = scratch.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("a"), "a").unwrap();
        fs::hard_link(layer.join("a"), layer.join("link")).unwrap();
        fs::write(layer.join("b"), "b").unwrap();
        let lines = |contents: &Contents| {
            let checksums = scratch.path().join("checksums");
            write(&layer, contents, &checksums).unwrap();
            let lines = fs::read_to_string(&checksums).unwrap();
            fs::remove_file(checksums).unwrap();
            lines
        };
        let known = |text: &str| {
            let (mut contents, mut hash) = (Contents::default(), ContentHash::default());
            hash.update(text.as_bytes());
            contents.remember(&Entry::of_open(File::open(layer.join("a")).unwrap()).unwrap(), &hash).unwrap();
            lines(&contents)
        };
        let read = lines(&Contents::default());
        assert_eq!(known("a"), read);
        let differing = known("x").lines().zip(read.lines()).filter(|(known, read)| known != read).count();
        assert_eq!(differing, 3, "both names of the file, and the last line");
        rustix::fs::setxattr(layer.join("a"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(known("a"), lines(&Contents::default()), "its xattrs are read");
    }

    #[test]
    fn checksums_that_are_damaged_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let (layer, checksums) = (scratch.path().join("layer"), scratch.path().join("checksums"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("a"), "a").unwrap();
        write(&layer, &Contents::default(), &checksums).unwrap();
        let whole = fs::read(&checksums).unwrap();
        let refused = |text: &[u8]| {
            fs::write(&checksums, text).unwrap();
            verify(&layer, &checksums).unwrap_err().kind() == io::ErrorKind::InvalidData
        };
        assert!(refused(&whole[..whole.len() - 1]) && refused(b""));
        assert!(refused(&[&whole[..], b"f"].concat()));
        assert!(refused(String::from_utf8(whole.clone()).unwrap().replacen("d ", "f ", 1).as_bytes()));
        fs::write(&checksums, &whole[..20]).unwrap();
        assert!(size(&checksums).is_err());
    }

    #[test]
    fn paths_come_back_from_their_text() {
        for path in [&b""[..], b"a/b", b"sp ace\\134\n\xff", b"..x", b"\xc3\xa4"] {
            let text = escape(Path::new(std::ffi::OsStr::from_bytes(path)));
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
            assert_eq!(unescape(&text).unwrap(), path);
        }
        assert!(unescape("a\\1").is_none() && unescape("\\999").is_none());
    }
}
