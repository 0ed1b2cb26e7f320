//! The limits of a container: a cgroup around those of its commands. A container sees the cgroup of its first command as the root of all
//! cgroups, so it cannot change its limits.

use std::fs;
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use msb::wire::container::Limits;

use crate::container::{Failed, at};
use crate::thrash;

/// `cpu.max` of a new cgroup (the kernel's cgroup-v2.rst).
const NEW_CPU_MAX: &str = "max 100000";

/// The cgroup of a container with limits.
#[derive(Debug)]
pub struct Limited {
    dir: PathBuf,
    /// Its memory is watched as long as there is one. Locked while limits change.
    watch: Mutex<Option<PipeWriter>>,
}

impl Limited {
    /// Makes the cgroup, whose directory must not exist yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]; a limit that the kernel does not have or take.
    pub fn make(dir: PathBuf, limits: &Limits) -> Result<Self, Failed> {
        fs::create_dir(&dir).map_err(at("cgroup"))?;
        match Self::set_up(&dir, limits) {
            Ok(watch) => Ok(Self { dir, watch: Mutex::new(watch) }),
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                Err(error)
            }
        }
    }

    fn set_up(dir: &Path, limits: &Limits) -> Result<Option<PipeWriter>, Failed> {
        for (file, value) in files(limits, NEW_CPU_MAX) {
            write(dir, file, &value)?;
        }
        // The cgroups of its commands need memory and pids, for the counts of out-of-memory kills and processes. They need no cpu: the
        // processors are shared by containers, and not by the commands in one.
        fs::write(dir.join("cgroup.subtree_control"), "+memory +pids").map_err(at("controllers"))?;
        watch(dir, limits)
    }

    /// Changes limits: all of them, or none if the kernel does not take one.
    ///
    /// # Errors
    /// The limit that the kernel does not have or take.
    pub fn change(&self, limits: &Limits) -> Result<(), Failed> {
        let mut watched = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |file| fs::read_to_string(self.dir.join(file)).map_err(at(format!("limit {file}")));
        let cpu_max = if limits.cpu_quota.or(limits.cpu_period).is_some() { read("cpu.max")? } else { String::new() };
        let mut before = Vec::new();
        let changed = files(limits, &cpu_max).into_iter().try_for_each(|(file, value)| {
            before.push((file, read(file)?));
            write(&self.dir, file, &value)
        });
        let changed = changed.and_then(|()| match *watched {
            None => watch(&self.dir, limits).map(|watch| *watched = watch),
            Some(_) => Ok(()),
        });
        if changed.is_err() {
            for (file, value) in before.iter().rev() {
                let _ = write(&self.dir, file, value.trim_end());
            }
        }
        changed
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its directory, which is to be removed.
    pub fn into_dir(self) -> PathBuf {
        self.dir
    }
}

/// Watches the memory of a cgroup, if these limits have one of memory.
fn watch(dir: &Path, limits: &Limits) -> Result<Option<PipeWriter>, Failed> {
    if limits.memory.is_none_or(|bytes| bytes == Limits::UNLIMITED) {
        return Ok(None);
    }
    let (end, watch) = io::pipe().map_err(at("pipe"))?;
    thrash::watch(dir.to_owned(), Some(end)).map_err(at("watch the memory"))?;
    Ok(Some(watch))
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), Failed> {
    fs::write(dir.join(file), value).map_err(at(format!("limit {file} {value:?}")))
}

/// Whether there are limits of the processors, whose controller is enabled for them alone.
pub fn need_cpu(limits: &Limits) -> bool {
    limits.cpu_quota.or(limits.cpu_period).or(limits.cpu_weight).is_some()
}

