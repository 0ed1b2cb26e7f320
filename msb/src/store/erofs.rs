//! EROFS images of trees in overlayfs form, by mkfs.erofs(1): the read-only disks under a block root.
//!
//! The image of a stack of the store's layers is made once and kept under `$MSB_HOME/erofs`, by the stack's chain ID and by
//! the mkfs.erofs that made it. It has no name until it is whole and on disk, so what has one is whole; who makes it holds a
//! lock, so several that want it at once make it once. The kernel's own overlayfs merges the layers, in a mount namespace
//! that ends with the thread: whiteouts, opaque directories and hardlinks mean there what they mean in the guest.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use sha2::{Digest, Sha256};

use crate::interrupt::{self, DeferExit};
use crate::overlay::beneath::{Dir, Entry};
use crate::overlay::whiteout;
use crate::store::home;

/// What every image is made with. Changing it changes the images' names.
///
/// Extended inodes: a compact one has no mtime of its own. No file's end beside its inode: so the inodes lie together, and a walk
/// through a tree that nothing of is in memory takes a tenth of the reads (123, not 1702, for the 4 600 names in a small /usr;
/// 154 with `--chunksize`, which has mkfs.erofs write all data twice); the image is larger by 3 in 100. Plain data: a guest has
/// nothing to decompress, and the image takes the room of its files once more. (With lz4 it took 0.59 of that room, or 0.55 in
/// clusters of 64 KiB, for as many reads, one a file, and 1.2 times the time of a cold tar of /usr under emulation.)
const OPTIONS: &[&str] = &["-E", "force-inode-extended,noinline_data"];

/// Where the images are in the state directory.
pub const DIR: &str = "erofs";
/// What the name of an image ends in.
pub const SUFFIX: &str = ".erofs";
/// What the name of an image's lock ends in.
pub const LOCK_SUFFIX: &str = ".lock";

/// Where the superblock is, its magic, and what it says (the kernel's `fs/erofs/erofs_fs.h`).
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// What an image is counted in, in bytes.
const BLOCK: u64 = 4096;

/// The most directories that one overlayfs takes (`OVL_MAX_STACK`), one for our empty one.
const MOST_LAYERS: usize = 499;

/// A mkfs.erofs that is installed here.
#[derive(Clone, Debug)]
pub struct Mkfs {
    program: PathBuf,
    /// Which it is: another release has another size or time.
    identity: String,
}

/// An image, open, with a shared lock by which it is known to be in use.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub file: File,
    /// Where it is; `None` for one without a name, which is gone with the last who has it open.
    pub path: Option<PathBuf>,
    /// Whether this call made it.
    pub made: bool,
}

/// What the files of a tree take in an image: what is a hole in a file is zeros there, and a file that a guest has committed may
/// be of any length.
#[derive(Debug, Default)]
struct Need {
    bytes: u64,
    /// The size of the longest file, and its path.
    longest: (u64, PathBuf),
    /// Files of several names, by device and number.
    linked: HashSet<(u64, u64)>,
}

impl Mkfs {
    /// Finds it on PATH and where Debian has it.
    ///
    /// # Errors
    /// Words with what to install.
    pub fn find() -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
        let fixed = ["/usr/bin", "/usr/sbin", "/sbin"].into_iter().map(PathBuf::from);
        let found = dirs.chain(fixed).map(|dir| dir.join("mkfs.erofs")).find_map(|program| {
            let meta = fs::metadata(&program).ok()?;
            (meta.is_file() && meta.permissions().mode() & 0o111 != 0).then_some((program, meta))
        });
        let Some((program, meta)) = found else {
            bail!("mkfs.erofs is not installed (apt-get install erofs-utils)");
        };
        let mut identity = Sha256::new();
        identity.update(format!("{}.{}.{}", meta.size(), meta.mtime(), meta.mtime_nsec()));
        identity.update(OPTIONS.join(" "));
        Ok(Self { program, identity: hex(&identity.finalize()[..6]) })
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether this one has made a kept image.
    pub fn made(&self, image: &Path) -> bool {
        let stem = image.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        stem.rsplit_once('-').is_some_and(|(_, identity)| identity == self.identity)
    }

