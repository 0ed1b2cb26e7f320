//! The state directory: its [layout], its locks, how state in it becomes visible ([publish]), and what is made in it by more than one
//! tool: EROFS images of layers ([erofs]), sandboxes ([draft]) and uppers ([staging]).
//!
//! What only one tool makes, such as unpacked layers or scratch disks, is made by that tool, under the names and locks of this module.
//!
//! # Locks
//!
//! | locked | by | how | while |
//! | --- | --- | --- | --- |
//! | `tmp` | msb-pull, msb-store | exclusive, waits | a pull's directory is made and locked; msb-store decides what nothing refers to |
//! | `tmp/ID` | msb-pull | exclusive | the pull lives |
//! | `tmp/HEX.lock` | msb-pull | exclusive; waits if it holds no other | a layer is fetched, until it is in the store |
//! | `layers/sha256/HEX` | msb-patch, msb-mount, msb-boot, msb-pack, `msb-store check` | shared, waits | they use the layer |
//! | `layers/sha256/HEX` | msb-store | exclusive | the layer is removed |
//! | `sandboxes` | msb-patch, a commit | exclusive, waits | a sandbox's staging directory is made and locked |
//! | `sandboxes/.ID.PID.N` | msb-patch, a commit | exclusive | the sandbox is being made |
//! | the work directory of an upper | msb-patch, msb-mount, a commit | exclusive | they may change the upper |
//! | the same | `msb-mount --ro`, msb-boot, msb-pack, `msb-run --cache`, `msb-patch --copy` | shared | they read the upper, and nobody may change it |
//! | `sandboxes/ID/hold` | msb-patch, msb-mount, msb-boot | shared, waits | a patch, a mount or a VM uses the upper |
//! | `sandboxes/ID/hold` | msb-store, msb-rm | exclusive | the sandbox is removed |
//! | `snapshots/.ID.PID.N` | msb-snapshot | exclusive | the snapshot is being made |
//! | `snapshots/HEX/memory` | msb-boot | shared, waits | a VM that has started from the snapshot lives |
//! | each file of a snapshot | msb-store, msb-boot, msb-snapshot | exclusive | the file is erased |
//! | `snapshots/HEX` | `msb-run --snapshot` | shared, waits | a VM starts from the snapshot |
//! | the same | msb-store | exclusive, waits | the snapshot is removed |
//! | `snapshot-names` | `msb-run --snapshot`, msb-store | exclusive, waits | a snapshot gets or loses a name |
//! | `erofs/NAME.lock` | msb-pull, msb-boot | exclusive, waits | the image is made |
//! | `erofs/NAME.erofs` | msb-boot | shared, waits | a VM uses the image |
//! | `kernel/ID.cpio` | msb-boot | shared, waits | a VM that was booted with that agent lives |
//! | the same | msb-store | exclusive | the file is removed |
//! | `sandboxes/NAME` | msb-boot | exclusive, waits | a scratch disk gets or loses the name |
//! | `sandboxes/NAME/top.ext4` | msb-boot | exclusive | a VM has the disk |
//!
//! A lock that does not wait fails if another process holds it, so only those that wait could deadlock. A process that waits for a
//! lock holds none that others wait for, with two exceptions: `erofs/NAME.lock` is taken before `erofs/NAME.erofs`, and `snapshots/HEX`
//! before `sandboxes/NAME` and `snapshot-names`.

pub mod chain;
pub mod checksums;
mod clone;
pub mod draft;
pub mod erase;
pub mod erofs;
pub mod home;
pub mod id_map;
pub mod layers;
pub mod layout;
pub mod notices;
pub mod publish;
pub mod sandbox;
pub mod snapshot;
pub mod snapshot_name;
pub mod snapshot_stamp;
pub mod staging;
pub mod step;
pub mod support;
mod sync;

pub use crate::overlay::error::{Error, Fault};
