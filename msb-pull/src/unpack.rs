//! Unpacks the tar stream of a layer into a directory in overlayfs form. [`msb::overlay::whiteout`] decides what `.wh.` names
//! mean and what overlayfs has in their place. Every step goes through [`msb::overlay::beneath`], so no entry can leave the
//! directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use msb::overlay::attributes::{Attributes, Tolerance, set_xattr};
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::user_namespace;
use msb::overlay::whiteout::{self, OciName};
use msb::record::owner::Id;
use msb::store::checksums::{ContentHash, Contents};
use msb_archive::{Kind, Member, Metadata, Region, Skip, Tape, truncated};
use rustix::fs::{FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use crate::budget::Budget;
use crate::directories::Origin;
use crate::lower_link::Dependent;
use crate::tree::{Parent, Tree, components};

/// The metadata of a directory without an entry of its own.
const DEFAULT: Metadata = Metadata {
    mode: 0o755,
    uid: Id::ROOT,
    gid: Id::ROOT,
    mtime: Timespec { tv_sec: 0, tv_nsec: 0 },
    xattrs: Vec::new(),
};

/// A layer that was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// What depends on the layers below: directories that the layer has no entry for, and links to files that it does not have.
    pub(crate) dependent: Dependent,
    /// The hashes of its files, for the checksums.
    pub(crate) contents: Contents,
}

/// Unpacks a layer into the empty directory `root`.
///
/// # Errors
/// A message for a malformed or hostile layer; the system's error for a full disk.
pub(crate) fn unpack<R: BufRead + Skip>(tape: &mut Tape<R>, root: &Path, budget: &Budget) -> anyhow::Result<Unpacked> {
    let (mut tree, mut contents) = (Tree::new(root)?, Contents::default());
    while let Some(member) = tape.next_member()? {
        let shown = String::from_utf8_lossy(&member.path).into_owned();
        put(&mut tree, tape, member, budget, &mut contents).with_context(|| format!("entry {shown:?}"))?;
    }
    Ok(Unpacked { dependent: finish(tree)?, contents })
}

fn put<R: BufRead + Skip>(
    tree: &mut Tree,
    tape: &mut Tape<R>,
    member: Member,
    budget: &Budget,
    contents: &mut Contents,
) -> anyhow::Result<()> {
    budget.file()?;
    let Member { path, link, kind, size, regions, metadata, device } = member;
    let parts = components(&path)?;
    let Some((&last, parents)) = parts.split_last() else {
        anyhow::ensure!(kind == Kind::Directory, "the layer's root must be a directory");
        return tree.list(Path::new(""), metadata);
    };
    let is_aufs_link = kind == Kind::File && parents == [whiteout::aufs_links()];
    if !is_aufs_link && parents.iter().any(|part| whiteout::read_oci_name(part) != OciName::Plain) {
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
        Kind::Directory => tree.directory(&parent, name, metadata)?,
        Kind::File => {
            // Other users cannot enter the scratch directory, so the file is created with its final permissions.
            let mode = Mode::from_raw_mode(metadata.mode & 0o777);
            let file = replace(tree, &parent, name, |dir| dir.create(name, mode))?;
            let content = fill(tape, &file, size, regions.as_deref(), budget)?;
            let entry = Entry::of_open(file)?;
            apply_attributes(&entry, &metadata)?;
            match content {
                // Its inode number may become that of another file.
                _ if is_aufs_link => contents.forget(&entry),
                Some(content) => contents.remember(&entry, &content)?,
                // It may have the inode number of a file that it replaces.
                None => contents.forget(&entry),
            }
        }
        Kind::Symlink => {
            anyhow::ensure!(!link.is_empty(), "a symlink without a target");
            replace(tree, &parent, name, |dir| dir.symlink(name, OsStr::from_bytes(&link)))?;
            apply_attributes(&made(&parent, name)?, &metadata)?;
        }
        Kind::Hardlink => {
            let target = tree.link_target(&link, parent.path.join(last))?;
            let existing = parent.dir.entry(name)?;
            // A hardlink of a file to itself must not remove the file first.
            if existing.is_none_or(|existing| existing.stat().st_ino != target.stat().st_ino) {
                replace(tree, &parent, name, |dir| dir.link(name, &target))?;
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
            let make = |dir: &Dir| dir.mknod(name, file_type, Mode::RUSR | Mode::WUSR, device);
            match replace(tree, &parent, name, make) {
                Err(error) if kind != Kind::Fifo && is_of_namespace(&error) => budget.left_out(),
                other => {
                    other?;
                    apply_attributes(&made(&parent, name)?, &metadata)?;
                }
            }
        }
    }
    Ok(())
}

/// Makes a file. It replaces that of an earlier entry with the same name.
fn replace<T>(
    tree: &mut Tree,
    parent: &Parent,
    name: Name<'_>,
    make: impl Fn(&Dir) -> io::Result<T>,
) -> anyhow::Result<T> {
    match make(&parent.dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            tree.clear(parent, name)?;
            Ok(make(&parent.dir)?)
        }
        other => Ok(other?),
    }
}

