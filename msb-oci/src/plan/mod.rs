//! What a config.json asks for, as the steps that this runtime takes, or the list of what it refuses.
//!
//! Nothing here reads a file, asks the machine or changes anything: a plan depends on the document and the bundle's path alone.

#[cfg(test)]
mod golden;
mod mount;
mod namespace;
mod refusal;
mod resources;

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Hooks, LinuxDevice, LinuxResources, Process, Spec};
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use mount::{Bind, GuestMount, Place};
pub(crate) use namespace::{Namespace, Namespaces};
pub(crate) use refusal::Refusal;
pub(crate) use resources::{Limits, Machine, PERIOD};

/// How a container becomes a VM.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Whether it only holds the namespaces of a pod. It gets no VM.
    pub is_sandbox: bool,
    /// The root file system, as an absolute path.
    pub rootfs: PathBuf,
    /// Whether the guest may not write to it.
    pub is_readonly: bool,
    /// What is mounted on the root on the host, in this order.
    pub binds: Vec<Bind>,
    /// What is mounted in the guest, in this order.
    pub guest_mounts: Vec<GuestMount>,
    /// The namespaces on the host.
    pub namespaces: Namespaces,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    #[serde(skip)]
    pub annotations: HashMap<String, String>,
    /// Device nodes of the guest.
    pub devices: Vec<LinuxDevice>,
    /// Paths that are hidden in the guest.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only in the guest.
    pub readonly_paths: Vec<String>,
    /// Kernel parameters of the guest.
    pub sysctl: BTreeMap<String, String>,
    /// The VM.
    pub machine: Machine,
    /// The path of the cgroup, as the config has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// The limits of the cgroup.
    pub limits: Limits,
    /// The limits in the guest, for a container in the VM of its pod.
    #[serde(skip_serializing_if = "is_default")]
    pub in_pod: LinuxResources,
    /// The command, as it is in the config.
    pub process: Process,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// What is done otherwise than the config asks for.
    pub warnings: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Plan {
    /// The ID of the sandbox that a container of a pod belongs to.
    pub(crate) fn sandbox(&self) -> Option<&str> {
        let id = namespace::POD.iter().find_map(|key| self.annotations.get(*key));
        id.filter(|_| !self.is_sandbox).map(String::as_str)
    }

    /// Whether the config asks for one VM for its pod, or for one for each container. `None`: it does not say.
    pub(crate) fn pod_vm(&self) -> Option<bool> {
        self.annotations.get(resources::POD).map(|value| value == resources::POD_IS_VM)
    }

    /// Whether its interfaces are connected through macvtap.
    pub(crate) fn has_macvtap(&self) -> bool {
        self.annotations.get(resources::NETWORK).is_some_and(|value| value == resources::MACVTAP)
    }

    /// Sizes the VM and its cgroup for all containers of the pod.
    pub(crate) fn size_for_pod(&mut self) {
        self.limits = resources::of_pod(&self.annotations, &mut self.machine);
    }

    /// The container in the guest, as a config.json with paths in the share. `place` is the path of the container's tree in the share; it
    /// is empty if the tree is the share, and the container then has the whole VM. `root` is the name of the root in the tree.
    pub(crate) fn guest_config(&self, place: &str, root: &str) -> Value {
        let mut mounts = self.guest_mounts.clone();
        for mount in mounts.iter_mut().filter(|mount| mount.fstype == "bind") {
            mount.source = format!("{place}{}", mount.source.display()).into();
        }
        let resources = if place.is_empty() { LinuxResources::default() } else { resources::changeable(&self.in_pod) };
        json!({
            "root": {"path": format!("{place}/{root}"), "readonly": self.is_readonly},
            "hostname": self.hostname,
            "domainname": self.domainname,
            "mounts": mounts,
            "process": self.process,
            "linux": {
                "devices": self.devices,
                "maskedPaths": self.masked_paths,
                "readonlyPaths": self.readonly_paths,
                "sysctl": self.sysctl,
                "resources": resources,
            },
        })
    }
}

