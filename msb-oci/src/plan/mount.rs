//! The mounts of a config: those that are made on the host, those that are made in the guest, and those that the guest has anyway.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use serde::Serialize;

use super::refusal::Refusal;

/// A file or directory of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Bind {
    /// An absolute path on the host.
    pub source: PathBuf,
    pub place: Place,
    /// With what is mounted below the source.
    pub is_recursive: bool,
    pub is_readonly: bool,
}

/// Where a bind is mounted on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// On the root, at an absolute path in it without `..`.
    Root(PathBuf),
    /// Beside the root, at a relative path that begins with a number. A mount of the guest would cover it on the root, so the guest
    /// mounts it there in its turn.
    Beside(PathBuf),
}

impl Place {
    /// The path of the directory with what is beside the root, in the tree that is shared with the guest.
    pub(crate) const BESIDE: &str = "binds";
}

/// A mount in the guest, as a member of `mounts` in a config.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GuestMount {
    /// An absolute path in the container, without `..`.
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub fstype: String,
    /// For a bind, a path in the shared tree.
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// The file systems that a guest can mount without a device.
const GUESTS: [&str; 5] = ["proc", "sysfs", "devpts", "mqueue", "tmpfs"];
/// Those that the container does without: its limits are those of the VM.
const IGNORED: [&str; 2] = ["cgroup", "cgroup2"];

/// Flags of bind mounts that say where later mounts appear.
const PROPAGATION: [&str; 4] = ["shared", "rshared", "slave", "rslave"];