/// The files of a cgroup and their values. `cpu_max` is the content of `cpu.max`, of which one of the two values may remain.
fn files(limits: &Limits, cpu_max: &str) -> Vec<(&'static str, String)> {
    let text = |value: u64| if value == Limits::UNLIMITED { "max".to_owned() } else { value.to_string() };
    let mut files = Vec::new();
    files.extend(limits.pids.map(|count| ("pids.max", text(count))));
    files.extend(limits.cpu_weight.map(|weight| ("cpu.weight", text(weight))));
    if limits.cpu_quota.or(limits.cpu_period).is_some() {
        let mut now = cpu_max.split_whitespace().map(str::to_owned);
        let (quota, period) = (now.next().unwrap_or_default(), now.next().unwrap_or_default());
        let value = format!("{} {}", limits.cpu_quota.map_or(quota, text), limits.cpu_period.map_or(period, text));
        files.push(("cpu.max", value));
    }
    // The last one: a limit below what is used has processes killed.
    files.extend(limits.memory.map(|bytes| ("memory.max", text(bytes))));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_a_file() {
        let limits = Limits {
            memory: Some(1 << 20),
            pids: Some(7),
            cpu_quota: Some(50_000),
            cpu_period: Some(20_000),
            cpu_weight: Some(39),
        };
        let text = |limits, cpu_max| {
            files(&limits, cpu_max).iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
        };
        let all = text(limits, "max 100000");
        assert_eq!(all, "pids.max=7 cpu.weight=39 cpu.max=50000 20000 memory.max=1048576");
        let none = Limits::default();
        let quota = Limits { cpu_quota: Some(50_000), ..none };
        let period = Limits { cpu_period: Some(20_000), ..none };
        let weight = Limits { cpu_weight: Some(39), ..none };
        let unlimited = Limits { cpu_quota: Some(Limits::UNLIMITED), memory: Some(Limits::UNLIMITED), ..none };
        for (limits, expected, uses_cpu) in [
            (quota, "cpu.max=50000 70000", true),
            (period, "cpu.max=30000 20000", true),
            (weight, "cpu.weight=39", true),
            (unlimited, "cpu.max=max 70000 memory.max=max", true),
            (Limits { pids: Some(Limits::UNLIMITED), ..none }, "pids.max=max", false),
            (none, "", false),
        ] {
            assert_eq!((text(limits, "30000 70000\n").as_str(), need_cpu(&limits)), (expected, uses_cpu), "{limits:?}");
        }
    }

    #[test]
    fn a_change_that_fails_leaves_all_limits_as_they_were() {
        let scratch = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| fs::write(scratch.path().join(file), text).unwrap();
        let get = |file: &str| fs::read_to_string(scratch.path().join(file)).unwrap_or_default().trim_end().to_owned();
        put("pids.max", "7\n");
        put("cpu.max", "max 100000\n");
        let limited = Limited { dir: scratch.path().to_owned(), watch: Mutex::default() };
        let limits = Limits { pids: Some(9), cpu_quota: Some(5000), cpu_weight: None, ..Limits::default() };
        limited.change(&limits).unwrap();
        assert_eq!((get("pids.max"), get("cpu.max")), ("9".into(), "5000 100000".into()));
        // The kernel has no such limit.
        let limits = Limits { pids: Some(11), cpu_quota: Some(7000), memory: Some(1 << 20), ..limits };
        let (step, _) = limited.change(&limits).unwrap_err();
        assert_eq!(
            (step.as_str(), get("pids.max"), get("cpu.max")),
            ("limit memory.max", "9".into(), "5000 100000".into())
        );
        // It has one, and its memory cannot be watched.
        put("memory.max", "max\n");
        let (step, _) = limited.change(&limits).unwrap_err();
        assert_eq!((step.as_str(), get("pids.max"), get("memory.max")), ("watch the memory", "9".into(), "max".into()));
        put("memory.events", "max 0\n");
        limited.change(&limits).unwrap();
        assert_eq!((get("pids.max"), get("memory.max")), ("11".into(), "1048576".into()));
        assert!(limited.watch.lock().unwrap().is_some());
    }

    #[test]
    fn a_cgroup_that_exists_or_takes_no_limit_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("missing/container");
        assert!(Limited::make(dir, &Limits::default()).is_err());
        let (_, why) = Limited::make(scratch.path().to_owned(), &Limits::default()).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::AlreadyExists);
    }
}
