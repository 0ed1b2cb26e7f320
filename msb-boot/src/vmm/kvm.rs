//! Whether KVM is usable. Opening `/dev/kvm` is not enough: a host may offer the device without hardware virtualization, and then every
//! call succeeds and the guest never executes an instruction.

use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;

use msb::architecture::Architecture;
use msb::store::id_map::{self, IdMap};
use rustix::process::getuid;

use crate::unusable::Unusable;

/// The device of KVM.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// Checks that guests would run. The answer is cached, because `/proc/cpuinfo` is long on a large machine.
///
/// # Errors
/// Why they would not.
pub(crate) fn probe() -> Result<(), Unusable> {
    static CACHED: OnceLock<Result<(), Unusable>> = OnceLock::new();
    let check = || {
        let opened = File::options().read(true).write(true).open(DEVICE);
        judge(opened.map(drop), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    };
    CACHED.get_or_init(check).clone()
}

/// Judges by the result of opening the device and by the text of `/proc/cpuinfo`.
fn judge(opened: io::Result<()>, cpuinfo: &str) -> Result<(), Unusable> {
    let flags = Architecture::HOST.kvm_flags();
    let virtual_cpu = flags.is_empty() || has_flag(cpuinfo, flags);
    let missing = flags.join(" or ");
    let no_cpu = "switch virtualization on in the firmware; in a virtual machine, let its host pass it on";
    match opened {
        Ok(()) if virtual_cpu => Ok(()),
        Ok(()) => Err(Unusable::new(
            format!("{DEVICE} is there but the CPU shows no {missing}, so guests would never start"),
            no_cpu,
        )),
        Err(error) => Err(match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOENT) if virtual_cpu => {
                Unusable::new(format!("there is no {DEVICE}"), Architecture::HOST.kvm_remedy())
            }
            Some(rustix::io::Errno::NOENT) => {
                Unusable::new(format!("there is no {DEVICE}, and the CPU shows no {missing}"), no_cpu)
            }
            Some(rustix::io::Errno::ACCESS) => Unusable::new(
                format!("{DEVICE} may not be opened by this user"),
                format!("usermod -aG kvm {}, then log in again", user()),
            ),
            // The device rules of a container (a cgroup) deny it.
            Some(rustix::io::Errno::PERM) => Unusable::new(
                format!("{DEVICE} may not be opened in this container"),
                "start the container with --device /dev/kvm",
            ),
            _ => Unusable::new(format!("{DEVICE}: {error}"), "see the kernel's log for kvm"),
        }),
    }
}

/// The processor of this machine: its name, and what it can do.
pub(crate) fn processor() -> String {
    describe(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn describe(cpuinfo: &str) -> String {
    let value = |wanted: &[&str]| {
        let mut members = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        members.find(|(key, _)| wanted.contains(&key.trim_end())).map_or("", |(_, value)| value.trim())
    };
    let name = value(&["model name", "CPU part"]);
    format!("{name}, flags {}", value(&["flags", "Features"]))
}

/// The name of this user, for a command line. In a user namespace, it is that of the user who is root there.
fn user() -> String {
    let uid = IdMap::of_this_process().ok().and_then(|map| id_map::outside(&map.uid, getuid().as_raw()));
    let uid = uid.map_or_else(nix::unistd::Uid::current, nix::unistd::Uid::from_raw);
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| "USER".into(), |user| user.name)
}

/// Whether `/proc/cpuinfo` lists one of the `flags`.
fn has_flag(cpuinfo: &str, flags: &[&str]) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim_end() == "flags")
        .any(|(_, listed)| listed.split_ascii_whitespace().any(|flag| flags.contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "only x86 has these flags")]
    fn each_finding_has_its_remedy() {
        let (with, without) = ("flags : svm\n", "flags : fpu\n");
        let failed = |errno: rustix::io::Errno| Err(errno.into());
        assert_eq!(judge(Ok(()), with), Ok(()));
        for (opened, cpuinfo, found, remedy) in [
            (Ok(()), without, "/dev/kvm is there but the CPU shows no vmx or svm", "firmware"),
            (failed(rustix::io::Errno::NOENT), with, "there is no /dev/kvm", "modprobe"),
            (failed(rustix::io::Errno::NOENT), without, "and the CPU shows no vmx or svm", "firmware"),
            (failed(rustix::io::Errno::ACCESS), with, "may not be opened by this user", "usermod -aG kvm "),
            (failed(rustix::io::Errno::PERM), with, "may not be opened in this container", "--device /dev/kvm"),
            (failed(rustix::io::Errno::BUSY), with, "resource busy", "kernel's log"),
        ] {
            let why = judge(opened, cpuinfo).unwrap_err();
            assert!(why.found.contains(found) && why.remedy.contains(remedy), "{why}");
        }
    }

    #[test]
    fn processors_with_other_flags_are_others() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nmodel name\t: A CPU\n";
        assert_eq!(describe(cpuinfo), "A CPU, flags fpu vmx");
        assert_ne!(describe(cpuinfo), describe(&cpuinfo.replace("vmx", "svm")));
    }

    #[test]
    fn only_a_flag_of_the_cpu_counts() {
        for (cpuinfo, expected) in [
            ("flags\t\t: fpu vmx sse\n", true),
            ("processor\t: 0\nflags\t\t: fpu svm\n", true),
            ("flags\t\t: fpu svm_lock\n", false),
            ("vmx flags\t: vnmi\nflags\t\t: fpu hypervisor\n", false),
            ("model name\t: vmx\n", false),
            ("", false),
        ] {
            assert_eq!(has_flag(cpuinfo, &["vmx", "svm"]), expected, "{cpuinfo:?}");
        }
    }
}
