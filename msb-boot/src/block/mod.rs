//! A block root: disks that the guest's overlayfs merges. The image is a read-only EROFS, or one of its lower layers and one of each
//! layer above; the patches, if there are any, are one more EROFS; the scratch disk is writable. The supervisor opens each file and
//! the VMM inherits it, so no path is looked up for a guest.
//!
//! The host's kernel must never mount a file system that a guest wrote.

pub(crate) mod scratch;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use msb::overlay;
use msb::overlay::beneath::{Dir, Entry};
use msb::overlay::upper::{in_use, lock_to_read};
use msb::overlay::user_namespace;
use msb::overlay::whiteout::is_private_xattr;
use msb::record::{Record, Upper};
use msb::store::erofs::{self, Form, Mkfs, Part};
use msb::store::{chain, home, layout};
use msb::vm::boot::{self, Directory, MountStep};
use serde::{Deserialize, Serialize};

use scratch::Scratch;

use crate::disk;

/// The disks of a block root, in the order in which the guest numbers them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BlockRoot {
    /// The state directory. The supervisor has no environment that names it.
    home: PathBuf,
    /// The image's tree.
    base: Base,
    /// The name of that tree.
    base_name: Vec<u8>,
    /// The upper of msb-patch, if it changes anything.
    patches: Option<Upper>,
    /// The place for what the guest writes.
    pub scratch: Scratch,
}

/// The source of the image's tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Base {
    /// Layers in the store, which never change, so all boots share their images. [`BlockRoot::make_images`] makes them. The lowest
    /// image is first.
    Layers(Vec<Part>),
    /// Directories that may change, so each boot makes an image of its own.
    Directories(Box<Stack>),
    /// An EROFS image of the caller's.
    Image(PathBuf),
}

/// The directories that are merged into an image for one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stack {
    /// The topmost directory first.
    lower: Vec<PathBuf>,
    /// An upper that cannot be a disk of its own: the kernel's overlayfs has written redirects or metacopies into it, which a guest
    /// does not follow.
    upper: Option<Upper>,
}

impl BlockRoot {
    /// Checks the sources of the disks. Makes nothing.
    ///
    /// # Errors
    /// A source that is missing, or that mkfs.erofs is.
    pub(crate) fn check(lower: &[PathBuf], upper: Option<&Upper>, scratch: Scratch) -> anyhow::Result<Self> {
        let mkfs = Mkfs::find()?;
        let home = home::home()?;
        let patches = match upper {
            Some(upper) if has_changes(upper, lower).with_context(|| format!("upper {:?}", upper.dir))? => {
                Some(upper.clone())
            }
            _ => None,
        };
        let is_plain = |upper: &Upper| {
            let plain = Dir::open(&upper.dir).and_then(|dir| overlay::is_plain(&dir));
            plain.with_context(|| format!("upper {:?}", upper.dir))
        };
        let (patches, merged) = match patches {
            Some(upper) if !is_plain(&upper)? => (None, Some(upper)),
            patches => (patches, None),
        };
        let base = match mkfs.parts(&home, lower, 1).filter(|_| merged.is_none()) {
            Some(parts) => Base::Layers(parts),
            None => Base::Directories(Box::new(Stack { lower: lower.to_vec(), upper: merged })),
        };
        let base_name = Self::base_name(lower)?.into_encoded_bytes();
        Ok(Self { home, base, base_name, patches, scratch })
    }

    /// Uses images of single layers on top of one that the store has, if the VM has room for `most` disks.
    ///
    /// # Errors
    /// A mkfs.erofs that is gone.
    pub(crate) fn share_images(&mut self, most: usize) -> anyhow::Result<()> {
        let most = most.saturating_sub(self.disk_count() - 1).min(1 + boot::LAYERS.len());
        if let Base::Layers(parts) = &mut self.base
            && let [Part { lower, .. }] = parts.as_slice()
            && let Some(shared) = Mkfs::find()?.parts(&self.home, lower, most)
        {
            *parts = shared;
        }
        Ok(())
    }

