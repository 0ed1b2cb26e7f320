//! The layout of the state directory: the name of every file and directory in it. No other module spells them.
//!
//! ```text
//! $MSB_HOME
//! ├── blobs/sha256/HEX            manifests and configurations of images, by digest
//! ├── layers/sha256/HEX/          unpacked layers in overlayfs form, by diff_id or stacked ID
//! ├── checksums/HEX               the checksums of a layer's files, by the layer's ID
//! ├── tmp/ID/                     what one pull is unpacking; HEX.lock: it fetches the layer with this diff_id
//! ├── erofs/CHAIN-MKFS.erofs      images of stacks of layers, or of their topmost layers, with a CHAIN-MKFS.lock each
//! ├── kernel/ID.vmlinux           guest kernels of x86-64 as ELF files; those of arm64 are kernel/ID.Image
//! ├── kernel/ID.cpio              agentd as the first part of an initramfs
//! ├── templates/ext4-VERSION-SIZE empty scratch disks
//! ├── sandboxes/ID/               uppers, and the scratch disks of VMs with a name
//! │   ├── upper/, work/           an upper and its work directory
//! │   ├── root/, mount.log        the default mount point, and the messages of its server
//! │   ├── owner.json              the image below the upper, and its mount point
//! │   ├── hold                    locked by users of an upper that a pipe made, and written when the last one ends
//! │   ├── top.ext4, top.base      a scratch disk, and the name of the tree below it
//! │   └── top.needs               the sandboxes that a VM with the disk needs
//! ├── steps/HEX                   the upper that a step of a build made, by the digest of what the step depends on
//! ├── snapshots/HEX/             saved VMs, by the SHA-256 of their description
//! ├── snapshot-names/NAME        the digest of the snapshot with this name, and that of its sources
//! ├── volumes/NAME/               the content of volumes
//! ├── references/HEX              a reference and its digest, by the SHA-256 of the reference
//! ├── logs/NAME/                  logs of boots that failed
//! ├── news/SUBJECT                warnings that have been shown
//! └── id-map.json                 the user namespace of a store that does not belong to root
//! ```
//!
//! What begins with a dot is being made.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::vm::boot::VERSION;

/// The name of an upper in a sandbox, and in a directory of the caller's.
pub const UPPER: &str = "upper";
/// The name of its work directory.
pub const WORK: &str = "work";
/// The name of the default mount point.
pub const MOUNT_POINT: &str = "root";
/// The file with the messages of the server of a mount.
pub const MOUNT_LOG: &str = "mount.log";
/// The scratch disk in the sandbox of a VM with a name.
pub const SCRATCH_DISK: &str = "top.ext4";
/// The file beside it with the name of the tree below it, without which the disk makes no sense.
pub const SCRATCH_BASE: &str = "top.base";
/// The file beside it with the sandboxes that the VM with the disk needs.
pub const SCRATCH_NEEDS: &str = "top.needs";
/// The file in a sandbox that says what its upper belongs to.
pub const OWNER: &str = "owner.json";
/// The file in the sandbox of an upper that a pipe made, which the users of the upper lock.
pub const HOLD: &str = "hold";

const IMAGE_EXTENSION: &str = "erofs";
const IMAGE_LOCK_EXTENSION: &str = "lock";
const AGENT_PART: &str = "agentd-";
const AGENT_PART_EXTENSION: &str = "cpio";

/// The manifests and configurations of images.
pub fn blobs(home: &Path) -> PathBuf {
    home.join("blobs/sha256")
}

/// The document with this digest, in hex.
pub fn blob(home: &Path, hex: &str) -> PathBuf {
    blobs(home).join(hex)
}

/// The unpacked layers.
pub fn layers(home: &Path) -> PathBuf {
    home.join("layers/sha256")
}

/// The layer with this ID, in hex: its diff_id, or its [stacked ID](super::chain::stacked_id).
pub fn layer(home: &Path, hex: &str) -> PathBuf {
    layers(home).join(hex)
}

/// The ID of a layer, if the path is that of a layer in the store.
pub fn layer_id<'a>(home: &Path, layer: &'a Path) -> Option<&'a str> {
    layer.strip_prefix(layers(home)).ok()?.to_str().filter(|id| is_id(id))
}

