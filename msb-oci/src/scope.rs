//! A scope of systemd (systemd.scope(5)), which is the cgroup of a container where the engine lets systemd manage cgroups. systemd's own
//! programs speak to it: systemd-run makes the scope, and systemctl changes and ends it.
//!
//! systemd delegates the cgroup, so its processes and files are msb-oci's. The limits are properties of the unit too: systemd writes those
//! again when it reloads its configuration.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use msb::cgroup::weight;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::plan::{Limits, PERIOD};
use crate::tool;

/// What exists as long as systemd is the init (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long systemd may take to make a scope.
const LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A scope, and the slice that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    slice: String,
    name: String,
    /// Whether it was made for the container. Before, the name may be that of another unit.
    #[serde(default)]
    is_made: bool,
}

/// A process that keeps a new scope, which would end without one.
#[derive(Debug)]
pub(crate) struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // Its stdin ends.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Scope {
    /// Reads a path of the form SLICE:PREFIX:NAME, as engines write it for this manager.
    ///
    /// # Errors
    /// Another form.
    pub(crate) fn parse(path: &Path) -> anyhow::Result<Self> {
        let text = path.to_str().unwrap_or_default();
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts.as_slice() else {
            bail!("cgroupsPath {text:?}: SLICE:PREFIX:NAME is expected with --systemd-cgroup");
        };
        let slice = if slice.is_empty() { "system.slice".to_owned() } else { (*slice).to_owned() };
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        // systemd would make another name of one with other characters (systemd.unit(5)).
        let is_plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.@\\".contains(c));
        ensure!(
            is_plain(&slice) && slice.ends_with(".slice"),
            "cgroupsPath {text:?}: {slice:?} is not the name of a slice"
        );
        ensure!(
            // The cgroup of a name that begins with "_" has another name.
            is_plain(&name) && !name.starts_with(['.', '-', '_']),
            "cgroupsPath {text:?}: {name:?} is not the name of a scope"
        );
        Ok(Self { slice, name, is_made: false })
    }

    /// The scope of a container whose config names none.
    ///
    /// # Errors
    /// An ID that cannot be part of a unit's name.
    pub(crate) fn of_container(id: &str) -> anyhow::Result<Self> {
        // As systemd-escape(1) writes the only character of an ID that a unit's name cannot have.
        Self::parse(Path::new(&format!(":msb-oci:{}", id.replace('+', r"\x2b"))))
    }

    /// Its cgroup. A slice is below those that its name begins with: a-b.slice is in a.slice.
    pub(crate) fn path(&self) -> PathBuf {
        let stem = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        let slices = ends.filter(|_| !stem.is_empty() && stem != "-").map(|end| format!("{}.slice", &stem[..end]));
        slices.chain([self.name.clone()]).collect()
    }

    /// Has systemd make the scope with these limits. It lives as long as the holder, or a process that enters its cgroup.
    ///
    /// # Errors
    /// systemd does not run, or its message.
    pub(crate) fn make(&mut self, limits: &Limits) -> anyhow::Result<Holder> {
        if !Path::new(BOOTED).is_dir() {
            bail!(
                "--systemd-cgroup: systemd does not run here, and makes no cgroups (use the manager cgroupfs: podman \
                 --cgroup-manager cgroupfs, or SystemdCgroup = false of containerd)"
            );
        }
        let mut command = Command::new("systemd-run");
        command.args(["--scope", "--quiet", "--collect", "--no-ask-password"]);
        command.arg(format!("--unit={}", self.name)).arg(format!("--slice={}", self.slice));
        // As without systemd: the number of processes is not limited on the host, and a container outlives the stop of other units.
        let fixed = ["Description=container of msb-oci", "Delegate=yes", "DefaultDependencies=no", "TasksMax=infinity"];
        for property in fixed.map(str::to_owned).into_iter().chain(properties(limits)) {
            command.arg(format!("--property={property}"));
        }
        command.args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("systemd-run")?;
        // It executes cat when systemd has moved it into the scope.
        match echo(&mut child) {
            Ok(true) => {
                self.is_made = true;
                Ok(Holder(child))
            }
            Ok(false) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("systemd has not made {:?} within {} s (see \"systemctl list-jobs\")", self.name, LIMIT.tv_sec)
            }
            Err(_) => {
                let output = child.wait_with_output().context("systemd-run")?;
                let error = String::from_utf8_lossy(&output.stderr);
                bail!("{}", tool::message("systemd-run", &error, &output.status.to_string()))
            }
        }
    }

    pub(crate) fn is_made(&self) -> bool {
        self.is_made
    }

    /// Changes limits of the unit.
    ///
    /// # Errors
    /// systemd's message.
    pub(crate) fn limit(&self, limits: &Limits) -> anyhow::Result<()> {
        let properties = properties(limits);
        if properties.is_empty() {
            return Ok(());
        }
        let mut command = Command::new("systemctl");
        command.args(["--no-ask-password", "--runtime", "set-property", &self.name]).args(properties);
        tool::output(&mut command).map(drop)
    }

    /// Ends the unit, whose processes have ended. Its name is free then.
    pub(crate) fn end(&self) {
        // It ends with its last process too, and is unknown then.
        let _ = tool::output(Command::new("systemctl").args(["--no-ask-password", "stop", &self.name]));
    }
}

