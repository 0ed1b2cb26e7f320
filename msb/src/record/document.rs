//! The record: one JSON object on one line, the contract between the stages of the pipe.
//!
//! Each stage adds one member and passes the rest on; members that a stage does not know, at any depth, stay as they
//! were. `man/msb-record.5` specifies it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::boot::Boot;
use super::network::Net;

/// The version that this crate reads and writes, the value of the member `msb`.
pub const VERSION: u64 = 1;

/// The file in a VM's run directory that holds its record.
pub const FILE_NAME: &str = "record.json";

/// Members that this version does not know.
pub type Unknown = Map<String, Value>;

/// Why a record cannot be used. The tool or the person that wrote it is at fault, except where a variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not JSON, or a member has the wrong type.
    #[error("not a record: {0}")]
    NotARecord(serde_json::Error),
    /// A JSON object without the member `msb`.
    #[error("not a record: it has no member \"msb\"")]
    NoVersion,
    /// A record of another version: tools of two releases were mixed.
    #[error("record version {0} is not supported (this is a tool for version {VERSION}; use tools of one release)")]
    OtherVersion(Value),
    /// A wrong value in `boot`, the member that people edit.
    #[error("record: boot.{path}: {error}")]
    Boot {
        /// The path of the wrong member in `boot`.
        path: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// A path that is not absolute.
    #[error("record: path {0:?} is not absolute")]
    RelativePath(PathBuf),
    /// A rootfs of directories without a directory.
    #[error("record: rootfs has no lower directory")]
    NoLower,
    /// A stage needs a rootfs, and no earlier stage added one.
    #[error("the record has no rootfs (start with msb-pull)")]
    NoRootfs,
    /// A file of the rootfs was removed after the record was written.
    #[error("rootfs {0:?} is gone (run msb-pull again)")]
    RootfsGone(PathBuf),
    /// A tool needs a VM, and the record has none.
    #[error("the record has no running VM (start one with msb-boot)")]
    NoVm,
}

/// What flows through the pipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Record {
    /// The record's version, [`VERSION`].
    pub msb: u64,
    /// The image that the root came from; added by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// The read-only base of the root; added by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// The writable layer; added by msb-patch, or by msb-mount if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<Upper>,
    /// Scripts for `/.msb/scripts` by name, each a file on the host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scripts: BTreeMap<String, PathBuf>,
    /// The mounted root; added by msb-mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<Mount>,
    /// What msb-boot is asked for; msb-boot writes it back with every default filled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The running VM; added by msb-boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The image that a root came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Image {
    /// The reference as resolved, e.g. `docker.io/library/alpine:3.20`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of the platform's manifest, `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `os/architecture[/variant]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The image's defaults for running it.
    #[serde(default)]
    pub config: ImageConfig,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Image {
    /// An image with its reference; everything else is unknown.
    pub fn new(reference: String) -> Self {
        Self { reference, ..Self::default() }
    }
}