/// Makes the plan of a config. `bundle` is the absolute path of the config's directory.
///
/// # Errors
/// Everything in the config that cannot be done.
pub(crate) fn plan(spec: &Spec, bundle: &Path) -> Result<Plan, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut warnings = Vec::new();
    let annotations: BTreeMap<&str, &str> =
        spec.annotations().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let linux = spec.linux().clone().unwrap_or_default();
    if spec.linux().is_none() {
        refusals.push(Refusal::new("linux", "the config has no such member", "use a config for Linux"));
    }
    let process = match spec.process() {
        Some(process) if process.args().as_ref().is_some_and(|args| !args.is_empty()) => Some(process.clone()),
        _ => {
            refusals.push(Refusal::new("process.args", "there is no command", "name one"));
            None
        }
    };
    let rootfs = spec.root().as_ref().map(|root| bundle.join(root.path()));
    if rootfs.is_none() {
        refusals.push(Refusal::new("root", "the config has no such member", "give it the path of a root file system"));
    }
    let is_sandbox = process.as_ref().is_some_and(|process| is_sandbox(process, &annotations));
    let namespaces = namespace::plan(&linux, &annotations, &mut refusals, &mut warnings);
    let is_readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let (binds, guest_mounts) = mount::plan(mounts, bundle, is_readonly, &mut refusals, &mut warnings);
    let machine = resources::machine(&linux, &annotations, &mut refusals);
    let cgroup = linux.cgroups_path().clone().filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = &cgroup {
        let subject = || format!("cgroupsPath {path:?}");
        if path.components().any(|part| part == Component::ParentDir) {
            refusals.push(Refusal::new(subject(), "it leaves its directory", "leave \"..\" out"));
        } else if !path.components().any(|part| matches!(part, Component::Normal(_))) {
            // What runs in a container's cgroup is killed with it.
            refusals.push(Refusal::new(
                subject(),
                "it is the cgroup of the whole host",
                "give the container one of its own",
            ));
        }
    }
    if let Some(seccomp) = linux.seccomp()
        && seccomp.listener_path().is_some()
    {
        refusals.push(Refusal::new(
            "seccomp.listenerPath",
            "the system calls are those of another kernel, and nobody there can ask a process of the host",
            "leave it out",
        ));
    }
    if spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref()).is_some_and(|list| !list.is_empty()) {
        refusals.push(Refusal::new(
            "hooks.startContainer",
            "the guest starts the container's command and no other program",
            "use createContainer or poststart, or start the program in the command",
        ));
    }
    let limits = resources::limits(&linux, &machine);
    match (process, rootfs) {
        (Some(process), Some(rootfs)) if refusals.is_empty() => Ok(Plan {
            is_sandbox,
            rootfs,
            is_readonly,
            binds,
            guest_mounts,
            namespaces,
            hostname: spec.hostname().clone(),
            domainname: spec.domainname().clone(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            devices: linux.devices().clone().unwrap_or_default(),
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            sysctl: linux.sysctl().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
            machine,
            cgroup,
            limits,
            in_pod: resources::in_pod(&linux),
            process,
            hooks: spec.hooks().clone(),
            warnings,
        }),
        _ => Err(refusals),
    }
}