/// The ID of a layer and the state directory that it is in, if the path is that of a layer in a store.
pub fn stored_layer(layer: &Path) -> Option<(&Path, &str)> {
    let home = layer.ancestors().nth(3)?;
    Some((home, layer_id(home, layer)?))
}

/// Whether a text is the ID of a layer or the hex of a digest, and so safe as a file name.
pub fn is_id(text: &str) -> bool {
    matches!(text.len(), 64 | 128) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The checksums of all layers.
pub fn all_checksums(home: &Path) -> PathBuf {
    home.join("checksums")
}

/// The checksums of the layer with this ID.
pub fn checksums(home: &Path, id: &str) -> PathBuf {
    all_checksums(home).join(id)
}

/// The directories of pulls that are running.
pub fn pulls(home: &Path) -> PathBuf {
    home.join("tmp")
}

/// The file that is locked while a pull fetches the layer with this diff_id, in hex.
pub fn layer_lock(home: &Path, hex: &str) -> PathBuf {
    pulls(home).join(format!("{hex}.lock"))
}

/// The EROFS images.
pub fn images(home: &Path) -> PathBuf {
    home.join("erofs")
}

/// The EROFS image of a stack of layers, or of its topmost layer: `mkfs` says which, and which mkfs.erofs has made it.
pub fn image(home: &Path, chain_id: &str, mkfs: &str) -> PathBuf {
    images(home).join(format!("{chain_id}-{mkfs}.{IMAGE_EXTENSION}"))
}

/// The identity of the mkfs.erofs in the name of an image.
pub fn image_mkfs(image: &Path) -> Option<&str> {
    image.file_stem()?.to_str()?.rsplit_once('-').map(|(_, mkfs)| mkfs)
}

/// The file that is locked while an image is made. It lists the IDs of the image's layers.
pub fn image_lock(image: &Path) -> PathBuf {
    image.with_extension(IMAGE_LOCK_EXTENSION)
}

/// The image that a lock belongs to.
pub fn locked_image(lock: &Path) -> PathBuf {
    lock.with_extension(IMAGE_EXTENSION)
}

/// Whether a path is that of an image with a name, and not of one that is being made.
pub fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == IMAGE_EXTENSION)
}

/// Whether a path is that of an image's lock.
pub fn is_image_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == IMAGE_LOCK_EXTENSION)
}

/// The guest kernels, and the agents for them.
pub fn kernels(home: &Path) -> PathBuf {
    home.join("kernel")
}

/// The first part of an initramfs, for the agent's file with these metadata.
pub fn agent_part(home: &Path, agent: &Metadata) -> PathBuf {
    let (ino, size, mtime, nsec) = (agent.ino(), agent.size(), agent.mtime(), agent.mtime_nsec());
    kernels(home).join(format!("{AGENT_PART}{VERSION}-{ino:x}-{size:x}-{mtime:x}.{nsec:x}.{AGENT_PART_EXTENSION}"))
}

/// Whether a path is that of a first part of an initramfs, for any agent, and not of one that is being made.
pub fn is_agent_part(path: &Path) -> bool {
    let has_extension = path.extension().is_some_and(|extension| extension == AGENT_PART_EXTENSION);
    has_extension && path.file_name().is_some_and(|name| name.as_bytes().starts_with(AGENT_PART.as_bytes()))
}

/// The empty disks that scratch disks are copied from.
pub fn disk_templates(home: &Path) -> PathBuf {
    home.join("templates")
}

/// The empty ext4 disk of `size` bytes, made by `version` of our mke2fs options.
pub fn disk_template(home: &Path, version: u32, size: u64) -> PathBuf {
    disk_templates(home).join(format!("ext4-{version}-{size}"))
}

/// The sandboxes.
pub fn sandboxes(home: &Path) -> PathBuf {
    home.join("sandboxes")
}

/// The sandbox with this ID, or of the VM with this name.
pub fn sandbox(home: &Path, id: &str) -> PathBuf {
    sandboxes(home).join(id)
}

/// Whether a path is that of a sandbox in a store.
pub fn is_sandbox(path: &Path) -> bool {
    path.parent().and_then(Path::parent).is_some_and(|home| path.parent() == Some(&sandboxes(home)))
}

