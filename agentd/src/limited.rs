//! The limits of a container: a cgroup around those of its commands. A container sees the cgroup of its first command as the root of all
//! cgroups, so it cannot change its limits.

use std::fs;
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};

use msb::wire::container::Limits;

use crate::container::{Failed, at};
use crate::thrash;

/// The period of a quota without one, in microseconds.
const PERIOD: u64 = 100_000;

/// The cgroup of a container with limits.
#[derive(Debug)]
pub struct Limited {
    dir: PathBuf,
    /// Its memory is watched as long as this exists.
    _watch: Option<PipeWriter>,
}

impl Limited {
    /// Makes the cgroup, whose directory must not exist yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]; a limit that the kernel does not have or take.
    pub fn make(dir: PathBuf, limits: &Limits) -> Result<Self, Failed> {
        fs::create_dir(&dir).map_err(at("cgroup"))?;
        match Self::set_up(&dir, limits) {
            Ok(watch) => Ok(Self { dir, _watch: watch }),
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                Err(error)
            }
        }
    }

    fn set_up(dir: &Path, limits: &Limits) -> Result<Option<PipeWriter>, Failed> {
        for (file, value) in files(limits) {
            fs::write(dir.join(file), &value).map_err(at(format!("limit {file} {value:?}")))?;
        }
        // What counts the processes and out-of-memory kills of its commands. The limit of the processors is that of all together.
        fs::write(dir.join("cgroup.subtree_control"), "+memory +pids").map_err(at("controllers"))?;
        let Some(memory) = limits.memory else { return Ok(None) };
        let (end, watch) = io::pipe().map_err(at("pipe"))?;
        thrash::watch(dir.to_owned(), memory, Some(end)).map_err(at("watch the memory"))?;
        Ok(Some(watch))
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

/// Whether there are limits of the processors, whose controller is enabled for them alone.
pub fn need_cpu(limits: &Limits) -> bool {
    limits.cpu_quota.is_some() || limits.cpu_weight.is_some()
}

/// The files of a cgroup and their values.
fn files(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    files.extend(limits.memory.map(|bytes| ("memory.max", bytes.to_string())));
    files.extend(limits.pids.map(|count| ("pids.max", count.to_string())));
    files.extend(limits.cpu_weight.map(|weight| ("cpu.weight", weight.to_string())));
    files.extend(limits.cpu_quota.map(|quota| ("cpu.max", format!("{quota} {}", limits.cpu_period.unwrap_or(PERIOD)))));
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
        let text = |limits| files(&limits).iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>();
        assert_eq!(text(limits), ["memory.max=1048576", "pids.max=7", "cpu.weight=39", "cpu.max=50000 20000"]);
        let quota = Limits { cpu_quota: Some(50_000), ..Limits::default() };
        assert_eq!((text(quota), need_cpu(&quota)), (vec!["cpu.max=50000 100000".to_owned()], true));
        let pids = Limits { pids: Some(7), ..Limits::default() };
        assert!(text(Limits::default()).is_empty() && !need_cpu(&pids));
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