    /// The kept image of a stack of the store's layers, `lower` top first, made if it is missing or damaged; `started` is
    /// called before that, which takes a while.
    ///
    /// # Errors
    /// Words that name the image.
    pub fn kept(&self, chain_id: &str, lower: &[PathBuf], started: impl FnOnce(&Path)) -> anyhow::Result<Image> {
        let dir = home::home()?.join(DIR);
        home::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
        let path = dir.join(format!("{chain_id}-{}{SUFFIX}", self.identity));
        let uuid = uuid(&path);
        let subject = || format!("image {path:?}");
        if let Some(file) = open_kept(&path, &uuid).with_context(subject)? {
            return Ok(Image { file, path: Some(path), made: false });
        }
        let lock = path.with_extension(&LOCK_SUFFIX[1..]);
        let lock = File::options().create(true).append(true).mode(0o600).open(&lock).with_context(subject)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).with_context(subject)?;
        // Whoever held the lock may have made it meanwhile.
        if let Some(file) = open_kept(&path, &uuid).with_context(subject)? {
            return Ok(Image { file, path: Some(path), made: false });
        }
        started(&path);
        let make = || -> anyhow::Result<()> {
            let _deferred = DeferExit::new();
            let file = self.unnamed(&dir, lower, &uuid)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o400))?;
            file.sync_all()?;
            let aside = home::aside(&path);
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, unnamed, CWD, &aside, AtFlags::SYMLINK_FOLLOW)?;
            fs::rename(&aside, &path).inspect_err(|_| drop(fs::remove_file(&aside)))?;
            Ok(home::sync_parent(&path)?)
        };
        make().with_context(subject)?;
        // For whoever tidies up: what the image is of.
        let names: Vec<_> = lower.iter().filter_map(|layer| layer.file_name()?.to_str()).collect();
        lock.set_len(0).and_then(|()| (&lock).write_all(names.join("\n").as_bytes())).with_context(subject)?;
        let file = open_kept(&path, &uuid)?.ok_or_else(|| anyhow!("{}: damaged as soon as it was made", subject()))?;
        Ok(Image { file, path: Some(path), made: true })
    }

    /// An image without a name of what `lower` (top first) shows merged, in the file system of `dir`.
    ///
    /// # Errors
    /// Words of mkfs.erofs's own, or for the step before it.
    pub fn merged(&self, dir: &Path, lower: &[PathBuf]) -> anyhow::Result<Image> {
        home::make_private_dir(dir).with_context(|| format!("{dir:?}"))?;
        let file = self.unnamed(dir, lower, &uuid(dir)).with_context(|| format!("image of {:?}", lower[0]))?;
        Ok(Image { file, path: None, made: true })
    }

    /// An image without a name of one layer as it is, whiteouts and opaque directories kept, in the file system of `dir`.
    ///
    /// # Errors
    /// As [`Self::merged`].
    pub fn layer(&self, dir: &Path, layer: &Path) -> anyhow::Result<Image> {
        let subject = || format!("image of {layer:?}");
        let file = unnamed_file(dir).with_context(subject)?;
        // Who mounts it is root of the guest.
        let mut need = Need::default();
        let seen = Dir::open(layer)?.walk(|path, entry| {
            need.add(path, entry);
            if entry.is_dir() { whiteout::promote_opaque(entry) } else { Ok(()) }
        });
        seen.with_context(subject)?;
        need.check(&file).with_context(subject)?;
        self.run(Command::new(&self.program), &file, layer, &uuid(layer)).with_context(subject)?;
        Ok(Image { file, path: None, made: true })
    }

    fn unnamed(&self, dir: &Path, lower: &[PathBuf], uuid: &str) -> anyhow::Result<File> {
        let file = unnamed_file(dir)?;
        if lower.len() > MOST_LAYERS {
            bail!("{} layers are more than the {MOST_LAYERS} that overlayfs takes", lower.len());
        }
        // The thread's mounts are its own, and its children's, and gone with them.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let root = merge(dir, lower).context("merging the layers")?;
                let mut need = Need::default();
                Dir::open(&root)?.walk(|path, entry| {
                    need.add(path, entry);
                    Ok(())
                })?;
                need.check(&file)?;
                let mut command = Command::new(&self.program);
                command.current_dir(dir);
                self.run(command, &file, &root, uuid)
            });
            made.join().unwrap_or_else(|_| Err(anyhow!("merging the layers: the thread panicked")))
        })?;
        Ok(file)
    }

    fn run(&self, mut command: Command, file: &File, source: &Path, uuid: &str) -> anyhow::Result<()> {
        // stdin is the one descriptor that a child has under a number that is known here, and mkfs.erofs reads nothing.
        command.args(OPTIONS).args(["-d1", "-U", uuid, "--", "/proc/self/fd/0"]).arg(source);
        command.env_clear().stdin(Stdio::from(file.try_clone()?)).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = interrupt::output(&mut command).with_context(|| format!("{:?}", self.program))?;
        if output.status.success() && whole(file, uuid)? {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        let is_full = rustix::fs::fstatvfs(file).is_ok_and(|left| left.f_bavail < 16);
        match is_full {
            true => bail!("{:?}: no space left for the image (make room, or set MSB_HOME)", self.program),
            false => bail!("{:?} ended with {}: {words}", self.program, output.status),
        }
    }
}