    /// Makes the images of layers in the store that the store does not have yet. That takes long, so `say` is called first.
    ///
    /// # Errors
    /// A message with the path of the image and the cause.
    pub(crate) fn make_images(&self, say: impl Fn(&str)) -> anyhow::Result<()> {
        if let Base::Layers(parts) = &self.base {
            for part in parts {
                let what = match part.form {
                    Form::Merged => "the image's disk",
                    Form::Layer => "the disk of a layer",
                };
                Mkfs::find()?.kept(part, |path| say(&format!("making {what}, once: {}", path.display())))?;
            }
        }
        Ok(())
    }

    /// The state directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Keeps the scratch disk after the VM has ended, and returns its path. The disk of a VM without a name is linked under the VM's
    /// generated name.
    ///
    /// # Errors
    /// A disk that cannot be linked.
    pub(crate) fn keep(&self, name: &str, disk: &OwnedFd, record: &Record) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.scratch.path() {
            return Ok(path);
        }
        scratch::keep(&self.home, name, &self.base_name, record, disk)
    }

    /// Checks an EROFS image of the caller's, which is the whole tree. Makes nothing.
    ///
    /// # Errors
    /// A file that is missing, or is no EROFS image.
    pub(crate) fn of_image(image: &Path, scratch: Scratch) -> anyhow::Result<Self> {
        let home = home::home()?;
        open_image(image)?;
        let (base, base_name) = (Base::Image(image.to_owned()), image.as_os_str().as_encoded_bytes().to_vec());
        Ok(Self { home, base, base_name, patches: None, scratch })
    }

    /// The name of the tree below the scratch disk. A scratch disk belongs to one such tree.
    ///
    /// # Errors
    /// A message if no variable names the state directory.
    pub(crate) fn base_name(lower: &[PathBuf]) -> anyhow::Result<OsString> {
        let joined = || lower.iter().map(|dir| dir.as_os_str()).collect::<Vec<_>>().join(std::ffi::OsStr::new(":"));
        Ok(chain::chain_id_of(&home::home()?, lower).map_or_else(joined, |id| format!("sha256:{id}").into()))
    }

    /// How many disks it has: the image's, those of single layers, the patches' and the scratch disk.
    pub(crate) fn disk_count(&self) -> usize {
        let has_scratch_disk = !matches!(self.scratch, Scratch::Memory);
        1 + self.layers_on_top() + usize::from(self.patches.is_some()) + usize::from(has_scratch_disk)
    }

    /// How many layers have a disk of their own.
    fn layers_on_top(&self) -> usize {
        match &self.base {
            Base::Layers(parts) => parts.len() - 1,
            Base::Directories(_) | Base::Image(_) => 0,
        }
    }

    /// Opens the disks, and makes those that are made for one boot.
    ///
    /// # Errors
    /// A disk that is gone, or that another VM uses.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Disk>> {
        let images = layout::images(&self.home);
        let mut disks = Vec::new();
        // The scratch disk is opened first, because another VM may use it.
        let scratch = self.scratch.open(&self.home)?;
        let base = match &self.base {
            Base::Layers(parts) => parts.iter().map(|part| erofs::open(&part.image)).collect::<Result<_, _>>()?,
            Base::Image(image) => vec![open_image(image)?],
            Base::Directories(stack) => {
                let Stack { lower, upper } = stack.as_ref();
                let _lock = upper.as_ref().map(lock_upper).transpose()?;
                let layers: Vec<_> = upper.iter().map(|upper| &upper.dir).chain(lower).cloned().collect();
                vec![Mkfs::find()?.merged(&images, &layers)?.file]
            }
        };
        disks.extend(base.into_iter().map(|file| Disk { file: file.into(), writable: false }));
        if let Some(upper) = &self.patches {
            let _lock = lock_upper(upper)?;
            let image = Mkfs::find()?.layer(&images, &upper.dir)?;
            disks.push(Disk { file: image.file.into(), writable: false });
        }
        // It gets its name last, so that a boot that fails leaves no empty disk behind.
        if let Some(scratch) = scratch {
            disks.push(Disk { file: scratch.into_file()?.into(), writable: true });
        }
        Ok(disks)
    }

    /// The mounts with which the agent builds the root.
    pub(crate) fn mount_steps(&self) -> Vec<MountStep> {
        let mut letters = 'a'..;
        let mut device = || format!("/dev/vd{}", letters.next().unwrap_or('z'));
        let step = |source: String, target: &str, fstype: &str, options: &[&str]| MountStep {
            source,
            target: target.into(),
            fstype: fstype.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            directories: Vec::new(),
        };
        let mut steps = Vec::new();
        // Top first.
        let mut lower = Vec::new();
        let layers = boot::LAYERS.iter().take(self.layers_on_top());
        for target in [&boot::BASE].into_iter().chain(layers).chain(self.patches.as_ref().map(|_| &boot::PATCHES)) {
            steps.push(step(device(), target, "erofs", &["ro"]));
            lower.insert(0, *target);
        }
        let like = lower[0];
        let mut scratch = match self.scratch {
            Scratch::Memory => step("tmpfs".into(), boot::SCRATCH, "tmpfs", &["mode=0700"]),
            // noinit_itable: else the kernel writes the inode tables that mke2fs left out, which nobody needs.
            _ => step(device(), boot::SCRATCH, "ext4", &["noatime", "noinit_itable", "discard"]),
        };
        scratch.directories = vec![
            Directory { path: format!("{}/upper", boot::SCRATCH).into(), like: Some(like.into()) },
            Directory { path: format!("{}/work", boot::SCRATCH).into(), like: None },
        ];
        steps.push(scratch);
        let mut root = step("overlay".into(), boot::NEW_ROOT, "overlay", &[]);
        // A commit takes an upper in the plain form: whiteouts, opaque directories and complete files, no redirects or metacopies.
        root.options = vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}/upper", boot::SCRATCH),
            format!("workdir={}/work", boot::SCRATCH),
            "index=off".into(),
            "xino=off".into(),
        ];
        // In a user namespace, the patches have `user.` xattrs.
        let options = user_namespace::overlayfs_options("redirect_dir=nofollow,metacopy=off");
        root.options.extend(options.split(',').map(Into::into));
        steps.push(root);
        steps
    }
}

