//! `--container`: a container as a configuration of the OCI runtime specification describes it (config.json), with paths of the guest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use msb::cgroup;
use msb::wire::container::{Container, Device, DeviceKind, Limits, Mount};
use serde::Deserialize;

use crate::process::Process;

/// The members that have a meaning here. Namespaces are always new, but for that of the network, which is the guest's.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The command.
    pub process: Option<Process>,
    root: Root,
    hostname: Option<String>,
    domainname: Option<String>,
    #[serde(default)]
    mounts: Vec<ConfigMount>,
    #[serde(default)]
    linux: Linux,
}

#[derive(Clone, Debug, Deserialize)]
struct Root {
    path: String,
    #[serde(default)]
    readonly: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct ConfigMount {
    destination: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    devices: Vec<ConfigDevice>,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
    sysctl: BTreeMap<String, String>,
    resources: Resources,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    memory: Memory,
    pids: Pids,
    cpu: Cpu,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Pids {
    limit: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    period: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDevice {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    major: u32,
    #[serde(default)]
    minor: u32,
    file_mode: Option<u32>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

/// The mode of a device without one, as crun has it.
const DEVICE_MODE: u32 = 0o666;

impl Config {
    /// Reads the configuration from a file.
    ///
    /// # Errors
    /// Those of reading and parsing.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("container {file:?}"))?;
        serde_json::from_slice(&text).with_context(|| format!("container {file:?}"))
    }

    /// The container.
    ///
    /// # Errors
    /// A member with a wrong value.
    pub fn container(&self) -> anyhow::Result<Container> {
        let Linux { devices, masked_paths, readonly_paths, sysctl, resources } = &self.linux;
        for path in self.mounts.iter().map(|mount| &mount.destination).chain(masked_paths).chain(readonly_paths) {
            if !path.starts_with('/') {
                bail!("container: {path:?}: an absolute path is expected");
            }
        }
        let mount = |mount: &ConfigMount| Mount {
            target: mount.destination.clone(),
            fstype: mount.kind.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
        };
        Ok(Container {
            root: self.root.path.clone(),
            readonly: self.root.readonly,
            hostname: self.hostname.clone().filter(|name| !name.is_empty()),
            domainname: self.domainname.clone().filter(|name| !name.is_empty()),
            mounts: self.mounts.iter().map(mount).collect(),
            devices: devices.iter().map(ConfigDevice::device).collect::<anyhow::Result<_>>()?,
            masked_paths: masked_paths.clone(),
            readonly_paths: readonly_paths.clone(),
            sysctl: sysctl.clone(),
            limits: resources.limits(),
        })
    }
}

impl Resources {
    /// Reads the object from a file.
    ///
    /// # Errors
    /// Those of reading and parsing.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("limits {file:?}"))?;
        serde_json::from_slice(&text).with_context(|| format!("limits {file:?}"))
    }

    /// The limits. A negative number is no limit, and zero says nothing.
    pub fn limits(&self) -> Limits {
        let limit = |number: i64| u64::try_from(number).unwrap_or(Limits::UNLIMITED);
        let given = |number: Option<i64>| number.filter(|number| *number != 0).map(limit);
        Limits {
            memory: given(self.memory.limit),
            pids: given(self.pids.limit),
            cpu_quota: given(self.cpu.quota),
            cpu_period: self.cpu.period.filter(|period| *period > 0),
            cpu_weight: self.cpu.shares.filter(|shares| *shares > 0).map(cgroup::weight),
        }
    }
}

impl ConfigDevice {
    fn device(&self) -> anyhow::Result<Device> {
        let kind = match self.kind.as_str() {
            "c" | "u" => DeviceKind::Character,
            "b" => DeviceKind::Block,
            "p" => DeviceKind::Fifo,
            other => bail!("container: device {:?}: {other:?} is not a type (c, b, u or p)", self.path),
        };
        Ok(Device {
            path: self.path.clone(),
            kind,
            major: self.major,
            minor: self.minor,
            mode: self.file_mode.unwrap_or(DEVICE_MODE),
            uid: self.uid,
            gid: self.gid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(config: Value) -> anyhow::Result<Value> {
        let config: Config = serde_json::from_value(config)?;
        Ok(serde_json::to_value(config.container()?)?)
    }

    #[test]
    fn a_configuration_is_a_container() {
        let full = container(json!({
            "ociVersion": "1.0.2", "process": {"args": ["a"], "cwd": "/"}, "root": {"path": "rootfs", "readonly": true},
            "hostname": "box", "domainname": "",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                {"destination": "/etc/hosts", "source": "/binds/0", "options": ["bind", "ro"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "gid": 5}, {"path": "/p", "type": "p"}],
                "sysctl": {"kernel.msgmax": "1"}, "seccomp": {},
                "resources": {
                    "memory": {"limit": 1048576, "swap": -1}, "pids": {"limit": 20}, "devices": [],
                    "cpu": {"shares": 1024, "quota": 50000, "period": 100000},
                },
            },
        }))
        .unwrap();
        assert_eq!(
            full,
            json!({
                "root": "rootfs", "readonly": true, "hostname": "box",
                "mounts": [
                    {"target": "/proc", "fstype": "proc", "source": "proc", "options": ["nosuid"]},
                    {"target": "/etc/hosts", "source": "/binds/0", "options": ["bind", "ro"]},
                ],
                "devices": [
                    {"path": "/dev/fuse", "kind": "character", "major": 10, "minor": 229, "mode": 438, "gid": 5},
                    {"path": "/p", "kind": "fifo", "mode": 438},
                ],
                "masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"], "sysctl": {"kernel.msgmax": "1"},
                "limits": {"memory": 1048576, "pids": 20, "cpu_quota": 50000, "cpu_period": 100000, "cpu_weight": 39},
            })
        );
        for (resources, limits) in [
            (
                json!({"memory": {"limit": 0}, "pids": {"limit": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0}}),
                None,
            ),
            (
                json!({"pids": {"limit": -1}, "cpu": {"quota": -1}}),
                Some(json!({"pids": u64::MAX, "cpu_quota": u64::MAX})),
            ),
            (
                json!({"memory": {"limit": -1}, "cpu": {"period": 5}}),
                Some(json!({"memory": u64::MAX, "cpu_period": 5})),
            ),
        ] {
            let given = container(json!({"root": {"path": "/"}, "linux": {"resources": resources}})).unwrap();
            assert_eq!(given.get("limits"), limits.as_ref(), "{resources}");
        }
        assert_eq!(container(json!({"root": {"path": "/"}})).unwrap(), json!({"root": "/"}));
    }

    #[test]
    fn a_wrong_member_is_named() {
        for (config, expected) in [
            (json!({}), "missing field `root`"),
            (json!({"root": {"path": "/"}, "mounts": [{"destination": "proc"}]}), "\"proc\": an absolute path"),
            (json!({"root": {"path": "/"}, "linux": {"maskedPaths": ["x"]}}), "\"x\": an absolute path"),
            (
                json!({"root": {"path": "/"}, "linux": {"devices": [{"path": "/d", "type": "x"}]}}),
                "\"x\" is not a type",
            ),
        ] {
            let error = format!("{:#}", container(config.clone()).unwrap_err());
            assert!(error.contains(expected), "{config}: {error}");
        }
    }
}