/// Whether a process writes to its stdout what it reads from its stdin, within [`LIMIT`].
///
/// # Errors
/// It has ended.
fn echo(child: &mut Child) -> io::Result<bool> {
    let (Some(stdin), Some(stdout)) = (&mut child.stdin, &mut child.stdout) else { return Ok(true) };
    stdin.write_all(b"\n")?;
    if poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&LIMIT))? == 0 {
        return Ok(false);
    }
    stdout.read_exact(&mut [0]).map(|()| true)
}

/// The limits as properties of a unit (systemd.resource-control(5)).
fn properties(limits: &Limits) -> Vec<String> {
    let mut properties = Vec::new();
    properties.extend(limits.memory.map(|bytes| format!("MemoryMax={bytes}")));
    properties.extend(limits.cpu_shares.map(|shares| format!("CPUWeight={}", weight(shares))));
    if let Some(quota) = limits.cpu_quota {
        let period = limits.cpu_period.filter(|period| *period > 0).unwrap_or(PERIOD);
        // In whole percents, rounded up as by runc: systemd rounds down what it stores, and a reload would lower the quota.
        let share = u64::try_from(quota).ok().filter(|quota| *quota > 0);
        let percent = share.map(|quota| quota.saturating_mul(100).div_ceil(period));
        properties.push(percent.map_or("CPUQuota=".to_owned(), |percent| format!("CPUQuota={percent}%")));
    }
    properties.extend(limits.cpu_period.map(|period| format!("CPUQuotaPeriodSec={period}us")));
    properties.extend(limits.cpuset_cpus.as_ref().map(|cpus| format!("AllowedCPUs={cpus}")));
    properties.extend(limits.cpuset_mems.as_ref().map(|nodes| format!("AllowedMemoryNodes={nodes}")));
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_that_of_the_scope_in_its_slices() {
        for (given, name, path) in [
            ("machine.slice:libpod:x", "libpod-x.scope", "machine.slice/libpod-x.scope"),
            ("a-b-c.slice:cri:x", "cri-x.scope", "a.slice/a-b.slice/a-b-c.slice/cri-x.scope"),
            ("::x", "x.scope", "system.slice/x.scope"),
            ("-.slice::x", "x.scope", "x.scope"),
        ] {
            let scope = Scope::parse(Path::new(given)).unwrap();
            assert_eq!((scope.name.as_str(), scope.path().as_path()), (name, Path::new(path)), "{given}");
        }
        for bad in [
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a.slice:../b:c",
            "../a.slice:b:c",
            "a.slice:b:c d",
            "a.slice::-x",
            "a.slice::.x",
            "a.slice::_x",
        ] {
            assert!(Scope::parse(Path::new(bad)).is_err(), "{bad}");
        }
        let path = Scope::of_container("a+b").unwrap().path();
        assert_eq!(path, Path::new(r"system.slice/msb-oci-a\x2bb.scope"));
    }

    #[test]
    fn a_process_that_has_ended_does_not_echo() {
        let start = |program: &str| {
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut cat = Holder(start("cat"));
        assert!(echo(&mut cat.0).unwrap());
        assert!(echo(&mut Holder(start("true")).0).is_err());
    }

    #[test]
    fn limits_are_properties_of_the_unit() {
        let of = |limits: &Limits| properties(limits).join(" ");
        let limits = Limits {
            memory: Some(1 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(150_000),
            cpu_period: Some(50_000),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
        };
        assert_eq!(
            of(&limits),
            "MemoryMax=1048576 CPUWeight=39 CPUQuota=300% CPUQuotaPeriodSec=50000us AllowedCPUs=0-1 AllowedMemoryNodes=0"
        );
        for (quota, expected) in [
            (12_345, "CPUQuota=13%"),
            (1000, "CPUQuota=1%"),
            (1, "CPUQuota=1%"),
            (i64::MAX, "CPUQuota=184467440737096%"),
            (-1, "CPUQuota="),
            (0, "CPUQuota="),
        ] {
            assert_eq!(of(&Limits { cpu_quota: Some(quota), ..Limits::default() }), expected);
        }
        let without_period = Limits { cpu_quota: Some(1000), cpu_period: Some(0), ..Limits::default() };
        assert_eq!(of(&without_period), "CPUQuota=1% CPUQuotaPeriodSec=0us");
        assert_eq!(of(&Limits::default()), "");
    }
}
