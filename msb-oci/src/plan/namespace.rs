//! The namespaces of a config. The guest has a kernel of its own, so those of the host hold only what stands for the container there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// A namespace of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Namespace {
    /// A new one.
    #[default]
    New,
    /// That of this file.
    Path(PathBuf),
}

/// The namespaces that the process behind the PID has, besides those for mounts and PIDs, which are always new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Namespaces {
    pub network: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
}

/// Members of a pod have one of these annotations, with the ID of the sandbox.
pub(super) const POD: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

pub(super) fn plan(
    linux: &Linux,
    annotations: &BTreeMap<&str, &str>,
    refusals: &mut Vec<Refusal>,
    warnings: &mut Vec<String>,
) -> Namespaces {
    let is_in_pod = POD.iter().any(|key| annotations.contains_key(key));
    let all = linux.namespaces().as_deref().unwrap_or_default();
    let find = |kind| all.iter().find(|namespace| namespace.typ() == kind);
    if find(LinuxNamespaceType::User).is_some() {
        refusals.push(Refusal::new(
            "user namespace",
            "the guest has users of its own, and the files of the root would have the wrong owners there",
            "leave --userns, --uidmap and --gidmap out",
        ));
    }
    let mut of = |kind, flag: &str, why, remedy, joinable: bool| match find(kind).map(|namespace| namespace.path()) {
        Some(None) => Namespace::New,
        Some(Some(path)) if joinable || is_in_pod => Namespace::Path(path.clone()),
        Some(Some(_)) => {
            refusals.push(Refusal::new(format!("{flag} of another container"), why, remedy));
            Namespace::New
        }
        None => {
            refusals.push(Refusal::new(format!("{flag} host"), why, remedy));
            Namespace::New
        }
    };
    let pid = of(
        LinuxNamespaceType::Pid,
        "--pid",
        "a VM has a kernel of its own, and no process of the host or of another container is in it",
        "leave the flag out",
        false,
    );
    let ipc = of(
        LinuxNamespaceType::Ipc,
        "--ipc",
        "a VM has a memory of its own, and shares none with the host or another container",
        "leave the flag out, and use a volume or a socket",
        false,
    );
    let uts = of(
        LinuxNamespaceType::Uts,
        "--uts",
        "a VM has a name of its own",
        "leave the flag out, or use --hostname",
        false,
    );
    let network = of(
        LinuxNamespaceType::Network,
        "--network",
        "a VM has interfaces of its own, and no process in it can have the host's",
        "use a network of the engine, and -p for ports",
        true,
    );
    for (kind, namespace) in [("PID", &pid), ("IPC", &ipc)] {
        if *namespace != Namespace::New {
            warnings.push(format!("the {kind} namespace of the pod is not shared: each container is a VM"));
        }
    }
    Namespaces { network, ipc, uts }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(namespaces: &str, annotations: &[(&str, &str)]) -> (Namespaces, Vec<String>, Vec<String>) {
        let linux: Linux = serde_json::from_str(&format!(r#"{{"namespaces":[{namespaces}]}}"#)).unwrap();
        let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
        let planned = plan(&linux, &annotations.iter().copied().collect(), &mut refusals, &mut warnings);
        (planned, refusals.iter().map(ToString::to_string).collect(), warnings)
    }

    #[test]
    fn namespaces_of_the_host_are_refused() {
        let all = ["pid", "network", "ipc", "uts", "mount"];
        for (missing, flag) in
            [("pid", "--pid host"), ("ipc", "--ipc host"), ("uts", "--uts host"), ("network", "--network host")]
        {
            let rest: Vec<_> =
                all.iter().filter(|kind| **kind != missing).map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
            let (_, refusals, _) = plan_of(&rest.join(","), &[]);
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            assert!(refusals[0].starts_with(&format!("{flag}: ")), "{refusals:?}");
        }
        let (_, refusals, _) = plan_of(
            r#"{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"user"}"#,
            &[],
        );
        assert!(refusals[0].starts_with("user namespace: "), "{refusals:?}");
    }

    #[test]
    fn namespaces_of_another_container_are_joined_in_a_pod_only_but_for_the_network() {
        let joined = r#"{"type":"pid","path":"/p"},{"type":"network","path":"/n"},{"type":"ipc","path":"/i"},{"type":"uts","path":"/u"}"#;
        let (_, refusals, _) = plan_of(joined, &[]);
        assert_eq!(refusals.len(), 3, "{refusals:?}");
        for annotation in POD {
            let (namespaces, refusals, warnings) = plan_of(joined, &[(annotation, "x")]);
            assert_eq!(refusals, [""; 0]);
            assert_eq!(warnings.len(), 2);
            let path = |path: &str| Namespace::Path(path.into());
            assert_eq!(namespaces, Namespaces { network: path("/n"), ipc: path("/i"), uts: path("/u") });
        }
    }
}
