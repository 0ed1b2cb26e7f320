//! The cgroup of a container: the process that stands for it and all processes of its VM are in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use msb::cgroup::{Hierarchy, hierarchies, weight};
use msb::overlay::user_namespace;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::plan::{Limits, PERIOD};
use crate::scope::{Holder, Scope};

/// Where containers without a path have their cgroups.
const PARENT: &str = "msb-oci";
/// How long the processes of a VM that is ending may take. What runs after that is killed.
const ENDING: Duration = Duration::from_secs(10);
/// How long a killed process may take to end.
const DYING: Duration = Duration::from_secs(5);

/// A cgroup, as its path below each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// What systemd knows it as, if it manages cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
}

/// The cgroups that a process was in.
#[derive(Debug)]
pub(crate) struct Origin(Vec<PathBuf>);

impl Origin {
    /// Those of this process.
    pub(crate) fn of_self() -> Self {
        let table = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(hierarchies().iter().filter_map(|hierarchy| hierarchy.cgroup_of(&table)).collect())
    }

    /// Moves this process back, as far as that is possible.
    pub(crate) fn enter(&self) {
        for dir in &self.0 {
            let _ = fs::write(dir.join("cgroup.procs"), "0");
        }
    }
}

impl Cgroup {
    /// The cgroup that a config names. With systemd's manager the path is SLICE:PREFIX:NAME, and the cgroup is a scope of systemd.
    ///
    /// # Errors
    /// A path of the wrong form.
    pub(crate) fn new(path: Option<&Path>, id: &str, is_systemds: bool) -> anyhow::Result<Self> {
        if is_systemds {
            let scope = path.map_or_else(|| Scope::of_container(id), Scope::parse)?;
            return Ok(Self { path: scope.path(), scope: Some(scope) });
        }
        let path = path.map(|path| path.strip_prefix("/").unwrap_or(path).to_owned());
        Ok(Self { path: path.unwrap_or_else(|| Path::new(PARENT).join(id)), scope: None })
    }

    /// Its scope, if systemd manages it. That of a user's systemd is not used: it is below another cgroup.
    fn systemds(&self) -> Option<&Scope> {
        self.scope.as_ref().filter(|_| user_namespace::is_initial())
    }

