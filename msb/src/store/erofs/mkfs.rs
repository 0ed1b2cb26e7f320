//! mkfs.erofs(1): finding it, and making images with it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sha2::{Digest, Sha256};

use super::image::{Image, open_valid};
use super::merge::merge;
use super::part::{Form, Part};
use super::size::Size;
use super::superblock::{clear_time, is_complete, uuid};
use crate::interrupt::DeferExit;
use crate::jail;
use crate::lock::{self, Lock};
use crate::overlay::beneath::{Dir, Entry};
use crate::overlay::error::At;
use crate::overlay::whiteout;
use crate::program;
use crate::store::chain::MAX_LAYERS;
use crate::store::publish::{make_private_dir, remove_tree, staging_path, sync_parent};
use crate::store::{Error, layout};

/// The options that every image is made with. Changing them changes the images' names.
///
/// - Extended inodes: a compact one has no mtime of its own.
/// - No inline data, so the inodes lie together. A walk through a tree that is not in memory then takes a tenth of the reads (123, not
///   1702, for the 4 600 names in a small /usr; 154 with `--chunksize`, with which mkfs.erofs writes all data twice). The image is 3%
///   larger.
/// - No compression: a guest has nothing to decompress, and the image takes the size of its files once more. (With lz4 it took 0.59 of
///   that, or 0.55 in clusters of 64 KiB, as many reads, one a file, and 1.2 times the time of a cold tar of /usr under emulation.)
/// - No checksum of the superblock, in which the time is changed.
const OPTIONS: &[&str] = &["-E", "force-inode-extended,noinline_data,nosbcrc"];

/// A directory in which an image is made, in the directory of the images. It is removed when this is dropped.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    /// It tells the directory from one that a killed process has left.
    _lock: OwnedFd,
    _deferred: DeferExit,
}

impl Draft {
    /// Makes the directory and an empty image in it.
    fn begin(dir: &Path) -> io::Result<(Self, File)> {
        let deferred = DeferExit::new();
        let path = staging_path(&dir.join("image"));
        DirBuilder::new().mode(0o700).create(&path)?;
        let draft = Self { _lock: lock::open(&path, Lock::TryExclusive)?, path, _deferred: deferred };
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(draft.image())?;
        Ok((draft, file))
    }

    fn image(&self) -> PathBuf {
        self.path.join("image")
    }

    /// A directory for a mount that does not hide the image.
    fn mount_point(&self) -> io::Result<PathBuf> {
        let dir = self.path.join("merged");
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = remove_tree(&self.path);
    }
}

/// What a tree has, before an image of it is made.
#[derive(Default)]
struct Content {
    size: Size,
    has_trusted_xattrs: bool,
}

impl Content {
    fn add(&mut self, path: &Path, entry: &Entry) -> io::Result<()> {
        self.size.add(path, entry);
        self.has_trusted_xattrs = self.has_trusted_xattrs
            || entry.xattr_names()?.iter().any(|name| name.as_encoded_bytes().starts_with(b"trusted."));
        Ok(())
    }
}

/// An installed mkfs.erofs.
#[derive(Clone, Debug)]
pub struct Mkfs {
    program: PathBuf,
    /// Which one it is: another release has another size or mtime. It is in the names of the images of merged layers.
    identity: String,
    /// The same in the names of the images of single layers.
    identity_of_layers: String,
}