/// Whether a mount on `path` would hide the store, or something in it that the tools use. Other paths in a sandbox are allowed, such as
/// [`MOUNT_POINT`].
pub fn is_hidden_by(home: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(home) else { return home.starts_with(path) };
    let in_sandbox = path.strip_prefix(sandboxes(home)).ok().and_then(|inside| inside.components().nth(1));
    let is_upper = in_sandbox.is_some_and(|part| part.as_os_str() == UPPER || part.as_os_str() == WORK);
    inside.components().count() < 3 || path.starts_with(layers(home)) || is_upper
}

/// Whether a path has the name of something that is being made or removed, or was abandoned meanwhile.
pub fn is_staging(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The results of steps of a build.
pub fn steps(home: &Path) -> PathBuf {
    home.join("steps")
}

/// The result of the step with this digest, in hex.
pub fn step(home: &Path, digest: &str) -> PathBuf {
    steps(home).join(digest)
}

/// The saved VMs.
pub fn snapshots(home: &Path) -> PathBuf {
    home.join("snapshots")
}

/// The saved VM whose description has this SHA-256, in hex.
pub fn snapshot(home: &Path, hex: &str) -> PathBuf {
    snapshots(home).join(hex)
}

/// The names of saved VMs.
pub fn snapshot_names(home: &Path) -> PathBuf {
    home.join("snapshot-names")
}

/// The file that says which saved VM has this name.
pub fn snapshot_name(home: &Path, name: &str) -> PathBuf {
    snapshot_names(home).join(name)
}

/// The volumes.
pub fn volumes(home: &Path) -> PathBuf {
    home.join("volumes")
}

/// The content of the volume of this name.
pub fn volume(home: &Path, name: &str) -> PathBuf {
    volumes(home).join(name)
}

/// The logs of the last boots of `name` that failed.
pub fn logs(home: &Path, name: &str) -> PathBuf {
    failed_boots(home).join(name)
}

/// The logs of boots that failed, by the VM's name.
pub fn failed_boots(home: &Path) -> PathBuf {
    home.join("logs")
}

/// The images by name: a file for each reference.
pub fn references(home: &Path) -> PathBuf {
    home.join("references")
}

/// The file with a reference and the digest of its image.
pub fn reference(home: &Path, name: &str) -> PathBuf {
    references(home).join(hex::encode(Sha256::digest(name)))
}

/// A warning that was shown.
pub fn notice(home: &Path, subject: &str) -> PathBuf {
    home.join("news").join(subject)
}

/// The file with the mapping of the user namespace in which the store was made.
pub fn id_map(home: &Path) -> PathBuf {
    home.join("id-map.json")
}

/// A new ID: 12 hex digits from the kernel's random source, so that no two collide.
///
/// # Errors
/// The error of `getrandom(2)`.
pub fn fresh_id() -> io::Result<String> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex::encode(bytes))
}

/// Whether a text has the form of [`fresh_id`].
pub fn is_fresh_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_on_or_above_the_store_hides_it_and_one_in_a_sandbox_does_not() {
        let home = Path::new("/var/lib/msb");
        for (path, expected) in [
            ("/var/lib/msb", true),
            ("/var/lib", true),
            ("/", true),
            ("/var/lib/msb/sandboxes", true),
            ("/var/lib/msb/sandboxes/id", true),
            ("/var/lib/msb/sandboxes/id/root", false),
            ("/var/lib/msb/sandboxes/id/upper", true),
            ("/var/lib/msb/sandboxes/id/upper/mnt", true),
            ("/var/lib/msb/sandboxes/id/work", true),
            ("/var/lib/msb/sandboxes/id/mnt/upper", false),
            ("/var/lib/msb/volumes/name/mnt", false),
            ("/var/lib/msb/volumes/name/upper", false),
            ("/var/lib/msb/layers/sha256/id", true),
            ("/var/lib/msb/layers/sha256/id/mnt", true),
            ("/var/lib/msb2", false),
            ("/var/lib/other", false),
            ("/mnt", false),
        ] {
            assert_eq!(is_hidden_by(home, Path::new(path)), expected, "{path}");
        }
    }
}
