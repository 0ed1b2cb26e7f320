//! `boot.json`: all that agentd must know, written by msb-boot into the boot share and read once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::Text;

/// The file's name in the boot share.
pub const FILE_NAME: &str = "boot.json";
/// agentd's name in the boot share: what libkrun's kernel runs, and what we tell QEMU's kernel to run.
pub const INIT_NAME: &str = "init.krun";
/// Where agentd finds the guest's real root once [`Boot::mounts`] are done, before it becomes `/`.
pub const NEW_ROOT: &str = "/mnt";
/// Where the disk with the image goes, for a root of disks.
pub const BASE: &str = "/base";
/// Where the disk with the patches goes.
pub const PATCHES: &str = "/patches";
/// Where the disk goes that takes what the guest writes.
pub const TOP: &str = "/top";
/// The directory of the boot share that becomes the guest's `/.msb`.
pub const MSB_DIR: &str = "msb";
/// The version that this crate reads and writes.
pub const VERSION: u32 = 2;

/// What agentd does at boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// [`VERSION`].
    pub version: u32,
    /// The guest's name.
    pub hostname: String,
    /// The way to the real root, in order; the last is on [`NEW_ROOT`].
    pub mounts: Vec<MountStep>,
    /// What an exec gets that does not say otherwise.
    pub defaults: Defaults,
    /// Absolute paths of directories that are made in the root where they are missing: the image's volumes.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Nothing is to run: the upper on [`TOP`] is sent to the host, and the machine ends.
    #[serde(default)]
    pub commit: bool,
    /// The init to hand PID 1 to.
    #[serde(default)]
    pub init: Option<Init>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStep {
    /// A virtiofs tag, a device, or the file system's name again.
    pub source: String,
    /// A directory that is there, in the boot share or by an earlier step.
    pub target: PathBuf,
    /// The file system's type.
    pub fstype: String,
    /// As in fstab: `ro`, `nosuid`, `nodev`, `noexec` and what the file system takes.
    #[serde(default)]
    pub options: Vec<String>,
    /// What is made in it once it is mounted, where it is missing.
    #[serde(default)]
    pub directories: Vec<Directory>,
}

/// A directory that a later mount needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    /// Where.
    pub path: PathBuf,
    /// The directory whose owner, mode, times and xattrs it gets; else it is root's alone.
    #[serde(default)]
    pub like: Option<PathBuf>,
}

/// What an exec gets that does not say otherwise: the image's configuration and msb-boot's flags over it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// `K=V` each.
    pub env: Vec<Text>,
    /// The working directory, which is made where it is missing; empty for `/`.
    pub cwd: String,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// The command without one: entrypoint and cmd.
    pub argv: Vec<Text>,
    /// The number of the signal that asks commands to end when the machine stops.
    pub stop_signal: i32,
}

/// An init that becomes PID 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// An absolute path in the guest; `None` to look for one.
    pub path: Option<String>,
    /// The image's entrypoint and cmd, if an init is in them: looked at first when one is looked for.
    #[serde(default)]
    pub entrypoint: Vec<Text>,
    /// The arguments behind the path.
    pub args: Vec<Text>,
    /// `K=V` each, over the inherited.
    pub env: Vec<Text>,
    /// How long it may take until it waits for something, in milliseconds.
    pub limit_ms: u64,
    /// The number of the signal that the image wants it to be stopped by.
    pub stop_signal: i32,
    /// When it has to be usable, in milliseconds since power-on; `None` not to wait for that.
    #[serde(default)]
    pub usable_ms: Option<u64>,
}
