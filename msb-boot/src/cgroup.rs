//! The cgroup of a VM that has limits (cgroups(7)). The supervisor and all processes of the VM are in it. A VM without limits stays in the
//! cgroup of its caller.
//!
//! In version 2 there is one. In version 1 there is one for each controller that a limit needs, and a machine may have both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::cgroup::{Hierarchy, hierarchies};
use msb::record::Limits;
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::unusable::Unusable;

/// The period of a quota, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// The largest weight of the I/O scheduler BFQ.
const MAX_BFQ_WEIGHT: u16 = 1000;
/// What makes cgroups possible.
const REMEDY: &str = "a user: systemd-run --user --scope -p Delegate=yes msb-boot ...; a container: --cgroupns=host -v \
                      /sys/fs/cgroup:/sys/fs/cgroup";

/// A limit as a file of a cgroup.
#[derive(Debug, PartialEq)]
struct Setting {
    controller: &'static str,
    /// Files and values. The first file that the kernel has takes its value.
    files: Vec<(&'static str, String)>,
}

/// The limits as files of a version, with the names that controllers have there.
fn settings(limits: &Limits, is_v2: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |controller, files| settings.push(Setting { controller, files });
    if let Some(percent) = limits.cpu_quota_percent {
        let quota = u64::from(percent) * PERIOD / 100;
        add(
            "cpu",
            match is_v2 {
                true => vec![("cpu.max", format!("{quota} {PERIOD}"))],
                false => vec![("cpu.cfs_quota_us", quota.to_string())],
            },
        );
    }
    if let Some(weight) = limits.cpu_weight {
        add(
            "cpu",
            match is_v2 {
                true => vec![("cpu.weight", weight.to_string())],
                // The defaults are 1024 and 100, and the least is 2.
                false => vec![("cpu.shares", (u64::from(weight) * 1024 / 100).to_string())],
            },
        );
    }
    if let Some(weight) = limits.io_weight {
        let bfq = weight.min(MAX_BFQ_WEIGHT).to_string();
        match is_v2 {
            true => add("io", vec![("io.weight", weight.to_string()), ("io.bfq.weight", bfq)]),
            false => add("blkio", vec![("blkio.bfq.weight", bfq.clone()), ("blkio.weight", bfq)]),
        }
    }
    if let Some(mib) = limits.memory_max_mib {
        let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        add("memory", vec![(file, (u64::from(mib) << 20).to_string())]);
    }
    if let Some(pids) = limits.pids_max {
        add("pids", vec![("pids.max", pids.to_string())]);
    }
    settings
}

impl Setting {
    /// Sets it in the cgroup `dir`.
    fn set(&self, dir: &Path) -> anyhow::Result<()> {
        let Some((file, value)) = self.files.iter().find(|(file, _)| dir.join(file).exists()) else {
            let names: Vec<_> = self.files.iter().map(|(file, _)| *file).collect();
            bail!("cgroup {dir:?}: this kernel has no {} there", names.join(" and no "));
        };
        write(&dir.join(file), value)
    }
}

/// A directory in which the VM's cgroup is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    dir: PathBuf,
    /// The cgroup of this process, to which the supervisor returns.
    origin: PathBuf,
    is_v2: bool,
    /// The controllers that limits need of it.
    controllers: Vec<String>,
}

impl Parent {
    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn has(&self, setting: &Setting) -> bool {
        self.controllers.iter().any(|controller| controller == setting.controller)
    }

