//! The mounts of a config: those that are made on the host, those that are made in the guest, and those that the guest has anyway.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use serde::Serialize;

use super::refusal::Refusal;

/// A file or directory of the host that is mounted on the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Bind {
    /// An absolute path on the host.
    pub source: PathBuf,
    /// An absolute path in the container, without `..`.
    pub destination: PathBuf,
    /// With what is mounted below the source.
    pub is_recursive: bool,
    pub is_readonly: bool,
}

/// A mount in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GuestMount {
    /// An absolute path in the container, without `..`.
    pub destination: PathBuf,
    pub fstype: String,
    /// Options of the file system, and flags.
    pub options: Vec<String>,
    /// Whether it begins with what the image has there.
    pub copies_up: bool,
}

/// The file systems that the guest has without being asked.
const GUESTS_OWN: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"];

/// Flags of bind mounts that say where later mounts appear.
const PROPAGATION: [&str; 4] = ["shared", "rshared", "slave", "rslave"];

pub(super) fn plan(
    mounts: &[Mount],
    bundle: &Path,
    refusals: &mut Vec<Refusal>,
    warnings: &mut Vec<String>,
) -> (Vec<Bind>, Vec<GuestMount>) {
    let (mut binds, mut guest_mounts) = (Vec::new(), Vec::new());
    for mount in mounts {
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let fstype = mount.typ().as_deref().unwrap_or_default();
        let Some(destination) = absolute(mount.destination()) else {
            refusals.push(Refusal::new(
                format!("mount on {:?}", mount.destination()),
                "its destination leaves the root",
                "give an absolute path without \"..\"",
            ));
            continue;
        };
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() || has("idmap") || has("ridmap") {
            refusals.push(Refusal::new(
                format!("mount on {destination:?}"),
                "mapped IDs are not supported",
                "leave idmap out of its options",
            ));
            continue;
        }
        if fstype == "bind" || has("bind") || has("rbind") {
            if destination == Path::new("/dev/shm") {
                guest_mounts.push(shared_memory());
                continue;
            }
            if options.iter().any(|option| PROPAGATION.contains(&option.as_str())) {
                warnings.push(format!(
                    "mount on {destination:?}: what is mounted below its source later does not appear in the VM"
                ));
            }
            let source = mount.source().as_ref().map(|source| bundle.join(source));
            let Some(source) = source else {
                refusals.push(Refusal::new(format!("mount on {destination:?}"), "it has no source", "name one"));
                continue;
            };
            // Of two options that contradict each other, the later one counts.
            let last = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw"));
            let is_readonly = last.is_some_and(|option| option != "rw");
            binds.push(Bind { source, destination, is_recursive: !has("bind") || has("rbind"), is_readonly });
        } else if GUESTS_OWN.contains(&fstype) || (fstype == "tmpfs" && destination == Path::new("/dev")) {
            // Nothing to do.
        } else if fstype == "tmpfs" {
            let (copies_up, options) = options.iter().cloned().partition::<Vec<_>, _>(|option| option == "tmpcopyup");
            let options = options.into_iter().filter(|option| is_for_guest(option)).collect();
            guest_mounts.push(GuestMount {
                destination,
                fstype: "tmpfs".into(),
                options,
                copies_up: !copies_up.is_empty(),
            });
        } else {
            refusals.push(Refusal::new(
                format!("mount of type {fstype:?} on {destination:?}"),
                "a VM gets directories and files of the host, and no other file system of it",
                "mount it on the host, and bind the directory",
            ));
        }
    }
    (binds, guest_mounts)
}

/// The size of podman's and docker's.
fn shared_memory() -> GuestMount {
    let options = ["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"].map(str::to_owned).to_vec();
    GuestMount { destination: "/dev/shm".into(), fstype: "tmpfs".into(), options, copies_up: false }
}

/// Whether an option of a tmpfs has a meaning in the guest.
fn is_for_guest(option: &str) -> bool {
    let flags = ["ro", "nosuid", "nodev", "noexec", "noatime", "strictatime"];
    let keys = ["size=", "mode=", "uid=", "gid=", "nr_inodes=", "nr_blocks="];
    flags.contains(&option) || keys.iter().any(|key| option.starts_with(key))
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
        let mounts: Vec<Mount> = serde_json::from_str(mounts).unwrap();
        let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
        let (binds, guest) = plan(&mounts, Path::new("/bundle"), &mut refusals, &mut warnings);
        (binds, guest, refusals.iter().map(ToString::to_string).collect(), warnings)
    }

    #[test]
    fn binds_are_made_on_the_host_in_their_order() {
        let (binds, guest, refusals, warnings) = plan_of(
            r#"[{"destination":"/a//b/./c","type":"bind","source":"/s","options":["rbind","ro"]},
                {"destination":"rel","type":"none","source":"sub","options":["bind","ro","rw","rslave"]},
                {"destination":"/x","type":"bind","source":"/s"}]"#,
        );
        let bind = |source: &str, destination: &str, is_recursive, is_readonly| Bind {
            source: source.into(),
            destination: destination.into(),
            is_recursive,
            is_readonly,
        };
        assert_eq!(
            binds,
            [
                bind("/s", "/a/b/c", true, true),
                bind("/bundle/sub", "/rel", false, false),
                bind("/s", "/x", true, false)
            ]
        );
        assert_eq!((guest.len(), refusals.len(), warnings.len()), (0, 0, 1), "{refusals:?} {warnings:?}");
    }

    #[test]
    fn a_tmpfs_is_the_guests_with_the_options_that_mean_something_there() {
        let (binds, guest, ..) = plan_of(
            r#"[{"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]},
                {"destination":"/t","type":"tmpfs","source":"tmpfs","options":["size=1m","rprivate","nosuid","tmpcopyup"]},
                {"destination":"/dev/shm","type":"bind","source":"/s","options":["bind"]}]"#,
        );
        assert_eq!(binds.len(), 0);
        assert_eq!(guest.len(), 2);
        assert_eq!((guest[0].options.join(","), guest[0].copies_up), ("size=1m,nosuid".into(), true));
        assert_eq!((guest[1].destination.as_path(), guest[1].copies_up), (Path::new("/dev/shm"), false));
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (mount, expected) in [
            (
                r#"{"destination":"/a/../b","type":"bind","source":"/s"}"#,
                "mount on \"/a/../b\": its destination leaves",
            ),
            (r#"{"destination":"/a","type":"bind"}"#, "mount on \"/a\": it has no source"),
            (r#"{"destination":"/a","type":"ext4","source":"/dev/sda"}"#, "mount of type \"ext4\" on \"/a\": "),
            (r#"{"destination":"/a","type":"overlay","source":"overlay"}"#, "mount of type \"overlay\" on \"/a\": "),
            (
                r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","idmap"]}"#,
                "mount on \"/a\": mapped IDs",
            ),
        ] {
            let (binds, guest, refusals, _) = plan_of(&format!("[{mount}]"));
            assert_eq!((binds.len(), guest.len(), refusals.len()), (0, 0, 1), "{mount}");
            assert!(refusals[0].starts_with(expected), "{refusals:?}");
        }
    }
}
