//! A layer's tar stream, written as a directory in overlayfs form. What `.wh.` means and how overlayfs says it is decided
//! in [`msb::overlay::whiteout`]; every step goes through [`msb::overlay::beneath`], so no entry reaches outside.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::whiteout::{self, OciName};
use msb::record::owner::Id;
use rustix::fs::{FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::place::{Known, Place, Tree, components};
use crate::tape::{Attributes, Kind, Member, Skip, Tape, cut};

/// What a directory has that nobody described.
const DEFAULT: Attributes = Attributes {
    mode: 0o755,
    uid: Id::ROOT,
    gid: Id::ROOT,
    mtime: Timespec { tv_sec: 0, tv_nsec: 0 },
    xattrs: Vec::new(),
};

/// Unpacks a layer into the empty directory `root`. Returns the directories that the layer implies without listing
/// them, parents first: what they look like is for the layers below to say.
///
/// # Errors
/// Words for a malformed or hostile layer; the error of the system for a full disk.
pub(crate) fn unpack<R: BufRead + Skip>(tape: &mut Tape<R>, root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut tree = Tree::new(Dir::open(root)?);
    while let Some(member) = tape.next()? {
        let shown = String::from_utf8_lossy(&member.path).into_owned();
        put(&mut tree, tape, member).with_context(|| format!("entry {shown:?}"))?;
    }
    finish(&tree)
}

fn put<R: BufRead + Skip>(tree: &mut Tree, tape: &mut Tape<R>, member: Member) -> anyhow::Result<()> {
    let Member { path, link, kind, attributes, device, .. } = member;
    let parts = components(&path)?;
    let Some((&last, parents)) = parts.split_last() else {
        anyhow::ensure!(kind == Kind::Directory, "the layer's root must be a directory");
        return tree.list(PathBuf::new(), attributes);
    };
    if parents.iter().any(|part| whiteout::read_oci_name(part) != OciName::Plain) {
        return Ok(());
    }
    match whiteout::read_oci_name(last) {
        OciName::Plain => {}
        OciName::Reserved => return Ok(()),
        OciName::Whiteout(hidden) => {
            let parent = tree.parent(parents)?;
            return tree.whiteout(&parent, Name::new(hidden).context("a whiteout of no name")?);
        }
        OciName::Opaque => return Ok(whiteout::make_opaque(&tree.parent(parents)?.dir)?),
    }
    let parent = tree.parent(parents)?;
    let name = Name::new(last)?;
    match kind {
        Kind::Directory => tree.directory(&parent, name, attributes)?,
        Kind::File => {
            let file = over(tree, &parent, name, |dir| dir.create(name, Mode::RUSR | Mode::WUSR))?;
            fill(tape, &file)?;
            dress_file(&file, &attributes)?;
        }
        Kind::Symlink => {
            anyhow::ensure!(!link.is_empty(), "a symlink without a target");
            over(tree, &parent, name, |dir| dir.symlink(name, OsStr::from_bytes(&link)))?;
            dress(&made(&parent, name)?, &attributes)?;
        }
        Kind::Hardlink => {
            let target = tree.link_target(&link)?;
            let there = parent.dir.entry(name)?;
            // A second link to itself is there already, and must not be removed to be made.
            if there.is_none_or(|there| there.stat().st_ino != target.stat().st_ino) {
                over(tree, &parent, name, |dir| dir.link(name, &target))?;
            }
        }
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
            let file_type = match kind {
                Kind::CharDevice => FileType::CharacterDevice,
                Kind::BlockDevice => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let is_whiteout = kind == Kind::CharDevice && device == (0, 0);
            anyhow::ensure!(!is_whiteout, "a 0/0 character device, which overlayfs takes for a whiteout");
            let (major, minor) = device;
            let device = msb::overlay::device::number(major, minor)
                .ok_or_else(|| anyhow::anyhow!("Linux has no device {major}:{minor}"))?;
            over(tree, &parent, name, |dir| dir.mknod(name, file_type, Mode::RUSR | Mode::WUSR, device))?;
            dress(&made(&parent, name)?, &attributes)?;
        }
    }
    Ok(())
}

/// Makes a file; the last entry of a name wins over those before.
fn over<T>(tree: &mut Tree, parent: &Place, name: Name<'_>, make: impl Fn(&Dir) -> io::Result<T>) -> anyhow::Result<T> {
    match make(&parent.dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            tree.clear(parent, name)?;
            Ok(make(&parent.dir)?)
        }
        other => Ok(other?),
    }
}

fn made(parent: &Place, name: Name<'_>) -> io::Result<Entry> {
    parent.dir.entry(name)?.ok_or_else(|| Errno::NOENT.into())
}

fn fill<R: BufRead + Skip>(tape: &mut Tape<R>, mut file: &File) -> anyhow::Result<()> {
    loop {
        let (input, left) = tape.data();
        if left == 0 {
            return Ok(());
        }
        let data = input.fill_buf()?;
        if data.is_empty() {
            return Err(cut(io::ErrorKind::UnexpectedEof.into()));
        }
        let step = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&data[..step])?;
        input.consume(step);
        tape.took(step as u64);
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    Timestamps { last_access: attributes.mtime, last_modification: attributes.mtime }
}

/// The order is the one in which the kernel undoes nothing: a change of owner clears set-id bits and capabilities, an
/// ACL changes the mode, everything changes the times.
fn dress_file(file: &File, attributes: &Attributes) -> anyhow::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(attributes.uid.get())), Some(Gid::from_raw(attributes.gid.get())))?;
    for (name, value) in wanted(attributes) {
        tolerate(name, rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    Ok(rustix::fs::futimens(file, &times(attributes))?)
}

fn dress(entry: &Entry, attributes: &Attributes) -> anyhow::Result<()> {
    entry.set_owner(Some(attributes.uid.get()), Some(attributes.gid.get()))?;
    for (name, value) in wanted(attributes) {
        let set = entry.set_xattr(name, value, XattrFlags::empty());
        let set = set.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        // The kernel takes user xattrs on files and directories alone.
        if !(set == Err(Errno::PERM) && name.as_bytes().starts_with(b"user.")) {
            tolerate(name, set)?;
        }
    }
    if entry.file_type() != FileType::Symlink {
        entry.set_mode(Mode::from_raw_mode(attributes.mode))?;
    }
    Ok(entry.set_times(&times(attributes))?)
}

fn wanted(attributes: &Attributes) -> impl Iterator<Item = (&OsStr, &[u8])> {
    attributes.xattrs.iter().map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

/// A file system that has no place for a kind of xattr goes without, as docker does it.
fn tolerate(name: &OsStr, set: Result<(), Errno>) -> anyhow::Result<()> {
    match set {
        Err(Errno::NOTSUP) => Ok(()),
        other => other.with_context(|| format!("xattr {name:?}")),
    }
}

/// Gives the directories their attributes, now that nothing changes in them any more.
fn finish(tree: &Tree) -> anyhow::Result<Vec<PathBuf>> {
    let mut implied = Vec::new();
    for (path, known) in tree.dirs() {
        let attributes = match known {
            Known::Listed(attributes) => attributes,
            Known::New => &DEFAULT,
            Known::Implied => {
                implied.push(path.clone());
                &DEFAULT
            }
        };
        let dir = tree.root().descend(path)?.to_entry()?;
        dress(&dir, attributes).with_context(|| format!("directory {path:?}"))?;
    }
    Ok(implied)
}