    /// Why no cgroup can be made in it, if so.
    fn obstacle(&self) -> Option<String> {
        let Self { dir, .. } = self;
        let is_writable = |path: &Path| access(path, Access::WRITE_OK).is_ok();
        if !is_writable(dir) || !is_writable(&dir.join("cgroup.procs")) {
            return Some(format!("{dir:?} is not writable"));
        }
        if !self.is_v2 {
            return None;
        }
        let listed = |file: &str| {
            let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
            text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let (available, enabled) = (listed("cgroup.controllers"), listed("cgroup.subtree_control"));
        if let Some(missing) = self.controllers.iter().find(|name| !available.contains(name)) {
            return Some(format!("{dir:?} has no controller {missing:?}"));
        }
        // The root of all has no such file. No other cgroup may have processes and controllers for those below it.
        let is_root = !dir.join("cgroup.events").exists();
        let is_ready = self.controllers.iter().all(|name| enabled.contains(name));
        let has_processes = || !listed("cgroup.procs").is_empty();
        (!is_root && !is_ready && has_processes()).then(|| format!("{dir:?} has processes and no controllers below it"))
    }
}

/// The directories in which this process can make a cgroup with these limits. Makes nothing.
///
/// # Errors
/// Why it cannot.
pub(crate) fn find_parents(limits: &Limits) -> Result<Vec<Parent>, Unusable> {
    let table = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    find_in(&hierarchies(), &table, limits)
}

fn find_in(hierarchies: &[Hierarchy], table: &str, limits: &Limits) -> Result<Vec<Parent>, Unusable> {
    let own = |hierarchy: &Hierarchy| {
        hierarchy.cgroup_of(table).filter(|dir| dir.exists()).unwrap_or_else(|| hierarchy.root.clone())
    };
    let mut parents = Vec::new();
    // A controller is in one hierarchy. Below this process's cgroup, the limits of that one apply too.
    for hierarchy in hierarchies.iter().filter(|hierarchy| !hierarchy.is_v2) {
        let controllers = controllers(limits, false, |name| hierarchy.has(name));
        if !controllers.is_empty() {
            let origin = own(hierarchy);
            let parent = Parent { dir: origin.clone(), origin, is_v2: false, controllers };
            if let Some(found) = parent.obstacle() {
                return Err(Unusable::new(format!("no cgroup can be made: {found}"), REMEDY));
            }
            parents.push(parent);
        }
    }
    let is_in_v1 = |name: &str| {
        let name = if name == "io" { "blkio" } else { name };
        parents.iter().any(|parent| parent.controllers.iter().any(|controller| controller == name))
    };
    let rest = controllers(limits, true, |name| !is_in_v1(name));
    if rest.is_empty() {
        return Ok(parents);
    }
    let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.is_v2) else {
        let found = format!("/sys/fs/cgroup has no controller {:?}", rest[0]);
        return Err(Unusable::new(found, REMEDY));
    };
    // Beside this process's cgroup, since none can be made below one with processes. The root of all may be the only one with the
    // controllers.
    let origin = own(hierarchy);
    let beside = if origin == hierarchy.root { None } else { origin.parent().map(Path::to_owned) };
    let mut found = String::new();
    for dir in beside.into_iter().chain([hierarchy.root.clone()]) {
        let parent = Parent { dir, origin: origin.clone(), is_v2: true, controllers: rest.clone() };
        match parent.obstacle() {
            None => {
                parents.push(parent);
                return Ok(parents);
            }
            Some(obstacle) if found.is_empty() => found = obstacle,
            Some(_) => {}
        }
    }
    Err(Unusable::new(format!("no cgroup can be made: {found}"), REMEDY))
}

/// The controllers that limits need, by their names in a version, without those that `is_wanted` rejects.
fn controllers(limits: &Limits, is_v2: bool, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = settings(limits, is_v2).into_iter().map(|setting| setting.controller);
    let mut names: Vec<_> = names.filter(|name| is_wanted(name)).map(str::to_owned).collect();
    names.dedup();
    names
}

/// Checks that a VM can have its limits. `overhead_mib` is what its VMM needs besides the guest's memory, if that is known. Makes nothing.
///
/// # Errors
/// Why it cannot.
pub(crate) fn check(limits: &Limits, memory_mib: u32, overhead_mib: Option<u32>) -> anyhow::Result<Vec<Parent>> {
    let needed = memory_mib.saturating_add(overhead_mib.unwrap_or(0));
    if let Some(max) = limits.memory_max_mib.filter(|max| *max < needed) {
        bail!(
            "--memory-max {max}M: the VM needs {needed} MiB, of which {memory_mib} are the guest's (raise it, or lower --memory)"
        );
    }
    find_parents(limits).context("limits of the VM")
}

/// A cgroup with this process in it. When it is dropped, the process returns to the cgroup that it came from.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    /// Its directory in each hierarchy, and the one that the process came from.
    places: Vec<(PathBuf, PathBuf)>,
}

impl Cgroup {
    /// Makes the cgroup of the VM `name`, with its limits, and enters it. Without parents this is nothing.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub(crate) fn enter(parents: &[Parent], name: &str, limits: &Limits) -> anyhow::Result<Self> {
        let mut cgroup = Self::default();
        for parent in parents {
            remove_left(&parent.dir);
            if parent.is_v2 {
                for controller in &parent.controllers {
                    write(&parent.dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
                }
            }
            let dir = parent.dir.join(format!("msb-{name}.{}", std::process::id()));
            fs::create_dir(&dir).with_context(|| format!("cgroup {dir:?}"))?;
            cgroup.places.push((dir.clone(), parent.origin.clone()));
            for setting in settings(limits, parent.is_v2).iter().filter(|setting| parent.has(setting)) {
                setting.set(&dir)?;
            }
            write(&dir.join("cgroup.procs"), "0")?;
        }
        Ok(cgroup)
    }

    /// Whether the kernel has killed a process in it because of its limit of memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let files = ["memory.events", "memory.oom_control"];
        let paths = self.places.iter().flat_map(|(dir, _)| files.map(|file| dir.join(file)));
        paths.filter_map(|path| fs::read_to_string(path).ok()).any(|text| oom_kills(&text) > 0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (dir, origin) in self.places.drain(..).rev() {
            if let Err(error) = fs::write(origin.join("cgroup.procs"), "0").and_then(|()| fs::remove_dir(&dir)) {
                crate::log::note(format_args!("cgroup {dir:?}: {error}"));
            }
        }
    }
}