/// An image's defaults for running it: `config` of the OCI image configuration, with its member names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
#[non_exhaustive]
pub struct ImageConfig {
    /// Variables, `K=V` each.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// The command's fixed first part.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the entrypoint's default arguments.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// The working directory; empty for `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `user[:group]` by name or number; empty for root.
    #[serde(default)]
    pub user: String,
    /// The signal that asks the command to stop.
    #[serde(default)]
    pub stop_signal: String,
    /// The rest of the image's configuration (Labels, ExposedPorts, …).
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// The read-only base of a root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Rootfs {
    /// Unpacked layers in overlayfs form.
    #[non_exhaustive]
    Layers {
        /// Top first.
        lower: Vec<PathBuf>,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// A directory of the caller, which is never written to.
    #[non_exhaustive]
    Dir {
        /// The directory, as the only element.
        lower: Vec<PathBuf>,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// A disk image with a root file system in it.
    #[non_exhaustive]
    Disk {
        /// The image file.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// Members that this version does not know.
        #[serde(flatten)]
        unknown: Unknown,
    },
}

impl Rootfs {
    /// Unpacked layers, the top one first.
    pub fn layers(lower: Vec<PathBuf>) -> Self {
        Self::Layers { lower, unknown: Unknown::new() }
    }

    /// A directory of the caller.
    pub fn dir(path: PathBuf) -> Self {
        Self::Dir { lower: vec![path], unknown: Unknown::new() }
    }

    /// A disk image.
    pub fn disk(path: PathBuf, format: DiskFormat) -> Self {
        Self::Disk { path, format, unknown: Unknown::new() }
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// The writable layer, in overlayfs form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Upper {
    /// The directory of the layer.
    pub dir: PathBuf,
    /// overlayfs's work directory, on the same file system.
    pub work: PathBuf,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Upper {
    /// A layer and its work directory.
    pub fn new(dir: PathBuf, work: PathBuf) -> Self {
        Self { dir, work, unknown: Unknown::new() }
    }
}

/// A root that is mounted on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Mount {
    /// The mount point.
    pub path: PathBuf,
    /// The process that serves it.
    pub pid: i32,
    /// The type that `/proc/self/mountinfo` shows.
    pub fstype: String,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Mount {
    /// A mount point, the process that serves it and its type.
    pub fn new(path: PathBuf, pid: i32, fstype: String) -> Self {
        Self { path, pid, fstype, unknown: Unknown::new() }
    }
}

/// A running microVM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Vm {
    /// The name that `-r NAME` takes.
    pub name: String,
    /// The supervisor: SIGTERM to it stops the VM gracefully.
    pub pid: i32,
    /// When the supervisor was started, in clock ticks since the host's boot: field 22 of `/proc/PID/stat`. Together with `pid` it
    /// identifies a process, since process IDs are reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// The program that runs it.
    pub vmm: Vmm,
    /// How the root reaches the guest.
    pub root: RootKind,
    /// Why that kind of root was chosen, a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_why: Option<String>,
    /// For a block root: where the guest's writes go.
    #[serde(rename = "top", default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The init that runs as PID 1; null if agentd does.
    #[serde(default)]
    pub init: Option<String>,
    /// The agent's endpoint.
    pub endpoint: Endpoint,
    /// The output of the guest's kernel and of agentd.
    pub kernel_log: PathBuf,
    /// The network; null if the guest has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
    /// How long the boot took.
    pub timings_ms: Timings,
    /// How often its supervisor has started it again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Vm {
    /// A VM with one processor, no memory and no timings yet.
    pub fn new(name: String, pid: i32, vmm: Vmm, root: RootKind, endpoint: Endpoint, kernel_log: PathBuf) -> Self {
        Self {
            name,
            pid,
            start_time: None,
            vmm,
            root,
            root_why: None,
            scratch: None,
            cpus: 1,
            memory_mib: 0,
            init: None,
            net: None,
            endpoint,
            kernel_log,
            timings_ms: Timings::default(),
            restarts: 0,
            unknown: Unknown::new(),
        }
    }
}

/// The program that runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Vmm {
    /// libkrun.
    Krun,
    /// QEMU.
    Qemu,
}

/// How a root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    /// A directory of the host, shared with virtiofs.
    Share,
    /// EROFS disks made of the layers, and a writable layer on them.
    Block,
    /// A disk image.
    Disk,
}

impl std::fmt::Display for RootKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Share => "share",
            Self::Block => "block",
            Self::Disk => "disk",
        })
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where the writes of a guest with a block root go: its writable layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Scratch {
    /// What holds it.
    pub kind: ScratchKind,
    /// The disk's file; none if it is removed with the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Scratch {
    /// A writable layer; `path` is that of a disk that outlives the VM.
    pub fn new(kind: ScratchKind, path: Option<PathBuf>) -> Self {
        Self { kind, path, unknown: Unknown::new() }
    }
}

/// What holds the writable layer of a block root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ScratchKind {
    /// A disk.
    Disk,
    /// The guest's memory.
    Memory,
}

/// Where the agent answers: a Unix socket of the VMM that forwards to a vsock port in the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Endpoint {
    /// The socket's path.
    pub unix: PathBuf,
    /// The port in the guest.
    pub port: u32,
    /// Whether the socket serves all ports and expects `CONNECT port` first.
    #[serde(default)]
    pub handshake: bool,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Endpoint {
    /// A socket that forwards to `port`; `handshake`: it expects `CONNECT port` first.
    pub fn new(unix: PathBuf, port: u32, handshake: bool) -> Self {
        Self { unix, port, handshake, unknown: Unknown::new() }
    }
}