/// Plans the mounts. A guest sees what is mounted in the share with the flags of the mount above it. So with a read-only root it mounts
/// the binds itself.
pub(super) fn plan(
    mounts: &[Mount],
    bundle: &Path,
    is_readonly_root: bool,
    refusals: &mut Vec<Refusal>,
    warnings: &mut Vec<String>,
) -> (Vec<Bind>, Vec<GuestMount>) {
    let (mut binds, mut guest_mounts, mut beside_root) = (Vec::new(), Vec::new(), Vec::new());
    let of_guest: Vec<PathBuf> =
        mounts.iter().filter(|mount| !is_bind(mount)).filter_map(|mount| absolute(mount.destination())).collect();
    for mount in mounts {
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let Some(destination) = absolute(mount.destination()) else {
            refusals.push(Refusal::new(
                format!("mount on {:?}", mount.destination()),
                "its destination leaves the root",
                "give an absolute path without \"..\"",
            ));
            continue;
        };
        let mut refuse = |why, remedy| refusals.push(Refusal::new(format!("mount on {destination:?}"), why, remedy));
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() || has("idmap") || has("ridmap") {
            refuse("mapped IDs are not supported", "leave idmap out of its options");
        } else if !is_bind(mount) {
            let fstype = mount.typ().clone().unwrap_or_default();
            if IGNORED.contains(&fstype.as_str()) {
                continue;
            }
            if !GUESTS.contains(&fstype.as_str()) {
                let why = "a VM gets directories and files of the host, and no other file system of it";
                let what = format!("mount of type {fstype:?} on {destination:?}");
                refusals.push(Refusal::new(what, why, "mount it on the host, and bind the directory"));
                continue;
            }
            let source = mount.source().clone().unwrap_or_else(|| fstype.clone().into());
            guest_mounts.push(GuestMount { destination, fstype, source, options: options.to_vec() });
        } else if destination == Path::new("/dev/shm") {
            guest_mounts.push(shared_memory());
        } else if destination.starts_with("/proc") {
            refuse("the guest's own file system covers it", "mount it elsewhere");
        } else if has("rro") && is_recursive(options) {
            refuse("what is mounted below its source would stay writable", "use ro, or bind without what is below");
        } else if let Some(source) = mount.source() {
            if options.iter().any(|option| PROPAGATION.contains(&option.as_str())) {
                warnings.push(format!(
                    "mount on {destination:?}: what is mounted below its source later does not appear in the VM"
                ));
            }
            let inside = beside_root.iter().rev().find_map(|(above, number): &(PathBuf, PathBuf)| {
                let rest = destination.strip_prefix(above).ok().filter(|rest| !rest.as_os_str().is_empty())?;
                // A mount of the guest between the two would cover it there, too.
                let is_between = |mount: &PathBuf| mount != above && mount.starts_with(above);
                let is_covered = of_guest.iter().any(|mount| is_between(mount) && destination.starts_with(mount));
                (!is_covered).then(|| number.join(rest))
            });
            let is_covered = of_guest.iter().any(|covered| destination.starts_with(covered));
            let at_root = (is_readonly_root && !is_covered).then(|| Place::Root(destination.clone()));
            let place = if let Some(inside) = inside {
                Place::Beside(inside)
            } else if is_covered || is_readonly_root {
                let number = PathBuf::from(beside_root.len().to_string());
                beside_root.push((destination.clone(), number.clone()));
                guest_mounts.push(beside(destination, &number));
                Place::Beside(number)
            } else {
                Place::Root(destination)
            };
            // Of two options that contradict each other, the later one counts.
            let last = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw" | "rrw"));
            let is_readonly = last.is_some_and(|option| matches!(option.as_str(), "ro" | "rro"));
            let is_recursive = is_recursive(options);
            let source = bundle.join(source);
            // For who enters the root on the host.
            binds.extend(at_root.map(|place| Bind { source: source.clone(), place, is_recursive, is_readonly }));
            binds.push(Bind { source, place, is_recursive, is_readonly });
        } else {
            refuse("it has no source", "name one");
        }
    }
    (binds, guest_mounts)
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Whether a bind mount includes what is mounted below its source.
fn is_recursive(options: &[String]) -> bool {
    let has = |name: &str| options.iter().any(|option| option == name);
    !has("bind") || has("rbind")
}

/// The mount in the guest of what is beside the root.
fn beside(destination: PathBuf, number: &Path) -> GuestMount {
    let source = Path::new("/").join(Place::BESIDE).join(number);
    GuestMount { destination, fstype: "bind".into(), source, options: vec!["rbind".into()] }
}

/// The size of podman's and docker's. Memory cannot be shared with another VM.
fn shared_memory() -> GuestMount {
    let options = ["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"].map(str::to_owned).to_vec();
    GuestMount { destination: "/dev/shm".into(), fstype: "tmpfs".into(), source: "shm".into(), options }
}

/// A path without `.` and repeated slashes; `None` if it contains `..`. runc takes a relative one as one from the root.
fn absolute(path: &Path) -> Option<PathBuf> {
    let mut absolute = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => absolute.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(mounts: &str) -> (Vec<Bind>, Vec<GuestMount>, Vec<String>, Vec<String>) {
        plan_on(false, mounts)
    }

    fn plan_on(is_readonly: bool, mounts: &str) -> (Vec<Bind>, Vec<GuestMount>, Vec<String>, Vec<String>) {
        let mounts: Vec<Mount> = serde_json::from_str(mounts).unwrap();
        let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
        let (binds, guest) = plan(&mounts, Path::new("/bundle"), is_readonly, &mut refusals, &mut warnings);
        (binds, guest, refusals.iter().map(ToString::to_string).collect(), warnings)
    }

    #[test]
    fn binds_are_made_on_the_host_in_their_order() {
        let (binds, guest, refusals, warnings) = plan_of(
            r#"[{"destination":"/a//b/./c","type":"bind","source":"/s","options":["rbind","ro"]},
                {"destination":"rel","type":"none","source":"sub","options":["bind","ro","rw","rslave"]},
                {"destination":"/x","type":"bind","source":"/s"},
                {"destination":"/y","type":"none","source":"/s","options":["rbind"]},
                {"destination":"/z","type":"bind","source":"/s","options":["bind","rbind","ro","rrw"]},
                {"destination":"/one","type":"bind","source":"/s","options":["bind","rro"]}]"#,
        );
        let bind = |source: &str, destination: &str, is_recursive, is_readonly| Bind {
            source: source.into(),
            place: Place::Root(destination.into()),
            is_recursive,
            is_readonly,
        };
        assert_eq!(
            binds,
            [
                bind("/s", "/a/b/c", true, true),
                bind("/bundle/sub", "/rel", false, false),
                bind("/s", "/x", true, false),
                bind("/s", "/y", true, false),
                bind("/s", "/z", true, false),
                bind("/s", "/one", false, true),
            ]
        );
        assert_eq!((guest.len(), refusals.len(), warnings.len()), (0, 0, 1), "{refusals:?} {warnings:?}");
    }

    #[test]
    fn a_bind_below_a_mount_of_the_guest_is_mounted_there_in_its_turn() {
        let (binds, guest, refusals, _) = plan_of(
            r#"[{"destination":"/run/a","type":"bind","source":"/a","options":["bind"]},
                {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]},
                {"destination":"/dev/log","type":"bind","source":"/b","options":["bind","ro"]},
                {"destination":"/run","type":"tmpfs","options":["size=1m","tmpcopyup"]},
                {"destination":"/run/a/b/c","type":"bind","source":"/d"},
                {"destination":"/running","type":"bind","source":"/c"},
                {"destination":"/dev/shm","type":"bind","source":"/s","options":["bind"]}]"#,
        );
        assert_eq!(refusals, [""; 0]);
        let places: Vec<&Place> = binds.iter().map(|bind| &bind.place).collect();
        let beside = |path: &str| Place::Beside(path.into());
        assert_eq!(places, [&beside("0"), &beside("1"), &beside("0/b/c"), &Place::Root("/running".into())]);
        let mounts: Vec<String> = guest
            .iter()
            .map(|mount| format!("{} {} {}", mount.destination.display(), mount.fstype, mount.source.display()))
            .collect();
        assert_eq!(
            mounts,
            [
                "/run/a bind /binds/0",
                "/dev tmpfs tmpfs",
                "/dev/log bind /binds/1",
                "/run tmpfs tmpfs",
                "/dev/shm tmpfs shm"
            ]
        );
        assert_eq!(guest[3].options, ["size=1m", "tmpcopyup"]);
    }

    #[test]
    fn a_bind_inside_another_is_mounted_in_the_guest_if_a_mount_of_the_guest_is_between_them() {
        let (binds, guest, ..) = plan_of(
            r#"[{"destination":"/run","type":"tmpfs"},
                {"destination":"/run/a","type":"bind","source":"/a"},
                {"destination":"/run/a/b","type":"tmpfs"},
                {"destination":"/run/a/b/c","type":"bind","source":"/c"},
                {"destination":"/run/a/d","type":"bind","source":"/d"}]"#,
        );
        let places: Vec<&Place> = binds.iter().map(|bind| &bind.place).collect();
        let beside = |path: &str| Place::Beside(path.into());
        assert_eq!(places, [&beside("0"), &beside("1"), &beside("0/d")]);
        let targets: Vec<&Path> = guest.iter().map(|mount| mount.destination.as_path()).collect();
        assert_eq!(targets, ["/run", "/run/a", "/run/a/b", "/run/a/b/c"].map(Path::new));
    }

    #[test]
    fn binds_on_a_read_only_root_are_mounted_on_the_host_and_again_in_the_guest() {
        let (binds, guest, refusals, _) = plan_on(
            true,
            r#"[{"destination":"/a","type":"bind","source":"/s"},{"destination":"/a/b","type":"bind","source":"/t","options":["ro"]},
                {"destination":"/run","type":"tmpfs"},{"destination":"/run/c","type":"bind","source":"/u"}]"#,
        );
        assert_eq!(refusals, [""; 0]);
        let places: Vec<(&Place, bool)> = binds.iter().map(|bind| (&bind.place, bind.is_readonly)).collect();
        let (root, beside) = (|path: &str| Place::Root(path.into()), |path: &str| Place::Beside(path.into()));
        let expected = [
            (root("/a"), false),
            (beside("0"), false),
            (root("/a/b"), true),
            (beside("0/b"), true),
            (beside("1"), false),
        ];
        assert_eq!(places, expected.iter().map(|(place, is_readonly)| (place, *is_readonly)).collect::<Vec<_>>());
        let targets: Vec<&Path> = guest.iter().map(|mount| mount.destination.as_path()).collect();
        assert_eq!(targets, ["/a", "/run", "/run/c"].map(Path::new));
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (mount, expected) in [
            (
                r#"{"destination":"/a/../b","type":"bind","source":"/s"}"#,
                "mount on \"/a/../b\": its destination leaves",
            ),
            (r#"{"destination":"/proc/x","type":"bind","source":"/s"}"#, "mount on \"/proc/x\": the guest's"),
            (r#"{"destination":"/a","type":"bind"}"#, "mount on \"/a\": it has no source"),
            (r#"{"destination":"/a","type":"ext4","source":"/dev/sda"}"#, "mount of type \"ext4\" on \"/a\": "),
            (r#"{"destination":"/a","type":"overlay","source":"overlay"}"#, "mount of type \"overlay\" on \"/a\": "),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","idmap"]}"#,
                "mount on \"/a\": mapped IDs",
            ),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","ridmap"]}"#,
                "mount on \"/a\": mapped IDs",
            ),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
                "mount on \"/a\": mapped IDs",
            ),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","gidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
                "mount on \"/a\": mapped IDs",
            ),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","rro"]}"#,
                "mount on \"/a\": what is mounted below",
            ),
        ] {
            let (binds, guest, refusals, _) = plan_of(&format!("[{mount}]"));
            assert_eq!((binds.len(), guest.len(), refusals.len()), (0, 0, 1), "{mount}");
            assert!(refusals[0].starts_with(expected), "{refusals:?}");
        }
    }
}
