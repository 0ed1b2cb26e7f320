//! A root of disks, which the guest's overlayfs puts together: the image, read-only EROFS; the patches, a small EROFS more,
//! where there are any; and a writable top. Each is a file that the supervisor opens and the VMM inherits, so no path is
//! looked up for a guest.
//!
//! What may not happen here: a guest's file system that the host's own kernel mounts.

pub(crate) mod top;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use msb::overlay;
use msb::overlay::beneath::{Dir, Entry};
use msb::overlay::upper::lock_to_read;
use msb::overlay::whiteout::is_private_xattr;
use msb::record::Upper;
use msb::store::erofs::{self, Mkfs};
use msb::store::{chain, home, layout};
use msb::vm::boot::{self, Directory, MountStep};
use serde::{Deserialize, Serialize};

use top::Top;

/// The disks of a block root, in the order in which the guest has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Block {
    /// The state directory; the supervisor has no environment to ask.
    home: PathBuf,
    /// The image's tree.
    base: Base,
    /// What tells that tree from another.
    base_name: Vec<u8>,
    /// The upper of msb-patch, if it changes anything.
    patches: Option<Upper>,
    /// What takes what the guest writes.
    pub top: Top,
}

/// Where the image's tree comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Base {
    /// A kept image.
    Kept(PathBuf),
    /// Directories that may change, so that each boot makes an image of its own.
    Fresh(Box<Stack>),
}

/// The directories of an image that is made for one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stack {
    /// Top first.
    lower: Vec<PathBuf>,
    /// An upper that a guest could not read as a disk of its own: the kernel's overlayfs has written redirects or metacopies
    /// into it, which a guest does not follow. It is merged into the image.
    upper: Option<Upper>,
}

impl Block {
    /// Checks what the disks are made of, and makes the image where it is not kept already, which `say` is told of.
    ///
    /// # Errors
    /// Words for what is missing.
    pub(crate) fn check(
        lower: &[PathBuf],
        upper: Option<&Upper>,
        top: Top,
        say: impl Fn(&str),
    ) -> anyhow::Result<Self> {
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
        let base = match chain::chain_id_of(&home, lower).filter(|_| merged.is_none()) {
            Some(chain_id) => {
                let image = mkfs.kept(&chain_id, lower, |path| {
                    say(&format!("making the image's disk, once: {}", path.display()));
                })?;
                Base::Kept(image.path.ok_or_else(|| anyhow!("the image has no name"))?)
            }
            None => Base::Fresh(Box::new(Stack { lower: lower.to_vec(), upper: merged })),
        };
        let base_name = Self::base_name(lower)?.into_encoded_bytes();
        Ok(Self { home, base, base_name, patches, top })
    }

    /// The state directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Where what the guest wrote stays. The disk of a VM without a name gets one for it, that of the VM.
    ///
    /// # Errors
    /// What linking says.
    pub(crate) fn keep(&self, name: &str, disk: &OwnedFd) -> anyhow::Result<PathBuf> {
        match self.top.path() {
            Some(path) => Ok(path),
            None => top::keep(&self.home, name, &self.base_name, disk),
        }
    }

    /// The tree below the top, by a name that tells it from another.
    pub(crate) fn base_name(lower: &[PathBuf]) -> anyhow::Result<OsString> {
        let joined = || lower.iter().map(|dir| dir.as_os_str()).collect::<Vec<_>>().join(std::ffi::OsStr::new(":"));
        Ok(chain::chain_id_of(&home::home()?, lower).map_or_else(joined, |id| format!("sha256:{id}").into()))
    }

