//! The VM's processors and memory, and the limits of the cgroup that the VM runs in.

use std::collections::{BTreeMap, HashMap};

use clap::ValueEnum;
use msb::record::{Boot, VmmChoice};
use msb::tool::size;
use oci_spec::runtime::{Linux, LinuxResources};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// The VM. What is `None` is left to msb-boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<String>,
    /// What the VM's processes need on the host besides the guest's memory.
    pub overhead_mib: u64,
}

/// The limits of a cgroup. `None`: not limited, or left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes, with the overhead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Microseconds in each period; negative for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
}

/// What the VMM, virtiofsd and the supervisor used beside the guest's memory in measurements, with a reserve for the page cache.
pub(crate) const OVERHEAD_MIB: u64 = 160;
/// The least memory with which a guest runs a program besides its kernel.
const MIN_MEMORY_MIB: u64 = 128;
const MAX_CPUS: u64 = Boot::MAX_CPUS as u64;
/// The period of a quota without one, in microseconds: that of a new cgroup.
pub(crate) const PERIOD: u64 = 100_000;

pub(super) fn machine(linux: &Linux, annotations: &BTreeMap<&str, &str>, refusals: &mut Vec<Refusal>) -> Machine {
    let resources = linux.resources().clone().unwrap_or_default();
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).filter(|limit| *limit > 0);
    let mut machine = annotated(annotations, refusals);
    machine.memory_mib = machine.memory_mib.or(limit.map(|bytes| guest_mib(bytes.unsigned_abs())));
    machine.cpus = machine.cpus.or_else(|| cpus(&resources));
    machine
}

/// The guest's memory for a limit in bytes.
fn guest_mib(bytes: u64) -> u64 {
    (bytes >> 20).max(MIN_MEMORY_MIB)
}

/// The VM that the annotations of this runtime describe.
fn annotated(annotations: &BTreeMap<&str, &str>, refusals: &mut Vec<Refusal>) -> Machine {
    let mut machine = Machine { overhead_mib: OVERHEAD_MIB, ..Machine::default() };
    for (&key, &value) in annotations.iter().filter(|(key, _)| key.starts_with("dev.msb.")) {
        let known = match key {
            "dev.msb.memory" => mib(value).map(|mib| machine.memory_mib = Some(mib)),
            "dev.msb.overhead" => mib(value).map(|mib| machine.overhead_mib = mib),
            "dev.msb.cpus" => {
                value.parse().ok().filter(|cpus| (1..=MAX_CPUS).contains(cpus)).map(|cpus| machine.cpus = Some(cpus))
            }
            "dev.msb.vmm" => VmmChoice::from_str(value, false).ok().map(|_| machine.vmm = Some(value.to_owned())),
            "dev.msb.root" => (value == "share").then_some(()),
            NETWORK => matches!(value, MACVTAP | "tap").then_some(()),
            // One VM for the pod, or one for each container.
            POD => matches!(value, POD_IS_VM | "containers").then_some(()),
            _ => None,
        };
        if known.is_none() {
            let (why, remedy) = match key {
                "dev.msb.memory" | "dev.msb.overhead" => ("not a size", "give MiB, or a size such as 512M"),
                "dev.msb.cpus" => ("not a number of processors", "give 1 to 64"),
                "dev.msb.vmm" => ("not a VMM", "give auto, krun or qemu"),
                "dev.msb.root" => ("a container's root is shared with the guest", "give share, or leave it out"),
                NETWORK => ("not a way to connect an interface", "give tap or macvtap"),
                POD => ("not a way to run a pod", "give vm or containers"),
                _ => ("there is no such annotation", "there are memory, overhead, cpus, vmm, root, network and pod"),
            };
            refusals.push(Refusal::new(format!("annotation {key}={value:?}"), why, remedy));
        }
    }
    machine
}

/// The annotation that selects one VM for a pod, and the value that does so.
pub(super) const POD: &str = "dev.msb.pod";
pub(super) const POD_IS_VM: &str = "vm";

/// The annotation that selects how interfaces are connected, and its value for macvtap.
pub(super) const NETWORK: &str = "dev.msb.network";
pub(super) const MACVTAP: &str = "macvtap";

/// The limits of a pod. containerd writes the sums of its containers into annotations of the sandbox, whose own resources count only
/// where there is no sum. The annotations of this runtime override both.
pub(super) fn of_pod(annotations: &HashMap<String, String>, machine: &mut Machine) -> Limits {
    let texts = annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    // They were checked with the config.
    let annotated = annotated(&texts, &mut Vec::new());
    let number = |name: &str| annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"))?.parse::<i64>().ok();
    let positive = |name: &str| number(name).filter(|value| *value > 0).map(i64::unsigned_abs);
    let (memory, quota, period) = (positive("memory"), positive("cpu-quota"), positive("cpu-period"));
    machine.memory_mib = annotated.memory_mib.or(memory.map(guest_mib)).or(machine.memory_mib);
    let cpus = quota.map(|quota| quota.div_ceil(period.unwrap_or(PERIOD)).clamp(1, MAX_CPUS));
    machine.cpus = annotated.cpus.or(cpus).or(machine.cpus);
    Limits {
        memory: machine.memory_mib.map(|mib| (mib + machine.overhead_mib) << 20),
        cpu_shares: positive("cpu-shares"),
        cpu_quota: quota.and_then(|quota| i64::try_from(quota).ok()),
        cpu_period: period,
        ..Limits::default()
    }
}

