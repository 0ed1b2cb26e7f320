//! The member `boot`: the request to msb-boot, with which the same record boots the same VM again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::text::Text;
use super::unknown::Unknown;
use super::volume::Volume;

/// What msb-boot is asked for. Its flags override these members, and it writes them all back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct Boot {
    /// The VM's name; null for a generated one.
    pub name: Option<String>,
    /// The guest's hostname; null for the VM's name.
    pub hostname: Option<String>,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// How the root reaches the guest.
    pub root: RootChoice,
    /// Nothing is mounted or created in the root: only containers run in it.
    pub bare: bool,
    /// The init to run as PID 1; null for none.
    pub init: Option<Init>,
    /// Replaces the image's entrypoint and cmd; null for the image's, an empty array for none.
    pub entrypoint: Option<Vec<Text>>,
    /// Replaces the image's cmd; null for the image's.
    pub cmd: Option<Vec<Text>>,
    /// Variables for all commands; they override the image's.
    pub env: BTreeMap<String, Text>,
    /// The directory that commands start in; null for the image's.
    pub workdir: Option<String>,
    /// The user that commands run as, `user[:group]`; null for the image's.
    pub user: Option<String>,
    /// The signal that asks commands to end when the VM stops, by name or number; null for the image's.
    pub stop_signal: Option<String>,
    /// For a block root: the size of the scratch disk, with K, M, G or T; null for the default.
    pub disk: Option<String>,
    /// For a block root: keep the guest's writes in its memory.
    pub ephemeral: bool,
    /// For a block root: commit the guest's writes into the upper when the VM has ended.
    pub commit_on_stop: bool,
    /// For a disk root: the qcow2 file for the guest's writes; null for none.
    pub overlay: Option<PathBuf>,
    /// When to restart the VM.
    pub restart: RestartPolicy,
    /// What is mounted in the root.
    pub volumes: Vec<Volume>,
    /// The network.
    pub network: Network,
    /// What the VM may take of the host.
    pub limits: Limits,
    /// The VMM; null for `$MSB_VMM`, else auto.
    pub vmm: Option<VmmChoice>,
    /// How the agent is reached; null for vsock.
    pub channel: Option<Channel>,
    /// The file for the guest's console; null for kernel.log in the run directory.
    pub kernel_log: Option<PathBuf>,
    /// How long the guest may take until its agent answers and its init is usable, in seconds; null for the default.
    pub timeout_s: Option<u32>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            name: None,
            hostname: None,
            cpus: 1,
            memory_mib: 512,
            root: RootChoice::Auto,
            bare: false,
            init: None,
            entrypoint: None,
            cmd: None,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            stop_signal: None,
            disk: None,
            ephemeral: false,
            commit_on_stop: false,
            overlay: None,
            restart: RestartPolicy::No,
            volumes: Vec::new(),
            network: Network::default(),
            limits: Limits::default(),
            vmm: None,
            channel: None,
            kernel_log: None,
            timeout_s: None,
            unknown: Unknown::new(),
        }
    }
}

/// What a VM may take of the host: the limits of a cgroup that has its processes. Null for no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct Limits {
    /// Processor time, as a percentage of one processor.
    pub cpu_quota_percent: Option<u32>,
    /// The share of busy processors, 1 to 10000.
    pub cpu_weight: Option<u16>,
    /// The share of busy disks, 1 to 10000.
    pub io_weight: Option<u16>,
    /// Memory, in MiB: the guest's, and that of the processes that serve it.
    pub memory_max_mib: Option<u32>,
    /// Processes and threads.
    pub pids_max: Option<u32>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The init that PID 1 is handed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct Init {
    /// Its absolute path in the guest, or `auto`.
    pub path: String,
    /// Its arguments.
    pub args: Vec<Text>,
    /// Variables for it; they override inherited ones.
    pub env: BTreeMap<String, Text>,
    /// Whether to wait until it is usable.
    pub wait: bool,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Init {
    /// The path that stands for a search.
    pub const AUTO: &str = "auto";

    /// The init at `path`, without arguments.
    pub fn new(path: String) -> Self {
        Self { path, ..Self::default() }
    }
}

impl Boot {
    /// The most processors that a guest can have.
    pub const MAX_CPUS: u8 = 64;

    /// The timeout of the boot in seconds. systemd alone allows each unit a minute and a half.
    pub fn timeout_s(&self) -> u32 {
        let is_init_awaited = self.init.as_ref().is_some_and(|init| init.wait);
        self.timeout_s.unwrap_or(if is_init_awaited { 180 } else { 60 })
    }
}

impl Default for Init {
    fn default() -> Self {
        Self { path: Self::AUTO.into(), args: Vec::new(), env: BTreeMap::new(), wait: true, unknown: Unknown::new() }
    }
}

/// Whether a VM that has ended is started again. One that was asked to stop never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "tool", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never
    #[default]
    No,
    /// After its guest has rebooted
    OnReboot,
    /// However it has ended
    Always,
}

/// How the root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "tool", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum RootChoice {
    /// Share if the record has a mount, disk if it has a disk, else block
    Auto,
    /// The mounted root as a shared directory: what the guest writes shows on the host at once
    Share,
    /// Disks made of the layers and the patches, and a scratch disk for what the guest writes: the fastest
    Block,
    /// The record's disk
    Disk,
}

/// What runs the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "tool", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// libkrun if the machine has usable KVM, otherwise QEMU
    Auto,
    /// libkrun, on KVM
    Krun,
    /// QEMU, on KVM or in software
    Qemu,
}

/// What carries the connections between the host and the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "tool", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// A vsock device
    #[default]
    Vsock,
    /// A virtio-serial port, which QEMU alone has
    Serial,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_takes_longer_with_an_init_that_is_awaited() {
        let init = |wait| Some(Init { wait, ..Init::default() });
        for (init, timeout_s, expected) in
            [(None, None, 60), (init(false), None, 60), (init(true), None, 180), (init(true), Some(7), 7)]
        {
            assert_eq!(Boot { init, timeout_s, ..Boot::default() }.timeout_s(), expected);
        }
    }
}
