//! Whether KVM is usable. That `/dev/kvm` opens proves nothing: a host may offer it with no hardware behind it, where
//! every call works and a guest never reaches its first line.

use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;

use super::Why;

pub(crate) const DEVICE: &str = "/dev/kvm";

/// Whether guests would run. It is looked for once: the list of processors is long on a large machine.
pub(crate) fn probe() -> Result<(), Why> {
    static FOUND: OnceLock<Result<(), Why>> = OnceLock::new();
    let look = || {
        let opened = File::options().read(true).write(true).open(DEVICE);
        judge(opened.map(drop), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    };
    FOUND.get_or_init(look).clone()
}

/// What opening the device, and the machine's processor, say.
fn judge(opened: io::Result<()>, cpuinfo: &str) -> Result<(), Why> {
    let virtual_cpu = !cfg!(target_arch = "x86_64") || has_virtualization(cpuinfo);
    let no_cpu = "switch virtualization on in the firmware; in a virtual machine, let its host pass it on";
    match opened {
        Ok(()) if virtual_cpu => Ok(()),
        Ok(()) => Err(Why::new(
            format!("{DEVICE} is there but the CPU shows no vmx or svm, so guests would never start"),
            no_cpu,
        )),
        Err(error) => Err(match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOENT) if virtual_cpu => Why::new(
                format!("there is no {DEVICE}"),
                "modprobe kvm_intel or kvm_amd; in a container: --device /dev/kvm",
            ),
            Some(rustix::io::Errno::NOENT) => {
                Why::new(format!("there is no {DEVICE}, and the CPU shows no vmx or svm"), no_cpu)
            }
            Some(rustix::io::Errno::ACCESS) => Why::new(
                format!("{DEVICE} may not be opened by this user"),
                format!("usermod -aG kvm {}, then log in again", user()),
            ),
            // What a container's rules for devices say.
            Some(rustix::io::Errno::PERM) => {
                Why::new(format!("{DEVICE} may not be opened in here"), "start the container with --device /dev/kvm")
            }
            _ => Why::new(format!("{DEVICE}: {error}"), "see the kernel's log for kvm"),
        }),
    }
}

/// This user's name, for a command line.
fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten();
    user.map_or_else(|| "USER".into(), |user| user.name)
}

/// Whether a `/proc/cpuinfo` of x86 shows Intel's or AMD's extension.
fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim_end() == "flags")
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_remedy() {
        let (with, without) = ("flags : svm\n", "flags : fpu\n");
        let failed = |errno: rustix::io::Errno| Err(errno.into());
        assert_eq!(judge(Ok(()), with), Ok(()));
        for (opened, cpuinfo, found, remedy) in [
            (Ok(()), without, "/dev/kvm is there but the CPU shows no vmx or svm", "firmware"),
            (failed(rustix::io::Errno::NOENT), with, "there is no /dev/kvm", "modprobe"),
            (failed(rustix::io::Errno::NOENT), without, "and the CPU shows no vmx or svm", "firmware"),
            (failed(rustix::io::Errno::ACCESS), with, "may not be opened by this user", "usermod -aG kvm "),
            (failed(rustix::io::Errno::PERM), with, "may not be opened in here", "--device /dev/kvm"),
            (failed(rustix::io::Errno::BUSY), with, "resource busy", "kernel's log"),
        ] {
            let why = judge(opened, cpuinfo).unwrap_err();
            assert!(why.found.contains(found) && why.remedy.contains(remedy), "{why}");
        }
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
            assert_eq!(has_virtualization(cpuinfo), expected, "{cpuinfo:?}");
        }
    }
}