/// Whether a container only holds a pod's namespaces: containerd and CRI-O say so, and podman is known by its command.
fn is_sandbox(process: &Process, annotations: &BTreeMap<&str, &str>) -> bool {
    let types = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
    let is_podmans = process.args().as_ref().is_some_and(|args| *args == ["/catatonit", "-P"]);
    types.iter().any(|key| annotations.get(key) == Some(&"sandbox")) || is_podmans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    fn refusals(text: &str) -> Vec<String> {
        match plan(&spec(text), Path::new("/bundle")) {
            Ok(plan) => panic!("{plan:?}"),
            Err(refusals) => refusals.iter().map(ToString::to_string).collect(),
        }
    }

    const NAMESPACES: &str = r#"[{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}]"#;

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let all = refusals("{}").join("\n");
        for member in ["linux: ", "process.args: ", "root: "] {
            assert!(all.contains(member), "{all}");
        }
    }

    #[test]
    fn a_command_without_a_word_is_none() {
        let text = format!(
            r#"{{"root":{{"path":"r"}},"process":{{"args":[],"cwd":"/","user":{{}}}},"linux":{{"namespaces":{NAMESPACES}}}}}"#
        );
        let all = refusals(&text);
        assert!(all.len() == 1 && all[0].starts_with("process.args: "), "{all:?}");
    }

    #[test]
    fn a_member_of_a_pod_names_its_sandbox_which_is_not_one_of_itself() {
        for (args, annotations, expected) in [
            (r#"["a"]"#, "{}", None),
            (r#"["a"]"#, r#"{"io.kubernetes.cri.sandbox-id":"s"}"#, Some("s")),
            (r#"["a"]"#, r#"{"io.kubernetes.cri-o.SandboxID":"s"}"#, Some("s")),
            (r#"["/catatonit","-P"]"#, r#"{"io.kubernetes.cri-o.SandboxID":"s"}"#, None),
        ] {
            let text = format!(
                r#"{{"root":{{"path":"r"}},"process":{{"args":{args},"cwd":"/","user":{{}}}},"annotations":{annotations},"linux":{{"namespaces":{NAMESPACES}}}}}"#
            );
            assert_eq!(plan(&spec(&text), Path::new("/bundle")).unwrap().sandbox(), expected, "{args} {annotations}");
        }
    }

    #[test]
    fn the_guest_gets_a_config_with_the_path_of_its_root() {
        let text = format!(
            r#"{{"root":{{"path":"r","readonly":true}},"process":{{"args":["a"],"cwd":"/","user":{{"uid":1,"gid":2}}}},"hostname":"h",
               "mounts":[{{"destination":"/t","type":"tmpfs"}}],
               "linux":{{"namespaces":{NAMESPACES},"maskedPaths":["/m"],"readonlyPaths":["/r"],"sysctl":{{"a.b":"1"}}}}}}"#
        );
        let plan = plan(&spec(&text), Path::new("/bundle")).unwrap();
        let config = plan.guest_config("", "root");
        for (pointer, expected) in [
            ("/root", json!({"path": "/root", "readonly": true})),
            ("/hostname", json!("h")),
            ("/mounts/0/destination", json!("/t")),
            ("/process/args", json!(["a"])),
            ("/linux/maskedPaths", json!(["/m"])),
            ("/linux/readonlyPaths", json!(["/r"])),
            ("/linux/sysctl", json!({"a.b": "1"})),
        ] {
            assert_eq!(config.pointer(pointer), Some(&expected), "{pointer}");
        }
    }

    #[test]
    fn in_the_vm_of_a_pod_a_container_has_its_limits_and_paths_that_begin_with_its_place() {
        let text = format!(
            r#"{{"root":{{"path":"r"}},"process":{{"args":["a"],"cwd":"/","user":{{}}}},"annotations":{{"dev.msb.pod":"vm"}},
               "mounts":[{{"destination":"/run","type":"tmpfs","source":"tmpfs"}},
                         {{"destination":"/run/s","type":"bind","source":"/s"}}],
               "linux":{{"namespaces":{NAMESPACES},"resources":{{"memory":{{"limit":1}},"pids":{{"limit":2}},"cpu":{{"quota":3}},
               "unified":{{"memory.low":"4"}}}}}}}}"#
        );
        let plan = plan(&spec(&text), Path::new("/bundle")).unwrap();
        assert_eq!(plan.pod_vm(), Some(true));
        for (place, root, bind) in [("", "/rootfs", "/binds/0"), ("/7-8", "/7-8/rootfs", "/7-8/binds/0")] {
            let config = plan.guest_config(place, "rootfs");
            assert_eq!(config.pointer("/root/path"), Some(&json!(root)));
            assert_eq!(config.pointer("/mounts/0/source"), Some(&json!("tmpfs")));
            assert_eq!(config.pointer("/mounts/1/source"), Some(&json!(bind)));
            let limits = json!({"memory": {"limit": 1}, "pids": {"limit": 2}, "cpu": {"quota": 3}});
            let expected = if place.is_empty() { json!({}) } else { limits };
            assert_eq!(config.pointer("/linux/resources"), Some(&expected));
        }
    }

    #[test]
    fn the_pod_annotation_is_vm_or_containers() {
        for (annotations, expected) in [
            (r#"{"dev.msb.pod":"vm"}"#, Some(Some(true))),
            (r#"{"dev.msb.pod":"containers"}"#, Some(Some(false))),
            ("{}", Some(None)),
            (r#"{"dev.msb.pod":""}"#, None),
            (r#"{"dev.msb.pod":"VM"}"#, None),
        ] {
            let text = format!(
                r#"{{"root":{{"path":"r"}},"process":{{"args":["a"],"cwd":"/","user":{{}}}},"annotations":{annotations},
                   "linux":{{"namespaces":{NAMESPACES}}}}}"#
            );
            let pod_vm = plan(&spec(&text), Path::new("/bundle")).map(|plan| plan.pod_vm());
            assert_eq!(pod_vm.ok(), expected, "{annotations}");
        }
    }

    #[test]
    fn a_cgroup_above_its_directory_a_seccomp_listener_and_a_hook_in_the_container_are_refused() {
        let text = format!(
            r#"{{"root":{{"path":"r"}},"process":{{"args":["a"],"cwd":"/","user":{{}}}},
               "hooks":{{"startContainer":[{{"path":"/h"}}],"poststart":[{{"path":"/h"}}]}},
               "linux":{{"namespaces":{NAMESPACES},"cgroupsPath":"/a/../../b",
               "seccomp":{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/s"}}}}}}"#
        );
        let all = refusals(&text);
        assert_eq!(all.len(), 3, "{all:?}");
        for (refusal, expected) in all.iter().zip(["cgroupsPath", "seccomp.listenerPath: ", "hooks.startContainer: "]) {
            assert!(refusal.starts_with(expected), "{all:?}");
        }
    }

    #[test]
    fn the_cgroup_of_the_host_is_refused_and_an_empty_path_is_none() {
        let text = |path: &str| {
            format!(
                r#"{{"root":{{"path":"r"}},"process":{{"args":["a"],"cwd":"/","user":{{}}}},
                   "linux":{{"namespaces":{NAMESPACES},"cgroupsPath":"{path}"}}}}"#
            )
        };
        for path in ["/", "/.", "."] {
            assert_eq!(refusals(&text(path)).len(), 1, "{path:?}");
        }
        assert_eq!(plan(&spec(&text("")), Path::new("/bundle")).unwrap().cgroup, None);
    }

    #[test]
    fn the_root_is_relative_to_the_bundle() {
        for (path, rootfs) in [("rootfs", "/bundle/rootfs"), ("/srv/root", "/srv/root")] {
            let text = format!(
                r#"{{"root":{{"path":"{path}","readonly":true}},"process":{{"args":["a"],"cwd":"/","user":{{}}}},"linux":{{"namespaces":{NAMESPACES}}}}}"#
            );
            let plan = plan(&spec(&text), Path::new("/bundle")).unwrap();
            assert_eq!((plan.rootfs.as_path(), plan.is_readonly, plan.is_sandbox), (Path::new(rootfs), true, false));
        }
    }

    #[test]
    fn a_pods_sandbox_is_known_by_its_annotation_or_podmans_command() {
        for (args, annotations, expected) in [
            (r#"["/catatonit","-P"]"#, "{}", true),
            (r#"["/catatonit","-P","x"]"#, "{}", false),
            (r#"["/pause"]"#, r#"{"io.kubernetes.cri.container-type":"sandbox"}"#, true),
            (r#"["/pause"]"#, r#"{"io.kubernetes.cri-o.ContainerType":"sandbox"}"#, true),
            (r#"["/pause"]"#, r#"{"io.kubernetes.cri.container-type":"container"}"#, false),
        ] {
            let text = format!(
                r#"{{"root":{{"path":"r"}},"process":{{"args":{args},"cwd":"/","user":{{}}}},"annotations":{annotations},"linux":{{"namespaces":{NAMESPACES}}}}}"#
            );
            assert_eq!(plan(&spec(&text), Path::new("/bundle")).unwrap().is_sandbox, expected, "{args} {annotations}");
        }
    }
}