fn mib(text: &str) -> Option<u64> {
    size::parse(text).ok().map(|bytes| bytes >> 20).filter(|mib| (1..=1 << 20).contains(mib))
}

/// The quota in whole processors.
fn cpus(resources: &LinuxResources) -> Option<u64> {
    let cpu = resources.cpu().as_ref()?;
    let quota = cpu.quota().filter(|quota| *quota > 0)?.unsigned_abs();
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
    Some(quota.div_ceil(period).clamp(1, MAX_CPUS))
}

pub(super) fn limits(linux: &Linux, machine: &Machine) -> Limits {
    let resources = linux.resources().clone().unwrap_or_default();
    Limits::of(&resources, machine.overhead_mib)
}

/// The part of `linux.resources` that limits a container in the VM of its pod.
pub(super) fn in_pod(linux: &Linux) -> LinuxResources {
    let given = linux.resources().clone().unwrap_or_default();
    let mut limits = LinuxResources::default();
    limits.set_memory(*given.memory()).set_pids(*given.pids()).set_cpu(given.cpu().clone());
    limits
}

/// The same limits, for a container that can get others later: one without any would have no cgroup for them.
pub(super) fn changeable(in_pod: &LinuxResources) -> LinuxResources {
    let mut resources = in_pod.clone();
    let mut pids = resources.pids().unwrap_or_default();
    if pids.limit() == 0 {
        pids.set_limit(-1);
        resources.set_pids(Some(pids));
    }
    resources
}

