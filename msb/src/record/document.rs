//! The record: one JSON object on one line, the contract between the stages of the pipe.
//!
//! Each stage adds one member and passes the rest on; members that a stage does not know, at any depth, stay as they
//! were. `man/msb-record.5` specifies it in words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::boot::Boot;

/// The version that this crate reads and writes: the value of the member `msb`.
pub const VERSION: u64 = 1;

/// The file in a VM's run directory that holds its record.
pub const FILE_NAME: &str = "record.json";

/// Members that this version does not know.
pub type Unknown = Map<String, Value>;

/// What flows through the pipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Record {
    /// The record's version, [`VERSION`].
    pub msb: u64,
    /// The image that the root came from, by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// The read-only base of the root, by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// The writable layer, by msb-patch, else by msb-mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<Upper>,
    /// Scripts for `/.msb/scripts` by name, each a file on the host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scripts: BTreeMap<String, PathBuf>,
    /// The mounted root, by msb-mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<Mount>,
    /// What msb-boot was asked for, or is to be asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The running VM, by msb-boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Members of other stages.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The image that a root came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// How the image wants to be run.
    #[serde(default)]
    pub config: ImageConfig,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How an image wants to be run: the OCI image configuration's `config`, by its own names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `K=V` each.
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
    Layers {
        /// Top first.
        lower: Vec<PathBuf>,
        /// Members of other versions.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// One directory of the caller's, used as it is and never written.
    Dir {
        /// The directory alone.
        lower: Vec<PathBuf>,
        /// Members of other versions.
        #[serde(flatten)]
        unknown: Unknown,
    },
    /// A disk image with a root file system in it.
    Disk {
        /// The image file.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// Members of other versions.
        #[serde(flatten)]
        unknown: Unknown,
    },
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes.
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
pub struct Upper {
    /// The layer itself.
    pub dir: PathBuf,
    /// overlayfs's work directory, on the same file system.
    pub work: PathBuf,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A root that is mounted on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mount {
    /// The mount point.
    pub path: PathBuf,
    /// The process that serves it.
    pub pid: i32,
    /// The type that `/proc/self/mountinfo` shows.
    pub fstype: String,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A running microVM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Vm {
    /// The name that `-r NAME` takes.
    pub name: String,
    /// The supervisor: SIGTERM to it stops the VM gracefully.
    pub pid: i32,
    /// When the supervisor was started, in clock ticks since the host's boot: field 22 of `/proc/PID/stat`. With `pid` it
    /// names one process for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// `krun` or `qemu`.
    pub vmm: String,
    /// How the root reaches the guest: `share`, `block` or `disk`.
    pub root: String,
    /// Why it is that one, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_why: Option<String>,
    /// For `block`: what takes what the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<Top>,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The init that PID 1 was handed to; null where agentd is PID 1.
    #[serde(default)]
    pub init: Option<String>,
    /// Where the agent answers.
    pub endpoint: Endpoint,
    /// What the guest's kernel and agentd said.
    pub kernel_log: PathBuf,
    /// How long the start took.
    pub timings_ms: Timings,
    /// How often its supervisor has started it again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What takes what the guest of a block root writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Top {
    /// What it is.
    pub kind: TopKind,
    /// The disk's file; none for one that is gone with the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Where the top of a block root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TopKind {
    /// A disk.
    Disk,
    /// The guest's memory.
    Memory,
}

/// Where an agent answers: a Unix socket of the VMM that leads to a vsock port in the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// The socket's path.
    pub unix: PathBuf,
    /// The port in the guest.
    pub port: u32,
    /// Whether the socket serves all ports and wants `CONNECT port` first.
    #[serde(default)]
    pub handshake: bool,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// When each step of a start was reached, in milliseconds since msb-boot had its record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timings {
    /// The VMM's process was started.
    pub spawn: u64,
    /// The kernel had handed over to agentd, by the guest's own clock, counted back from `ready`.
    pub kernel: u64,
    /// agentd had the root mounted, by the same clock.
    pub agent: u64,
    /// The init had started, by the same clock; only where PID 1 was handed to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<u64>,
    /// agentd's ready message had arrived.
    pub ready: u64,
    /// Members of other versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Record {
    /// A record with nothing in it but its version.
    pub fn new() -> Self {
        Self { msb: VERSION, ..Self::default() }
    }

    /// Reads a record from JSON.
    ///
    /// # Errors
    /// Text that is not JSON, not a record, a record of another version, or one with relative paths.
    pub fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let value: Value = serde_json::from_slice(text).map_err(|error| anyhow!("not a record: {error}"))?;
        match value.get("msb").map(Value::as_u64) {
            None => bail!("not a record: it has no member \"msb\""),
            Some(Some(VERSION)) => {}
            Some(_) => bail!(
                "record version {} is not supported (this is a tool for version {VERSION}; use tools of one release)",
                value["msb"]
            ),
        }
        if let Some(boot) = value.get("boot").filter(|boot| !boot.is_null()) {
            // For an error that names the member, which people edit.
            serde_path_to_error::deserialize::<_, Boot>(boot)
                .map_err(|error| anyhow!("record: boot.{}: {}", error.path(), error.inner()))?;
        }
        let record: Self = serde_json::from_value(value).map_err(|error| anyhow!("not a record: {error}"))?;
        if let Some(path) = record.paths().into_iter().find(|path| !path.is_absolute()) {
            bail!("record: path {path:?} is not absolute");
        }
        if let Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) = &record.rootfs
            && lower.is_empty()
        {
            bail!("record: rootfs has no lower directory");
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
        let top = self.vm.iter().filter_map(|vm| vm.top.as_ref()?.path.as_deref());
        paths.extend(top);
        paths.extend(
            self.boot.iter().flat_map(|boot| [&boot.overlay, &boot.kernel_log]).flatten().map(PathBuf::as_path),
        );
        paths
    }

    /// The member `rootfs`.
    ///
    /// # Errors
    /// Words, where an earlier stage is missing or a directory it names is gone.
    pub fn rootfs(&self) -> anyhow::Result<&Rootfs> {
        let rootfs = self.rootfs.as_ref().ok_or_else(|| anyhow!("the record has no rootfs (start with msb-pull)"))?;
        let gone = match rootfs {
            Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => lower.iter().find(|dir| !dir.is_dir()),
            Rootfs::Disk { path, .. } => Some(path).filter(|path| !path.exists()),
        };
        match gone {
            Some(path) => bail!("rootfs {path:?} is gone (run msb-pull again)"),
            None => Ok(rootfs),
        }
    }

    /// The member `vm`.
    ///
    /// # Errors
    /// Words, where the record has none.
    pub fn vm(&self) -> anyhow::Result<&Vm> {
        self.vm.as_ref().ok_or_else(|| anyhow!("the record has no running VM (start one with msb-boot)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_members_it_does_not_know_at_any_depth() {
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
    fn refuses_what_is_no_record_of_this_version() {
        for (text, words) in [
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
            let error = format!("{:#}", Record::parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn an_empty_record_is_its_version_alone() {
        assert_eq!(serde_json::to_string(&Record::new()).unwrap(), r#"{"msb":1}"#);
    }
}