    /// Its directory in a hierarchy.
    fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.root.join(&self.path)
    }

    /// Has systemd make its scope with these limits, if systemd manages it. The scope lives until the holder is dropped, or longer if a
    /// process has entered it.
    ///
    /// # Errors
    /// systemd's message.
    pub(crate) fn make_scope(&mut self, limits: &Limits) -> anyhow::Result<Option<Holder>> {
        let scope = self.scope.as_mut().filter(|_| user_namespace::is_initial());
        scope.map(|scope| scope.make(limits)).transpose()
    }

    /// Moves this process into it, and sets the limits of a new cgroup.
    ///
    /// # Errors
    /// A hierarchy that this process cannot write to, or a limit that one does not take.
    pub(crate) fn enter_with(&self, limits: &Limits) -> anyhow::Result<()> {
        self.enter()?;
        self.write(limits)
    }

    /// Moves this process into it in every hierarchy, and makes it where it is missing. The root of a user namespace, as a rootless engine
    /// has it, does so in those that its user may write to, which may be none.
    ///
    /// # Errors
    /// A hierarchy that this process cannot write to.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        for hierarchy in hierarchies() {
            let dir = self.dir(&hierarchy);
            let entered = self.make(&hierarchy).and_then(|()| fs::write(dir.join("cgroup.procs"), "0"));
            match entered {
                Err(error) if is_forbidden(&error) && !user_namespace::is_initial() => {
                    // One without this process would limit and freeze nothing.
                    let _ = fs::remove_dir(&dir);
                }
                other => other.with_context(|| format!("cgroup {dir:?}"))?,
            }
        }
        Ok(())
    }

    /// Whether it is in a hierarchy.
    pub(crate) fn exists(&self) -> bool {
        hierarchies().iter().any(|hierarchy| self.dir(hierarchy).is_dir())
    }

    fn make(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        let mut dir = hierarchy.root.clone();
        for name in self.path.components() {
            let parent = dir.clone();
            dir.push(name);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if hierarchy.is_v2 {
                enable_controllers(&parent);
            } else if hierarchy.has("cpuset") {
                // A cpuset of version 1 has no processors until it is given some.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if fs::read_to_string(dir.join(file))?.trim().is_empty() {
                        fs::write(dir.join(file), fs::read(parent.join(file))?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets limits. `None` leaves one as it is.
    ///
    /// # Errors
    /// The file that does not take its value.
    pub(crate) fn limit(&self, limits: &Limits) -> anyhow::Result<()> {
        // The kernel takes quota and period together.
        let limits = &with_both(limits, hierarchies().iter().find_map(|hierarchy| self.quota(hierarchy)));
        self.write(limits)?;
        if let Some(scope) = self.systemds() {
            scope.limit(limits)?;
            // systemd has rounded them.
            self.write(limits)?;
        }
        Ok(())
    }

    /// Its quota and period in a hierarchy.
    fn quota(&self, hierarchy: &Hierarchy) -> Option<(i64, u64)> {
        let read = |file| fs::read_to_string(self.dir(hierarchy).join(file)).ok();
        match hierarchy.is_v2 {
            true => parse_quota(&read("cpu.max")?),
            false => parse_quota(&format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)),
        }
    }

    fn write(&self, limits: &Limits) -> anyhow::Result<()> {
        for hierarchy in hierarchies() {
            let dir = self.dir(&hierarchy);
            for (controller, file, value) in files(limits, hierarchy.is_v2) {
                // A hybrid machine has version 2 without controllers.
                let path = dir.join(file);
                if hierarchy.has(controller) && path.exists() {
                    fs::write(&path, &value).with_context(|| format!("{path:?}: {value:?}"))?;
                }
            }
        }
        Ok(())
    }

    /// Removes it with those below it, once its processes have ended, which the caller has seen to.
    ///
    /// # Errors
    /// It still has processes in a hierarchy. It is removed from the others.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if self.systemds().is_some_and(|scope| !scope.is_made()) {
            return Ok(());
        }
        let start = Instant::now();
        let mut result: io::Result<()> = Ok(());
        for hierarchy in hierarchies() {
            let dir = self.dir(&hierarchy);
            let removed = loop {
                match remove_tree(&dir) {
                    // The kernel tells no event for the end of a zombie.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < ENDING + DYING => {
                        if start.elapsed() >= ENDING {
                            kill_all(&dir);
                        }
                        thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => break Err(error),
                    _ => break Ok(()),
                }
            };
            result = result.and(removed);
        }
        if result.is_ok()
            && let Some(scope) = self.systemds()
        {
            scope.end();
        }
        result
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Removes a cgroup, those below it first.
fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match remove_tree(&entry.path()) {
                // Somebody else removed it, and this one is still to go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    fs::remove_dir(dir)
}

/// Kills the processes of a cgroup and of those below it, except for this one.
fn kill_all(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for below in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        kill_all(&below.path());
    }
    for pid in processes(dir).into_iter().filter(|pid| *pid != getpid()) {
        // It may have ended, and its number be another process's.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && processes(dir).contains(&pid)
        {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

fn processes(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

/// So that cgroups below have them. A controller that is not there is not enabled.
fn enable_controllers(dir: &Path) {
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The quota, -1 for none, and the period, from the kernel's text.
fn parse_quota(text: &str) -> Option<(i64, u64)> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next()?, words.next()?.parse().ok()?);
    Some((if quota == "max" { -1 } else { quota.parse().ok()? }, period))
}

/// The limits with both quota and period, if they have one of these: the other one stays as it is now.
fn with_both(limits: &Limits, now: Option<(i64, u64)>) -> Limits {
    let mut limits = limits.clone();
    if let Some((quota, period)) = now
        && (limits.cpu_quota.is_some() || limits.cpu_period.is_some())
    {
        limits.cpu_quota.get_or_insert(quota);
        limits.cpu_period.get_or_insert(period);
    }
    limits
}

/// Controllers, files and values of limits.
fn files(limits: &Limits, is_v2: bool) -> Vec<(&'static str, &'static str, String)> {
    let mut files = Vec::new();
    let cpuset = [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)];
    for (file, value) in cpuset {
        files.extend(value.as_ref().map(|value| ("cpuset", file, value.clone())));
    }
    if is_v2 {
        files.extend(limits.memory.map(|bytes| ("memory", "memory.max", bytes.to_string())));
        files.extend(limits.cpu_shares.map(|shares| ("cpu", "cpu.weight", weight(shares).to_string())));
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota =
                limits.cpu_quota.filter(|quota| *quota > 0).map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            files.push(("cpu", "cpu.max", format!("{quota} {}", limits.cpu_period.unwrap_or(PERIOD))));
        }
    } else {
        files.extend(limits.memory.map(|bytes| ("memory", "memory.limit_in_bytes", bytes.to_string())));
        files.extend(limits.cpu_shares.map(|shares| ("cpu", "cpu.shares", shares.to_string())));
        files.extend(limits.cpu_period.map(|period| ("cpu", "cpu.cfs_period_us", period.to_string())));
        files.extend(limits.cpu_quota.map(|quota| ("cpu", "cpu.cfs_quota_us", quota.max(-1).to_string())));
    }
    files
}

/// What freezes a cgroup.
#[derive(Debug)]
pub(crate) struct Freezer {
    file: Option<PathBuf>,
    is_v2: bool,
}

impl Freezer {
    pub(crate) fn of(cgroup: &Cgroup) -> Self {
        let all = hierarchies();
        let v1 = all.iter().find(|hierarchy| !hierarchy.is_v2 && hierarchy.has("freezer"));
        let (hierarchy, name) = match v1 {
            Some(hierarchy) => (Some(hierarchy), "freezer.state"),
            None => (all.iter().find(|hierarchy| hierarchy.is_v2), "cgroup.freeze"),
        };
        let file = hierarchy.map(|hierarchy| cgroup.dir(hierarchy).join(name)).filter(|file| file.exists());
        Self { file, is_v2: v1.is_none() }
    }

    /// Whether it is frozen, or is being frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        matches!(text.trim(), "FROZEN" | "FREEZING" | "1")
    }

    /// Freezes or thaws it.
    ///
    /// # Errors
    /// There is no such controller.
    pub(crate) fn set(&self, is_frozen: bool) -> anyhow::Result<()> {
        let file = self.file.as_ref().context("the container has no cgroup with a freezer")?;
        let value = match (self.is_v2, is_frozen) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        fs::write(file, value).with_context(|| format!("{file:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{self, Command};

    use super::*;

    #[test]
    fn processes_of_a_cgroup_and_of_those_below_are_killed_and_this_one_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let below = scratch.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        let mut children = [(); 2].map(|()| Command::new("sleep").arg("60").spawn().unwrap());
        fs::write(scratch.path().join("cgroup.procs"), format!("{}\n{}\n", process::id(), children[0].id())).unwrap();
        fs::write(below.join("cgroup.procs"), format!("{}\n", children[1].id())).unwrap();
        kill_all(scratch.path());
        for child in &mut children {
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
    }

    #[test]
    fn a_path_is_the_configs_or_of_the_id_or_that_of_systemds_scope() {
        let path =
            |path: Option<&str>, systemd| Cgroup::new(path.map(Path::new), "id", systemd).map(|cgroup| cgroup.path);
        for (given, systemd, expected) in [
            (None, false, "msb-oci/id"),
            (Some("/a/b"), false, "a/b"),
            (Some("a/b"), false, "a/b"),
            (Some("a-b.slice:cri:x"), true, "a.slice/a-b.slice/cri-x.scope"),
        ] {
            assert_eq!(path(given, systemd).unwrap(), Path::new(expected), "{given:?}");
        }
        assert_eq!(path(None, true).unwrap(), Path::new("system.slice/msb-oci-id.scope"));
        assert!(path(Some("/a/b"), true).is_err());
    }

    #[test]
    fn a_quota_or_a_period_alone_leaves_the_other_one() {
        for (text, expected) in [
            ("max 100000\n", Some((-1, 100_000))),
            ("30000 70000\n", Some((30_000, 70_000))),
            ("-1\n 50000\n", Some((-1, 50_000))),
            ("30000", None),
            ("", None),
            ("x 70000", None),
        ] {
            assert_eq!(parse_quota(text), expected, "{text:?}");
        }
        let limits = |cpu_quota, cpu_period| Limits { cpu_quota, cpu_period, ..Limits::default() };
        let now = Some((30_000, 70_000));
        for (quota, period, expected) in [
            (None, None, (None, None)),
            (Some(5), None, (Some(5), Some(70_000))),
            (Some(-1), None, (Some(-1), Some(70_000))),
            (None, Some(5), (Some(30_000), Some(5))),
            (Some(5), Some(6), (Some(5), Some(6))),
        ] {
            let (expected_quota, expected_period) = expected;
            assert_eq!(with_both(&limits(quota, period), now), limits(expected_quota, expected_period));
        }
        assert_eq!(with_both(&limits(Some(5), None), None), limits(Some(5), None));
    }

    #[test]
    fn limits_are_written_in_the_files_of_each_version() {
        let limits = Limits {
            memory: Some(1 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(150_000),
            cpu_period: Some(50_000),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: None,
        };
        let text = |limits: &Limits, is_v2| {
            files(limits, is_v2).iter().map(|(_, file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(&limits, true), "cpuset.cpus=0-1 memory.max=1048576 cpu.weight=39 cpu.max=150000 50000");
        assert_eq!(
            text(&limits, false),
            "cpuset.cpus=0-1 memory.limit_in_bytes=1048576 cpu.shares=1024 cpu.cfs_period_us=50000 cpu.cfs_quota_us=150000"
        );
        let unlimited = Limits { cpu_quota: Some(-1), ..Limits::default() };
        assert_eq!(text(&unlimited, true), "cpu.max=max 100000");
        assert_eq!(text(&unlimited, false), "cpu.cfs_quota_us=-1");
    }
}