/// When each step of a boot was reached, in milliseconds since msb-boot had read its record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Timings {
    /// The VMM's process was started.
    pub spawn: u64,
    /// The kernel had started agentd, on the guest's clock, counted back from `ready`.
    pub kernel: u64,
    /// agentd had mounted the root, on the same clock.
    pub agent: u64,
    /// The init had started, on the same clock; none without an init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<u64>,
    /// agentd's ready message had arrived.
    pub ready: u64,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Record {
    /// A record that holds only its version.
    pub fn new() -> Self {
        Self { msb: VERSION, ..Self::default() }
    }

    /// Parses a record in JSON. A byte order mark is skipped.
    ///
    /// # Errors
    /// Text that is not JSON, not a record, a record of another version, or one with relative paths.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let value: Value = serde_json::from_slice(text).map_err(Error::NotARecord)?;
        match value.get("msb").map(Value::as_u64) {
            None => return Err(Error::NoVersion),
            Some(Some(VERSION)) => {}
            Some(_) => return Err(Error::OtherVersion(value["msb"].clone())),
        }
        if let Some(boot) = value.get("boot").filter(|boot| !boot.is_null()) {
            // Only for an error that names the member.
            serde_path_to_error::deserialize::<_, Boot>(boot)
                .map_err(|error| Error::Boot { path: error.path().to_string(), error: error.into_inner() })?;
        }
        let record: Self = serde_json::from_value(value).map_err(Error::NotARecord)?;
        if let Some(path) = record.paths().into_iter().find(|path| !path.is_absolute()) {
            return Err(Error::RelativePath(path.to_owned()));
        }
        if let Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) = &record.rootfs
            && lower.is_empty()
        {
            return Err(Error::NoLower);
        }
        Ok(record)
    }

    fn paths(&self) -> Vec<&Path> {
        let mut paths: Vec<&Path> = self.scripts.values().map(PathBuf::as_path).collect();
        match &self.rootfs {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => {
                paths.extend(lower.iter().map(PathBuf::as_path))
            }
            Some(Rootfs::Disk { path, .. }) => paths.push(path),
            None => {}
        }
        paths.extend(self.upper.iter().flat_map(|upper| [upper.dir.as_path(), upper.work.as_path()]));
        paths.extend(self.mount.iter().map(|mount| mount.path.as_path()));
        paths.extend(self.vm.iter().flat_map(|vm| [vm.endpoint.unix.as_path(), vm.kernel_log.as_path()]));
        paths.extend(self.vm.iter().filter_map(|vm| vm.scratch.as_ref()?.path.as_deref()));
        paths.extend(
            self.boot.iter().flat_map(|boot| [&boot.overlay, &boot.kernel_log]).flatten().map(PathBuf::as_path),
        );
        paths
    }

    /// The member `rootfs`, whose files exist.
    ///
    /// # Errors
    /// [`Error::NoRootfs`], [`Error::RootfsGone`].
    pub fn rootfs(&self) -> Result<&Rootfs, Error> {
        let rootfs = self.rootfs.as_ref().ok_or(Error::NoRootfs)?;
        let gone = match rootfs {
            Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => lower.iter().find(|dir| !dir.is_dir()),
            Rootfs::Disk { path, .. } => Some(path).filter(|path| !path.exists()),
        };
        match gone {
            Some(path) => Err(Error::RootfsGone(path.to_owned())),
            None => Ok(rootfs),
        }
    }

    /// The member `vm`.
    ///
    /// # Errors
    /// [`Error::NoVm`].
    pub fn vm(&self) -> Result<&Vm, Error> {
        self.vm.as_ref().ok_or(Error::NoVm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_are_kept_at_any_depth() {
        let text = r#"{"msb":1,"boot":{"init":{"later":3},"network":{"mode":"none"}},"image":{"ref":"a","config":{"Labels":{"x":"y"}},"new":1},"rootfs":{"kind":"layers","lower":["/l"],"new":2},"later":[1,2]}"#;
        let record = Record::parse(text.as_bytes()).unwrap();
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["image"]["config"]["Labels"]["x"], "y");
        assert_eq!(value["image"]["new"], 1);
        assert_eq!(value["rootfs"]["new"], 2);
        assert_eq!(value["later"][1], 2);
        assert_eq!(value["boot"]["network"]["mode"], "none");
        assert_eq!(value["boot"]["init"]["later"], 3);
        assert_eq!((&value["boot"]["init"]["path"], &value["boot"]["cpus"]), (&"auto".into(), &1.into()));
    }

    #[test]
    fn refuses_anything_but_a_record_of_this_version() {
        for (text, message) in [
            ("", "not a record"),
            ("[1]", "no member \"msb\""),
            ("{}", "no member \"msb\""),
            (r#"{"msb":2}"#, "record version 2 is not supported"),
            (r#"{"msb":"1"}"#, "record version \"1\" is not supported"),
            (r#"{"msb":1,"rootfs":{"kind":"tape"}}"#, "unknown variant"),
            (r#"{"msb":1,"rootfs":{"kind":"dir","lower":["rel"]}}"#, "not absolute"),
            (r#"{"msb":1,"rootfs":{"kind":"layers","lower":[]}}"#, "no lower directory"),
            (r#"{"msb":1,"boot":{"cpus":"4"}}"#, "record: boot.cpus: invalid type: string"),
            (r#"{"msb":1,"boot":{"init":{"args":[{}]}}}"#, "record: boot.init.args[0]: "),
            (r#"{"msb":1,"boot":{"root":"tape"}}"#, "record: boot.root: unknown variant"),
            (r#"{"msb":1,"boot":{"overlay":"rel"}}"#, "not absolute"),
        ] {
            let error = Record::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn an_empty_record_holds_only_its_version() {
        assert_eq!(serde_json::to_string(&Record::new()).unwrap(), r#"{"msb":1}"#);
    }
}
