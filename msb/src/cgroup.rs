//! The cgroup hierarchies of the host (cgroups(7)): version 1, version 2, and a machine with both.

use std::path::{Component, Path, PathBuf};

use rustix::fs::statfs;

const MOUNT_POINT: &str = "/sys/fs/cgroup";
/// The magic number of version 2 (statfs(2)).
const CGROUP2: i64 = 0x6367_7270;

/// A hierarchy of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// Whether it is of version 2.
    pub is_v2: bool,
}

/// The hierarchies that are mounted below `/sys/fs/cgroup`.
pub fn hierarchies() -> Vec<Hierarchy> {
    let root = Path::new(MOUNT_POINT);
    let is_v2 = |path: &Path| statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2);
    if is_v2(root) {
        return vec![Hierarchy { root: root.to_owned(), is_v2: true }];
    }
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    // Controllers that are mounted together have symlinks with their single names.
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    let mounted = dirs.filter(|dir| dir.join("cgroup.procs").exists());
    mounted.map(|dir| Hierarchy { is_v2: is_v2(&dir), root: dir }).collect()
}

impl Hierarchy {
    /// Whether it has this controller. Version 2 has all that are enabled.
    pub fn has(&self, controller: &str) -> bool {
        let name = self.root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.is_v2 || name.split(',').any(|part| part == controller)
    }

    /// The directory of a process's cgroup, by the text of its `/proc/PID/cgroup` (cgroups(7)). `None`: the process has none here, or it
    /// is outside of the reader's cgroup namespace.
    pub fn cgroup_of(&self, table: &str) -> Option<PathBuf> {
        let name = self.root.file_name()?.to_str()?;
        let path = table.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = match self.is_v2 {
                true => controllers.is_empty(),
                false => controllers == name || controllers.strip_prefix("name=") == Some(name),
            };
            is_it.then_some(Path::new(path.trim_start_matches('/')))
        })?;
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        // A path that is joined with an empty one ends in a slash.
        let dir = || if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) };
        is_inside.then(dir)
    }
}

/// `cpu.weight` of version 2 for `cpu.shares` of version 1, as the OCI runtime specification converts them.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_from_1_to_10_000() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 39, 10_000, 10_000]);
    }

    #[test]
    fn the_cgroup_of_a_process_is_found_in_each_hierarchy() {
        let table = "9:name=systemd:/a\n4:cpu,cpuacct:/b:c\n2:pids:/../x\n1:cpu:/no\n0::/d\n";
        let own = |root: &str, is_v2| Hierarchy { root: root.into(), is_v2 }.cgroup_of(table);
        assert_eq!(own("/sys/fs/cgroup/systemd", false), Some("/sys/fs/cgroup/systemd/a".into()));
        assert_eq!(own("/sys/fs/cgroup/cpu,cpuacct", false), Some("/sys/fs/cgroup/cpu,cpuacct/b:c".into()));
        assert_eq!(own("/sys/fs/cgroup", true), Some("/sys/fs/cgroup/d".into()));
        assert_eq!(own("/sys/fs/cgroup/memory", false), None);
        assert_eq!(own("/sys/fs/cgroup/pids", false), None);
        let root = Hierarchy { root: "/sys/fs/cgroup".into(), is_v2: true }.cgroup_of("0::/\n").unwrap();
        assert_eq!(root.as_os_str(), "/sys/fs/cgroup");
    }

    #[test]
    fn a_hierarchy_has_the_controllers_in_its_name() {
        let hierarchy = Hierarchy { root: "/sys/fs/cgroup/cpu,cpuacct".into(), is_v2: false };
        assert!(hierarchy.has("cpu") && hierarchy.has("cpuacct") && !hierarchy.has("cpuset"));
        assert!(Hierarchy { root: "/sys/fs/cgroup".into(), is_v2: true }.has("memory"));
    }
}
