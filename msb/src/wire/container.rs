//! A container in the guest: what a command sees in place of the guest's own root, mounts, processes, names and IPC objects. The members
//! follow the OCI runtime specification (config.md, config-linux.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A container. Its namespaces for mounts, processes, hostnames, IPC and cgroups are new; the network is the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The directory that becomes its root: a path in the guest's root, whose symlinks are followed inside that. What the guest has mounted
    /// below is not in the container.
    pub root: String,
    /// Whether its root is read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// Its hostname; without one, the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its NIS domain name; without one, the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// What is mounted, in this order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mounts: Vec<Mount>,
    /// Device nodes, besides those that every container has.
    #[serde(default, skip_serializing_if = "is_default")]
    pub devices: Vec<Device>,
    /// Paths that are hidden, if they exist.
    #[serde(default, skip_serializing_if = "is_default")]
    pub masked_paths: Vec<String>,
    /// Paths that are read-only, if they exist.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly_paths: Vec<String>,
    /// Kernel parameters by name (`sysctl(8)`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub sysctl: BTreeMap<String, String>,
    /// What its processes may use together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
}

/// Limits of a cgroup of version 2. `None`: that of the guest or, in a change, left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `memory.max`, in bytes; [`Self::UNLIMITED`] for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// `pids.max`: processes and threads; [`Self::UNLIMITED`] for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// `cpu.max`: microseconds of processor time in each period; [`Self::UNLIMITED`] for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<u64>,
    /// The period in microseconds; 100 000 in a new cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// `cpu.weight`: from 1 to 10 000, relative to other containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u64>,
}

impl Limits {
    /// The value of a limit that is to be none.
    pub const UNLIMITED: u64 = u64::MAX;
}

/// Other limits for a container that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The number of the exec that is its first process.
    pub id: u32,
    /// What changes.
    pub limits: Limits,
}

/// A mount in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is mounted: a path in the container's root, created if it is missing. Symlinks are followed inside the root.
    pub target: String,
    /// The file system's type. For a bind mount, see `options`, it has no meaning.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fstype: String,
    /// For a bind mount: a path in the guest's root, whose symlinks are followed inside that. Otherwise the source of `mount(2)`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub source: String,
    /// Options as in fstab(5), with `bind` and `rbind` for a bind mount, and `tmpcopyup` for a tmpfs that begins with a copy of what it
    /// covers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: Vec<String>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path in the container's root.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// The major number.
    #[serde(default, skip_serializing_if = "is_default")]
    pub major: u32,
    /// The minor number.
    #[serde(default, skip_serializing_if = "is_default")]
    pub minor: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uid: u32,
    /// Its group.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: u32,
}

/// What a device node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_container_has_is_sent() {
        let device = Device {
            path: "/dev/null".into(),
            kind: DeviceKind::Character,
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let mounts = vec![Mount { target: "/t".into(), ..Mount::default() }];
        let limits = Limits { pids: Some(7), ..Limits::default() };
        let container = Container { root: "/r".into(), mounts, devices: vec![device], limits, ..Container::default() };
        let text = r#"{"root":"/r","mounts":[{"target":"/t"}],"devices":[{"path":"/dev/null","kind":"character","major":1,"minor":3,"mode":438}],"limits":{"pids":7}}"#;
        assert_eq!(serde_json::to_string(&container).unwrap(), text);
        assert_eq!(serde_json::from_str::<Container>(text).unwrap(), container);
    }
}