/// Whether this is the kernel's answer for a device node in a user namespace. Root of the host gets it for another reason: in a container
/// without CAP_MKNOD, or on a file system without device nodes.
fn is_of_namespace(error: &anyhow::Error) -> bool {
    error.downcast_ref().and_then(Errno::from_io_error) == Some(Errno::PERM) && !user_namespace::is_initial()
}

fn made(parent: &Parent, name: Name<'_>) -> io::Result<Entry> {
    parent.dir.entry(name)?.ok_or_else(|| Errno::NOENT.into())
}

/// Writes the member's data. What a sparse file does not list stays a hole. Returns the hash of the content, except for a sparse file.
fn fill<R: BufRead + Skip>(
    tape: &mut Tape<R>,
    mut file: &File,
    size: u64,
    regions: Option<&[Region]>,
    budget: &Budget,
) -> anyhow::Result<Option<ContentHash>> {
    let Some(regions) = regions else {
        let mut content = ContentHash::default();
        copy(tape, file, size, budget, |data| content.update(data))?;
        return Ok(Some(content));
    };
    let data: u64 = regions.iter().map(|region| region.length).sum();
    budget.holes(size - data)?;
    for region in regions {
        file.seek(SeekFrom::Start(region.offset))?;
        copy(tape, file, region.length, budget, |_| {})?;
    }
    file.set_len(size)?;
    Ok(None)
}

fn copy<R: BufRead + Skip>(
    tape: &mut Tape<R>,
    mut file: &File,
    mut length: u64,
    budget: &Budget,
    mut written: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    while length > 0 {
        let (input, _) = tape.data();
        let data = input.fill_buf()?;
        if data.is_empty() {
            return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
        }
        let step = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        budget.data(step as u64)?;
        file.write_all(&data[..step])?;
        written(&data[..step]);
        input.consume(step);
        tape.consumed(step as u64);
        length -= step as u64;
    }
    Ok(())
}

fn apply_attributes(entry: &Entry, metadata: &Metadata) -> anyhow::Result<()> {
    let times = Some(Timestamps { last_access: metadata.mtime, last_modification: metadata.mtime });
    let attributes = Attributes { uid: metadata.uid.get(), gid: metadata.gid.get(), mode: metadata.mode, times };
    attributes.apply(entry, entry.stat(), || {
        for (name, value) in &metadata.xattrs {
            let name = OsStr::from_bytes(name);
            set_xattr(entry, name, value, Tolerance::Refused).with_context(|| format!("xattr {name:?}"))?;
        }
        Ok(!metadata.xattrs.is_empty())
    })
}

/// The most bytes of the list of directories that only have entries below them. Real layers have few.
const MAX_IMPLIED: usize = 16 << 20;

/// Applies the attributes of the directories, now that all of their entries exist.
fn finish(mut tree: Tree) -> anyhow::Result<Dependent> {
    let top = tree.parent(&[])?;
    tree.clear(&top, Name::new(whiteout::aufs_links())?)?;
    let (mut implied, mut bytes, links) = (Vec::new(), 0, tree.take_lower_links());
    tree.for_each_dir(|path, origin, dir| {
        let metadata = if let Origin::Listed(metadata) = origin { metadata } else { &DEFAULT };
        apply_attributes(&dir, metadata).with_context(|| format!("directory {path:?}"))?;
        if let Origin::Implied = origin {
            bytes += size_of::<PathBuf>() + path.as_os_str().len();
            ensure!(bytes <= MAX_IMPLIED, "the layer has too many directories without entries of their own");
            implied.push(path.to_owned());
        }
        Ok(())
    })?;
    Ok(Dependent { implied, links })
}