/// The counter in a memory.events (version 2) or memory.oom_control (version 1).
fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// Removes the cgroups of supervisors that have ended: they were killed, or could not return to a scope that systemd had removed. One
/// with processes stays.
fn remove_left(parent: &Path) {
    let has_ended = |id: u32| id == std::process::id() || !Path::new("/proc").join(id.to_string()).exists();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("msb-")?.rsplit_once('.')?.1.parse::<u32>().ok());
        if id.is_some_and(has_ended) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn write(file: &Path, value: &str) -> anyhow::Result<()> {
    fs::write(file, value).with_context(|| format!("{file:?}: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let mut limits = Limits::default();
        (limits.cpu_quota_percent, limits.cpu_weight, limits.io_weight) = (Some(150), Some(50), Some(2000));
        (limits.memory_max_mib, limits.pids_max) = (Some(640), Some(99));
        limits
    }

    fn text(limits: &Limits, is_v2: bool) -> String {
        let files = settings(limits, is_v2).into_iter().flat_map(|setting| setting.files);
        files.map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_limit_is_a_file_of_its_version() {
        assert_eq!(
            text(&limits(), true),
            "cpu.max=150000 100000 cpu.weight=50 io.weight=2000 io.bfq.weight=1000 memory.max=671088640 pids.max=99"
        );
        assert_eq!(
            text(&limits(), false),
            "cpu.cfs_quota_us=150000 cpu.shares=512 blkio.bfq.weight=1000 blkio.weight=1000 \
             memory.limit_in_bytes=671088640 pids.max=99"
        );
        assert_eq!(text(&Limits::default(), true), "");
        assert_eq!(controllers(&limits(), true, |_| true), ["cpu", "io", "memory", "pids"]);
    }

    /// A directory that looks like a cgroup of version 2.
    fn fake(dir: &Path, controllers: &str, enabled: &str, processes: &str) {
        fs::create_dir_all(dir).unwrap();
        for (file, text) in
            [("controllers", controllers), ("subtree_control", enabled), ("procs", processes), ("events", "")]
        {
            fs::write(dir.join(format!("cgroup.{file}")), text).unwrap();
        }
    }

    #[test]
    fn version_1_has_a_cgroup_for_each_controller_and_version_2_the_rest() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fake(&at("memory/own"), "", "", "1\n");
        fake(&at("unified/a/own"), "cpu", "", "1\n");
        fake(&at("unified/a"), "cpu pids", "cpu pids", "");
        let all = [("memory", false), ("unified", true)].map(|(name, is_v2)| Hierarchy { root: at(name), is_v2 });
        let table = "4:memory:/own\n0::/a/own\n";
        let mut limits = Limits::default();
        (limits.memory_max_mib, limits.pids_max, limits.cpu_weight) = (Some(1), Some(2), Some(3));
        let parents = find_in(&all, table, &limits).unwrap();
        let found: Vec<_> = parents.iter().map(|parent| (parent.dir.clone(), parent.controllers.join(" "))).collect();
        assert_eq!(found, [(at("memory/own"), "memory".into()), (at("unified/a"), "cpu pids".into())]);
        assert_eq!(parents[1].origin, at("unified/a/own"));
        limits.io_weight = Some(5);
        let why = find_in(&all, table, &limits).unwrap_err().to_string();
        assert!(why.contains("unified/a\" has no controller \"io\""), "{why}");
        assert_eq!(find_in(&[], table, &Limits::default()).unwrap(), []);
        assert!(find_in(&[], table, &limits).unwrap_err().to_string().contains("no controller \"cpu\""));
    }

    #[test]
    fn a_cgroup_with_processes_gets_no_controllers_for_those_below_it() {
        let scratch = tempfile::tempdir().unwrap();
        let parent = |dir: &str| Parent {
            dir: scratch.path().join(dir),
            origin: PathBuf::new(),
            is_v2: true,
            controllers: vec!["pids".into()],
        };
        for (enabled, processes, is_possible) in [("", "7\n", false), ("pids", "7\n", true), ("", "", true)] {
            fake(&scratch.path().join("a"), "cpu pids", enabled, processes);
            assert_eq!(parent("a").obstacle().is_none(), is_possible, "{enabled:?} {processes:?}");
        }
        assert!(parent("missing").obstacle().unwrap().contains("not writable"));
    }

    #[test]
    fn what_ended_supervisors_left_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let [own, parent] = [std::process::id(), std::os::unix::process::parent_id()].map(|id| format!("msb-a.{id}"));
        // No PID is so large.
        let dirs = ["msb-a.9999999", "msb-a.b.9999999", own.as_str(), "msb-a.x", "a.9999999", parent.as_str()];
        let dirs = dirs.map(|name| scratch.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        remove_left(scratch.path());
        assert_eq!(dirs.map(|dir| dir.exists()), [false, false, false, true, true, true]);
    }

    #[test]
    fn kills_for_lack_of_memory_are_counted() {
        assert_eq!(oom_kills("low 0\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }

    #[test]
    fn less_memory_than_the_vm_needs_is_refused() {
        let mut limits = Limits::default();
        assert_eq!(check(&limits, 512, None).unwrap(), []);
        limits.memory_max_mib = Some(520);
        let why = check(&limits, 512, Some(80)).unwrap_err().to_string();
        assert!(why.starts_with("--memory-max 520M: the VM needs 592 MiB, of which 512 are the guest's"), "{why}");
    }
}