/// The chain ID of a stack, top first, where all of it is in the store of `home`: what is there never changes. For layers
/// whose diff_id is their name it is the one of the OCI image specification.
pub fn chain_id(home: &Path, lower: &[PathBuf]) -> Option<String> {
    let store = home.join("layers/sha256");
    let mut chain: Option<String> = None;
    for layer in lower.iter().rev() {
        let id = layer.strip_prefix(&store).ok()?.to_str()?;
        if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        chain = Some(match chain {
            None => id.to_owned(),
            Some(below) => hex(&Sha256::digest(format!("sha256:{below} sha256:{id}"))),
        });
    }
    chain
}

/// The merged root, mounted in a mount namespace that this thread makes for itself.
fn merge(stand: &Path, lower: &[PathBuf]) -> anyhow::Result<PathBuf> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("a mount namespace (this takes root)")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    // Only now: overlayfs takes no layer from another namespace. And before a file system hides them.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |dir: &PathBuf| rustix::fs::open(dir, flags, Mode::empty()).with_context(|| format!("{dir:?}"));
    let layers: Vec<OwnedFd> = lower.iter().map(open).collect::<Result<_, _>>()?;
    rustix::mount::mount("merge", stand, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0700")?;
    // This thread has a working directory of its own now.
    std::env::set_current_dir(stand)?;
    fs::create_dir("root")?;
    // overlayfs wants two layers at least, and merges no whiteouts away in one.
    fs::create_dir("empty")?;
    let mut names = String::new();
    for (number, layer) in layers.iter().enumerate() {
        // Short names without colons: all of them have to fit into one page.
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", layer.as_raw_fd()), number.to_string())?;
        names.push_str(&format!("{number}:"));
    }
    let options = std::ffi::CString::new(format!("lowerdir={names}empty,xino=off,redirect_dir=on,metacopy=on"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    rustix::mount::mount("overlay", "root", "overlay", flags, options.as_c_str()).context("overlayfs")?;
    Ok(stand.join("root"))
}

/// A file without a name in `dir`: a run that is killed leaves nothing.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    Ok(rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?.into())
}

impl Need {
    /// Counts what a tree shows, a file of several names once.
    fn add(&mut self, path: &Path, entry: &Entry) {
        let stat = entry.stat();
        let is_new = stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino));
        if entry.file_type() == FileType::RegularFile && is_new {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            self.bytes = self.bytes.saturating_add(size.next_multiple_of(BLOCK));
            if size > self.longest.0 {
                self.longest = (size, Path::new("/").join(path));
            }
        }
    }

    /// Refuses a tree that the file system of `image` has no room for, before that is full.
    fn check(&self, image: &File) -> anyhow::Result<()> {
        let left = rustix::fs::fstatvfs(image)?;
        let room = left.f_bavail.saturating_mul(left.f_frsize);
        if self.bytes > room {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let (size, path) = &self.longest;
            bail!(
                "no space left for the image: its files have {} MiB with their holes, {} of them in {path:?}, and {} MiB are free \
                 (make room, set MSB_HOME, or mount the root with msb-mount)",
                mib(self.bytes),
                mib(*size),
                room >> 20,
            );
        }
        Ok(())
    }
}