impl Limits {
    /// The limits that a cgroup with a VM in it gets for these resources.
    pub(crate) fn of(resources: &LinuxResources, overhead_mib: u64) -> Self {
        let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).filter(|limit| *limit > 0);
        let memory = limit.map(|bytes| (bytes.unsigned_abs().max(MIN_MEMORY_MIB << 20)) + (overhead_mib << 20));
        let cpu = resources.cpu().clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Self {
            memory,
            cpu_shares: cpu.shares().filter(|shares| *shares > 0),
            cpu_quota: cpu.quota().filter(|quota| *quota != 0),
            cpu_period: cpu.period().filter(|period| *period > 0),
            cpuset_cpus: text(cpu.cpus()),
            cpuset_mems: text(cpu.mems()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(resources: &str, annotations: &[(&str, &str)]) -> (Machine, Limits, Vec<String>) {
        let linux: Linux = serde_json::from_str(&format!(r#"{{"resources":{resources}}}"#)).unwrap();
        let mut refusals = Vec::new();
        let machine = machine(&linux, &annotations.iter().copied().collect(), &mut refusals);
        let limits = limits(&linux, &machine);
        (machine, limits, refusals.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_pods_vm_has_the_sums_of_its_containers_unless_dev_msb_annotations_override_them() {
        let of_annotated = |sums: &[(&str, &str)], own: &[(&str, &str)], mut machine: Machine| {
            let sums = sums.iter().map(|(name, value)| (format!("io.kubernetes.cri.sandbox-{name}"), *value));
            let own = own.iter().map(|(name, value)| (format!("dev.msb.{name}"), *value));
            let annotations = sums.chain(own).map(|(name, value)| (name, value.to_owned())).collect();
            let limits = of_pod(&annotations, &mut machine);
            (machine.memory_mib, machine.cpus, limits)
        };
        let of = |sums: &[(&str, &str)], machine: Machine| of_annotated(sums, &[], machine);
        let machine = || Machine { overhead_mib: 10, ..Machine::default() };
        assert_eq!(of(&[], machine()), (None, None, Limits::default()));
        let sums = [("memory", "268435456"), ("cpu-quota", "150000"), ("cpu-period", "100000"), ("cpu-shares", "512")];
        let limits = Limits {
            memory: Some(266 << 20),
            cpu_shares: Some(512),
            cpu_quota: Some(150_000),
            cpu_period: Some(100_000),
            ..Limits::default()
        };
        assert_eq!(of(&sums, machine()), (Some(256), Some(2), limits.clone()));
        // The sandbox's own resources.
        let own = || Machine { memory_mib: Some(300), cpus: Some(4), ..machine() };
        assert_eq!(of(&sums, own()), (Some(256), Some(2), limits));
        let (memory, cpus, limits) = of(&[], own());
        assert_eq!((memory, cpus, limits.memory), (Some(300), Some(4), Some(310 << 20)));
        let (memory, cpus, limits) = of_annotated(&sums, &[("memory", "1G"), ("cpus", "3")], own());
        assert_eq!((memory, cpus, limits.memory), (Some(1024), Some(3), Some(1034 << 20)));
        // No limit, not a number, and less than a guest needs.
        assert_eq!(of(&[("memory", "0"), ("cpu-quota", "-1"), ("cpu-shares", "x")], machine()).2, Limits::default());
        assert_eq!(of(&[("memory", "1000")], machine()).0, Some(MIN_MEMORY_MIB));
        assert_eq!(of(&[("cpu-quota", "100001")], machine()).1, Some(2));
    }

    #[test]
    fn the_guest_has_the_memory_of_the_limit_and_the_cgroup_also_the_overhead() {
        for (limit, mib) in [(256 << 20, 256), (1 << 20, MIN_MEMORY_MIB), ((128 << 20) + 5, 128)] {
            let (machine, limits, _) = plan_of(&format!(r#"{{"memory":{{"limit":{limit}}}}}"#), &[]);
            assert_eq!(machine.memory_mib, Some(mib));
            assert_eq!(limits.memory.unwrap() >> 20, mib + OVERHEAD_MIB);
        }
        for none in ["{}", r#"{"memory":{"limit":-1}}"#, r#"{"memory":{"limit":0}}"#] {
            let (machine, limits, _) = plan_of(none, &[]);
            assert_eq!((machine.memory_mib, limits.memory), (None, None), "{none}");
        }
    }

    #[test]
    fn processors_are_the_quota_rounded_up() {
        for (cpu, cpus) in [
            (r#"{"quota":150000,"period":100000}"#, Some(2)),
            (r#"{"quota":200000,"period":100000}"#, Some(2)),
            (r#"{"quota":150000,"period":50000}"#, Some(3)),
            (r#"{"quota":1000}"#, Some(1)),
            (r#"{"quota":-1,"period":100000}"#, None),
            (r#"{"quota":0}"#, None),
            (r#"{"quota":50000,"period":0}"#, Some(1)),
            (r#"{"quota":9000000}"#, Some(64)),
            (r#"{"shares":2}"#, None),
        ] {
            let (machine, ..) = plan_of(&format!(r#"{{"cpu":{cpu}}}"#), &[]);
            assert_eq!(machine.cpus, cpus, "{cpu}");
        }
    }

    #[test]
    fn annotations_override_and_wrong_ones_are_refused() {
        let annotations =
            [("dev.msb.memory", "300"), ("dev.msb.cpus", "3"), ("dev.msb.vmm", "qemu"), ("dev.msb.overhead", "1G")];
        let (machine, limits, refusals) = plan_of(r#"{"memory":{"limit":268435456}}"#, &annotations);
        assert_eq!(refusals, [""; 0]);
        let expected = Machine { memory_mib: Some(300), cpus: Some(3), vmm: Some("qemu".into()), overhead_mib: 1024 };
        assert_eq!(machine, expected);
        assert_eq!(limits.memory, Some((256 + 1024) << 20));
        for (key, value, why) in [
            ("dev.msb.memory", "much", "not a size"),
            ("dev.msb.overhead", "0", "not a size"),
            ("dev.msb.cpus", "0", "not a number of processors"),
            ("dev.msb.cpus", "65", "not a number of processors"),
            ("dev.msb.vmm", "xen", "not a VMM"),
            ("dev.msb.root", "block", "a container's root is shared with the guest"),
            ("dev.msb.colour", "red", "there is no such annotation"),
        ] {
            let (_, _, refusals) = plan_of("{}", &[(key, value)]);
            assert!(refusals[0].starts_with(&format!("annotation {key}={value:?}: {why} (")), "{refusals:?}");
        }
        let (machine, _, refusals) = plan_of("{}", &[("dev.msb.root", "share"), ("other.root", "block")]);
        assert_eq!((machine.memory_mib, refusals.len()), (None, 0), "{refusals:?}");
    }

    #[test]
    fn a_size_in_an_annotation_is_from_1_mib_to_1_tib() {
        for (text, expected) in [
            ("0", None),
            ("1048575B", None),
            ("1", Some(1)),
            ("2097151B", Some(1)),
            ("1T", Some(1 << 20)),
            ("1048577", None),
        ] {
            assert_eq!(mib(text), expected, "{text}");
        }
    }

    #[test]
    fn zeros_and_empty_texts_are_no_limits() {
        for (cpu, expected) in [
            (r#"{"shares":0,"quota":0,"period":0,"cpus":"","mems":""}"#, Limits::default()),
            (
                r#"{"shares":2,"quota":-1,"period":1000,"cpus":"0-1","mems":"0"}"#,
                Limits {
                    memory: None,
                    cpu_shares: Some(2),
                    cpu_quota: Some(-1),
                    cpu_period: Some(1000),
                    cpuset_cpus: Some("0-1".into()),
                    cpuset_mems: Some("0".into()),
                },
            ),
        ] {
            assert_eq!(plan_of(&format!(r#"{{"cpu":{cpu}}}"#), &[]).1, expected, "{cpu}");
        }
    }
}