    /// Opens the disks for as long as the VM has them, and makes those that are made for this boot.
    ///
    /// # Errors
    /// Words for a disk that is gone, or that another VM has.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Disk>> {
        let images = layout::images(&self.home);
        let mut disks = Vec::new();
        // First, for it is the one that another VM may have.
        let top = self.top.open(&self.home)?;
        let base = match &self.base {
            Base::Kept(path) => erofs::open(path)?,
            Base::Fresh(stack) => {
                let Stack { lower, upper } = stack.as_ref();
                let _lock = upper.as_ref().map(lock_upper).transpose()?;
                let layers: Vec<_> = upper.iter().map(|upper| &upper.dir).chain(lower).cloned().collect();
                Mkfs::find()?.merged(&images, &layers)?.file
            }
        };
        disks.push(Disk { file: base.into(), writable: false });
        if let Some(upper) = &self.patches {
            let _lock = lock_upper(upper)?;
            let image = Mkfs::find()?.layer(&images, &upper.dir)?;
            disks.push(Disk { file: image.file.into(), writable: false });
        }
        // Last, so that a boot that fails leaves no disk behind that nothing is on.
        if let Some(top) = top {
            disks.push(Disk { file: top.into_file()?.into(), writable: true });
        }
        Ok(disks)
    }

    /// The way to the root, for the agent.
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
        let mut steps = vec![step(device(), boot::BASE, "erofs", &["ro"])];
        let mut lower = boot::BASE.to_owned();
        if self.patches.is_some() {
            steps.push(step(device(), boot::PATCHES, "erofs", &["ro"]));
            lower = format!("{}:{lower}", boot::PATCHES);
        }
        let like = if self.patches.is_some() { boot::PATCHES } else { boot::BASE };
        let mut top = match self.top {
            Top::Memory => step("tmpfs".into(), boot::TOP, "tmpfs", &["mode=0700"]),
            // The kernel would write the inode tables out that mke2fs has left to it, for nobody.
            _ => step(device(), boot::TOP, "ext4", &["noatime", "noinit_itable", "discard"]),
        };
        top.directories = vec![
            Directory { path: format!("{}/upper", boot::TOP).into(), like: Some(like.into()) },
            Directory { path: format!("{}/work", boot::TOP).into(), like: None },
        ];
        steps.push(top);
        let mut root = step("overlay".into(), boot::NEW_ROOT, "overlay", &[]);
        // What comes back by a commit is plain: whiteouts, opaque directories and whole files.
        root.options = vec![
            format!("lowerdir={lower}"),
            format!("upperdir={}/upper", boot::TOP),
            format!("workdir={}/work", boot::TOP),
            "redirect_dir=nofollow".into(),
            "metacopy=off".into(),
            "index=off".into(),
            "xino=off".into(),
        ];
        steps.push(root);
        steps
    }
}

/// A disk that is open.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The file.
    pub file: OwnedFd,
    /// Whether the guest may write to it.
    pub writable: bool,
}

/// Keeps an upper as it is while an image of it is made.
fn lock_upper(upper: &Upper) -> anyhow::Result<OwnedFd> {
    lock_to_read(&upper.work).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            anyhow!("upper {:?}: in use by msb-patch or msb-mount (unmount it first)", upper.dir)
        }
        _ => anyhow!(error).context(format!("work {:?}", upper.work)),
    })
}

/// Whether an upper shows anything that `lower` does not.
fn has_changes(upper: &Upper, lower: &[PathBuf]) -> io::Result<bool> {
    let dir = Dir::open(&upper.dir)?;
    for child in dir.read()? {
        if !matches!(child?.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    let (ours, below) = (dir.to_entry()?, Dir::open(&lower[0])?.to_entry()?);
    Ok(looks(&ours)? != looks(&below)?)
}

/// Mode, owner, mtime and xattrs.
type Looks = (u32, u32, u32, i64, u64, Vec<(OsString, Vec<u8>)>);

fn looks(entry: &Entry) -> io::Result<Looks> {
    let stat = entry.stat();
    let mut xattrs = Vec::new();
    for name in entry.xattr_names()?.into_iter().filter(|name| !is_private_xattr(name)) {
        let value = entry.xattr(&name)?;
        xattrs.push((name, value));
    }
    xattrs.sort();
    Ok((stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec, xattrs))
}