/// Opens a kept image with a shared lock; `None` where it is missing, or is not what its name says.
fn open_kept(path: &Path, uuid: &str) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    rustix::fs::flock(&file, FlockOperation::LockShared)?;
    // Somebody who cleans up may have had it before.
    let is_there = fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok((is_there && whole(&file, uuid)?).then_some(file))
}

/// The store's names of the layers that a kept image is of, as far as they are known.
///
/// # Errors
/// What reading says.
pub fn layers_of(image: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(image.with_extension(&LOCK_SUFFIX[1..]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Opens an image that [`Mkfs::kept`] made, with a shared lock.
///
/// # Errors
/// Words for one that is gone or damaged.
pub fn open(path: &Path) -> anyhow::Result<File> {
    let file = open_kept(path, &uuid(path)).with_context(|| format!("image {path:?}"))?;
    file.ok_or_else(|| anyhow!("image {path:?}: it is gone or damaged (boot again, and it is made again)"))
}

/// Whether a file is a whole EROFS image of this UUID: its magic, its length, its identity.
fn whole(file: &File, uuid: &str) -> io::Result<bool> {
    let mut superblock = [0u8; 128];
    match file.read_exact_at(&mut superblock, SUPERBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    let number = |at: usize| superblock[at..at + 4].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let (block_bits, blocks) = (superblock[12], number(36));
    let length = file.metadata()?.len();
    let has_length = block_bits < 32 && blocks > 0 && blocks << block_bits == length;
    let stored = hex(&superblock[48..64]);
    Ok(superblock.starts_with(&MAGIC) && has_length && stored == uuid.replace('-', ""))
}

/// A UUID for an image, by its name.
fn uuid(name: &Path) -> String {
    let name = name.file_name().unwrap_or_default();
    let hash = hex(&Sha256::digest(name.as_encoded_bytes())[..16]);
    [&hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..]].join("-")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(names: &[char]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new("/home/layers/sha256").join(name.to_string().repeat(64))).collect()
    }

    #[test]
    fn a_chain_is_that_of_the_oci_specification_and_of_the_store_alone() {
        let home = Path::new("/home");
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(chain_id(home, &store(&['a'])), Some(a.clone()));
        let two = hex(&Sha256::digest(format!("sha256:{a} sha256:{b}")));
        assert_eq!(chain_id(home, &store(&['b', 'a'])), Some(two));
        assert_ne!(chain_id(home, &store(&['a', 'b'])), chain_id(home, &store(&['b', 'a'])));
        for other in ["/elsewhere/layer", "/home/layers/sha256/short", "/home/layers/sha256"] {
            assert_eq!(chain_id(home, &[other.into()]), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_whole_image_of_its_name_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let id = uuid(Path::new("/x/one"));
        let mut image = vec![0u8; 8192];
        image[1024..1028].copy_from_slice(&MAGIC);
        image[1036] = 12;
        image[1060] = 2;
        let bytes: Vec<u8> =
            (0..16).map(|at| u8::from_str_radix(&id.replace('-', "")[at * 2..][..2], 16).unwrap()).collect();
        image[1072..1088].copy_from_slice(&bytes);
        let check = |image: &[u8], id: &str| {
            fs::write(&path, image).unwrap();
            whole(&File::open(&path).unwrap(), id).unwrap()
        };
        assert!(check(&image, &id));
        assert!(!check(&image, &uuid(Path::new("/x/two"))));
        assert!(!check(&image[..4096], &id));
        assert!(!check(&[], &id));
        image[1024] ^= 1;
        assert!(!check(&image, &id));
    }
}
