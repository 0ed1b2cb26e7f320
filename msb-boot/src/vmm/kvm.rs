//! Whether KVM is usable. That `/dev/kvm` opens proves nothing: a host may offer it with no hardware behind it, where
//! every call works and a guest never reaches its first line.

use std::fs::{self, File};
use std::io;

use super::Why;

pub(crate) const DEVICE: &str = "/dev/kvm";

/// Whether guests would run.
pub(crate) fn probe() -> Result<(), Why> {
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        return Err(Why(match error.kind() {
            io::ErrorKind::NotFound => format!("there is no {DEVICE} on this machine"),
            io::ErrorKind::PermissionDenied => {
                format!("{DEVICE} may not be opened by this user (the group \"kvm\" usually may)")
            }
            _ => format!("{DEVICE}: {error}"),
        }));
    }
    if cfg!(target_arch = "x86_64") && !has_virtualization(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
        return Err(Why(format!("{DEVICE} is there but the CPU shows no vmx or svm, so guests would never start")));
    }
    Ok(())
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
    use super::has_virtualization;

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
