//! The member `vm`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::network::{Card, Net};
use super::unknown::Unknown;
use super::volume::MountedVolume;

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
    /// The network behind the gate; null if the guest has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
    /// The network cards on networks that somebody else provides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// The volumes, in the order in which they were mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<MountedVolume>,
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
            cards: Vec::new(),
            volumes: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_shown_as_in_json() {
        for root in [RootKind::Share, RootKind::Block, RootKind::Disk] {
            assert_eq!(serde_json::to_value(root).unwrap(), root.to_string());
        }
    }

    #[test]
    fn restarts_are_written_if_there_were_any() {
        let endpoint = Endpoint::new("/s".into(), 1024, false);
        let mut vm = Vm::new("a".into(), 1, Vmm::Qemu, RootKind::Share, endpoint, "/k".into());
        assert_eq!(serde_json::to_value(&vm).unwrap().get("restarts"), None);
        vm.restarts = 3;
        assert_eq!(serde_json::to_value(&vm).unwrap()["restarts"], 3);
    }
}