/// An open disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The file.
    pub file: OwnedFd,
    /// Whether the guest may write to it.
    pub writable: bool,
}

/// Opens an EROFS image of the caller's.
fn open_image(path: &Path) -> anyhow::Result<File> {
    let subject = || format!("disk {path:?}");
    let file = disk::open(path).with_context(subject)?;
    if !erofs::is_whole(&file).with_context(subject)? {
        bail!("{}: not an EROFS image, or a truncated one (msb-pack makes one: erofs:FILE)", subject());
    }
    Ok(file)
}

/// Locks an upper against changes while an image of it is made.
fn lock_upper(upper: &Upper) -> anyhow::Result<OwnedFd> {
    lock_to_read(&upper.work).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => anyhow!(in_use(&upper.dir)),
        _ => anyhow!(error).context(format!("work {:?}", upper.work)),
    })
}

/// Whether an upper changes anything.
fn has_changes(upper: &Upper, lower: &[PathBuf]) -> io::Result<bool> {
    let dir = Dir::open(&upper.dir)?;
    for child in dir.read()? {
        if !matches!(child?.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    let (upper, lower) = (dir.to_entry()?, Dir::open(&lower[0])?.to_entry()?);
    Ok(metadata(&upper)? != metadata(&lower)?)
}

/// Mode, uid, gid, mtime and xattrs.
type Metadata = (u32, u32, u32, i64, u64, Vec<(OsString, Vec<u8>)>);

fn metadata(entry: &Entry) -> io::Result<Metadata> {
    let stat = entry.stat();
    let mut xattrs = Vec::new();
    for name in entry.xattr_names()?.into_iter().filter(|name| !is_private_xattr(name)) {
        let value = entry.xattr(&name)?;
        xattrs.push((name, value));
    }
    xattrs.sort();
    Ok((stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec, xattrs))
}