impl Mkfs {
    /// Finds mkfs.erofs on PATH, and in the directories where Debian installs it.
    ///
    /// # Errors
    /// [`Error::Host`] with the package to install.
    pub fn find() -> Result<Self, Error> {
        let Some(program) = program::find("mkfs.erofs", &["/usr/bin", "/usr/sbin", "/sbin"]) else {
            return Err(Error::Host("mkfs.erofs is not installed (apt-get install erofs-utils)".into()));
        };
        let meta = fs::metadata(&program)?;
        let mut identity = Sha256::new();
        identity.update(format!("{}.{}.{}", meta.size(), meta.mtime(), meta.mtime_nsec()));
        identity.update(OPTIONS.join(" "));
        let identity_of_layers = hex::encode(&identity.clone().chain_update(" layer").finalize()[..6]);
        Ok(Self { program, identity: hex::encode(&identity.finalize()[..6]), identity_of_layers })
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether a kept image was made by this program.
    pub fn made(&self, image: &Path) -> bool {
        layout::image_mkfs(image)
            .is_some_and(|identity| identity == self.identity || identity == self.identity_of_layers)
    }

    /// The path of the kept image of a stack of layers. The image may be missing.
    pub(super) fn kept_path(&self, home: &Path, chain_id: &str) -> PathBuf {
        layout::image(home, chain_id, &self.identity)
    }

    /// The path of the kept image of the topmost layer of a stack.
    pub(super) fn kept_layer_path(&self, home: &Path, chain_id: &str) -> PathBuf {
        layout::image(home, chain_id, &self.identity_of_layers)
    }

    /// A kept image of a stack of layers in the store. It is made if it is missing or damaged; `started` is called before that, since
    /// it takes a while.
    ///
    /// # Errors
    /// The error names the image.
    pub fn kept(&self, part: &Part, started: impl FnOnce(&Path)) -> Result<Image, Error> {
        let path = &part.image;
        let dir = path.parent().unwrap_or(path);
        make_private_dir(dir).at(|| format!("{dir:?}"))?;
        let uuid = uuid(path);
        let subject = || format!("image {path:?}");
        if let Some(file) = open_valid(path, &uuid).at(subject)? {
            return Ok(Image { file, path: Some(path.clone()), made: false });
        }
        let lock = lock::make(&layout::image_lock(path), Lock::Exclusive).at(subject)?;
        // The process that held the lock may have made it.
        if let Some(file) = open_valid(path, &uuid).at(subject)? {
            return Ok(Image { file, path: Some(path.clone()), made: false });
        }
        started(path);
        // For msb-store: the layers that the image is made of or is on top of. A visible image has them.
        let names: Vec<_> = part.lower.iter().filter_map(|layer| layer.file_name()?.to_str()).collect();
        lock.set_len(0).and_then(|()| (&lock).write_all(names.join("\n").as_bytes())).at(subject)?;
        let make = || -> Result<(), Error> {
            let (draft, file) = match part.form {
                Form::Merged => self.make_merged(dir, &part.lower, &uuid)?,
                Form::Layer => self.make_layer(dir, &part.lower[0], &uuid)?,
            };
            file.sync_all()?;
            fs::rename(draft.image(), path)?;
            Ok(sync_parent(path)?)
        };
        make().at(subject)?;
        let file = open_valid(path, &uuid)?;
        let file = file.ok_or_else(|| Error::Host("mkfs.erofs made a damaged image".into())).at(subject)?;
        Ok(Image { file, path: Some(path.clone()), made: true })
    }

    /// An image without a name of the merged tree of `lower` (top first), on the file system of `dir`.
    ///
    /// # Errors
    /// The error of mkfs.erofs, or of the step before it.
    pub fn merged(&self, dir: &Path, lower: &[PathBuf]) -> Result<Image, Error> {
        make_private_dir(dir).at(|| format!("{dir:?}"))?;
        let (_, file) = self.make_merged(dir, lower, &uuid(dir)).at(|| format!("image of {:?}", lower[0]))?;
        Ok(Image { file, path: None, made: true })
    }

    /// An image without a name of a single layer, with its whiteouts and opaque directories, on the file system of `dir`.
    ///
    /// # Errors
    /// As [`Self::merged`].
    pub fn layer(&self, dir: &Path, layer: &Path) -> Result<Image, Error> {
        let (_, file) = self.make_layer(dir, layer, &uuid(layer)).at(|| format!("image of {layer:?}"))?;
        Ok(Image { file, path: None, made: true })
    }

    fn make_layer(&self, dir: &Path, layer: &Path, uuid: &str) -> Result<(Draft, File), Error> {
        let (draft, file) = Draft::begin(dir)?;
        let mut content = Content::default();
        Dir::open(layer)?.walk(|path, entry| {
            // The guest mounts it as root, and then reads the trusted xattr alone.
            if entry.is_dir() {
                whiteout::promote_opaque(entry)?;
            }
            content.add(path, entry)
        })?;
        content.size.check(&file)?;
        self.run(&content, &draft, &file, layer, uuid)?;
        Ok((draft, file))
    }

    fn make_merged(&self, dir: &Path, lower: &[PathBuf], uuid: &str) -> Result<(Draft, File), Error> {
        let (draft, file) = Draft::begin(dir)?;
        if lower.len() > MAX_LAYERS {
            return Err(Error::Content(format!("{} layers, and overlayfs takes {MAX_LAYERS} at most", lower.len())));
        }
        // The mount namespace is that of the thread and of its children.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let root = merge(&draft.mount_point()?, lower).at(|| "merging the layers")?;
                let mut content = Content::default();
                Dir::open(&root)?.walk(|path, entry| content.add(path, entry))?;
                content.size.check(&file)?;
                self.run(&content, &draft, &file, &root, uuid)
            });
            made.join().unwrap_or_else(|_| Err(Error::Host("merging the layers: the thread panicked".into())))
        })?;
        Ok((draft, file))
    }

    /// Runs the program in a jail.
    fn run(&self, content: &Content, draft: &Draft, file: &File, tree: &Path, uuid: &str) -> Result<(), Error> {
        let mut mkfs = jail::mkfs::Mkfs::new(&self.program, &draft.path, tree, content.has_trusted_xattrs, file)?;
        mkfs.command().args(OPTIONS).args(["-d1", "-U", uuid, "--", jail::mkfs::Mkfs::IMAGE, jail::mkfs::Mkfs::TREE]);
        let made = mkfs.run();
        if made.is_ok() && is_complete(file, uuid)? {
            // The user of a VM opens it. Only the store's owner can enter the directory.
            rustix::fs::fchmod(file, Mode::from_raw_mode(0o444)).map_err(io::Error::from)?;
            return Ok(clear_time(file)?);
        }
        if rustix::fs::fstatvfs(file).is_ok_and(|left| left.f_bavail < 16) {
            let message = format!("{:?}: no space left for the image (make room, or set MSB_HOME)", self.program);
            return Err(Error::Host(message));
        }
        made.and(Err(Error::Host(format!("{:?} made a damaged image", self.program))))
    }
}
