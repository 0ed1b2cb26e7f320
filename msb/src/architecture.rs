//! The architectures of hosts and guests, and everything that depends on them: nothing outside of this file compares them.

use std::fmt;

use serde::{Deserialize, Serialize};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("msb is for x86-64 and arm64");

/// A processor architecture for which there is an agent and a guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// The form of a guest's kernel in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF program, which QEMU enters at the address in its PVH note.
    Elf,
    /// The bytes that are loaded, with the header that the kernel's Documentation/arch/arm64/booting.rst describes.
    Image,
}

/// How QEMU emulates a machine of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct QemuMachine {
    /// The program.
    pub program: &'static str,
    /// What installs it.
    pub remedy: &'static str,
    /// The argument of `-M` in software emulation. The guest's memory is the object `memory`.
    pub emulated: &'static str,
    /// The argument of `-M` on KVM.
    pub accelerated: &'static str,
    /// The argument of `-cpu` in software emulation.
    pub cpu: &'static str,
    /// The numbers of the virtio-mmio buses that a device can have, in the order in which the guest finds them.
    pub buses: &'static [u8],
    /// The kernel's parameters about the machine: its console, and how it ends.
    pub command_line: &'static str,
    /// More parameters, for an emulated guest with one processor.
    pub uniprocessor: &'static str,
}

/// With x86's microvm, `reboot=t` and `-no-reboot` end the machine by a triple fault: it has no power button, and the kernel
/// would first spend a second on a keyboard controller that does not exist. Five-level page tables (la57) make each miss of the
/// emulated TLB slower, and no guest here needs them. With fast string instructions (erms) the kernel copies with `rep movsb`,
/// which the emulator executes byte by byte: without, pipes in the guest are three times as fast.
///
/// The buses are in the order in which QEMU itself would assign them, but bus 3 is the last: its interrupt is that of the
/// real-time clock, for which the guest then has no driver. There are no more: the second interrupt controller of `ioapic2=on` is
/// found through ACPI, which the guest's kernel does not have.
///
/// `svm=off`: an emulated guest has no use for nested virtualization, and its kernel would spend a tenth of the boot on setting it up.
///
/// A kernel with one processor replaces the bus locks in its own code. The emulator then has to translate the code again after each write.
/// `noreplace-smp` leaves the code as it is and saves another tenth of the boot. `nolapic_timer` would save 200 ms, in which the kernel
/// measures a timer. But the timer used instead wakes the guest at least 36 times a second: an idle guest took 1 % of a processor instead
/// of 0.2 %.
const MICROVM: QemuMachine = QemuMachine {
    program: "qemu-system-x86_64",
    remedy: "apt-get install qemu-system-x86",
    emulated: MICROVM_OPTIONS,
    accelerated: MICROVM_OPTIONS,
    cpu: "max,la57=off,erms=off,svm=off",
    buses: &[7, 6, 5, 4, 2, 1, 0, 3],
    command_line: "console=hvc0 reboot=t tsc=reliable no_timer_check",
    uniprocessor: "noreplace-smp",
};

const MICROVM_OPTIONS: &str =
    "microvm,acpi=off,rtc=on,isa-serial=off,x-option-roms=off,memory-backend=memory,auto-kernel-cmdline=on";

/// Arm's virt ends by a call of its firmware (PSCI). The emulator would compute the architecture's own algorithm of pointer
/// authentication with each call of a function; its own (impdef) costs next to nothing.
const VIRT: QemuMachine = QemuMachine {
    program: "qemu-system-aarch64",
    remedy: "apt-get install qemu-system-arm",
    emulated: "virt,acpi=off,gic-version=3,its=off,memory-backend=memory",
    accelerated: "virt,acpi=off,gic-version=host,memory-backend=memory",
    cpu: "max,pauth-impdef=on,sve=off,lpa2=off",
    buses: &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
        30, 31,
    ],
    command_line: "console=hvc0",
    uniprocessor: "",
};

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// This program's.
    pub const HOST: Self = if cfg!(target_arch = "x86_64") { Self::X86_64 } else { Self::Aarch64 };

    /// The highest level of this machine's processor, by the x86-64 psABI (x86-64-v2 is 2), that guests have on every VMM: QEMU's emulator
    /// has no AVX-512, which level 4 takes. `None` on other architectures, for which no levels are defined.
    pub fn level() -> Option<u8> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let is_v2 = has!("cmpxchg16b")
                && has!("popcnt")
                && has!("sse3")
                && has!("ssse3")
                && has!("sse4.1")
                && has!("sse4.2");
            let is_v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
            let is_v3 = is_v2 && is_v3 && has!("lzcnt") && has!("movbe");
            Some(1 + u8::from(is_v2) + u8::from(is_v3))
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// The kernel's name of it (`uname -m`), which Rust and QEMU use too. The directory with its agent and kernel has this name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// OCI's name of it, which is Go's and Debian's.
    pub const fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// OCI's platform of its guests: `linux/amd64`.
    pub fn platform(self) -> String {
        format!("linux/{}", self.oci_name())
    }

    /// The architecture that runs programs for a platform, `os/architecture[/variant]`, with OCI's name of the architecture or
    /// the kernel's. An empty architecture is this machine's.
    pub fn of_platform(platform: &str) -> Option<Self> {
        let mut parts = platform.split('/');
        let (os, architecture) = (parts.next()?, parts.next().unwrap_or_default());
        match architecture {
            _ if os != "linux" => None,
            "" => Some(Self::HOST),
            name => Self::ALL.into_iter().find(|known| name == known.oci_name() || name == known.name()),
        }
    }

    /// The machine in the header of its ELF files, `EM_X86_64` or `EM_AARCH64`.
    pub const fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }

    /// The form of its guests' kernels.
    pub const fn kernel_format(self) -> KernelFormat {
        match self {
            Self::X86_64 => KernelFormat::Elf,
            Self::Aarch64 => KernelFormat::Image,
        }
    }

    /// The physical address at which libkrunfw's kernel is loaded; 0 if it can be loaded anywhere.
    pub const fn kernel_address(self) -> u64 {
        match self {
            Self::X86_64 => 0x100_0000,
            Self::Aarch64 => 0,
        }
    }

    /// How QEMU emulates it.
    pub const fn qemu(self) -> &'static QemuMachine {
        match self {
            Self::X86_64 => &MICROVM,
            Self::Aarch64 => &VIRT,
        }
    }

    /// The flags of `/proc/cpuinfo`, one of which a processor has that runs guests with KVM; empty if no flag tells.
    pub const fn kvm_flags(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["vmx", "svm"],
            Self::Aarch64 => &[],
        }
    }

    /// What to do on a host that has no `/dev/kvm` although its processor could have it.
    pub const fn kvm_remedy(self) -> &'static str {
        match self {
            Self::X86_64 => "modprobe kvm_intel or kvm_amd; in a container: --device /dev/kvm",
            Self::Aarch64 => "boot the host at EL2; in a container: --device /dev/kvm",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.oci_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_names_an_architecture_by_either_name() {
        for (platform, expected) in [
            ("linux/amd64", Some(Architecture::X86_64)),
            ("linux/x86_64", Some(Architecture::X86_64)),
            ("linux/amd64/v3", Some(Architecture::X86_64)),
            ("linux/arm64", Some(Architecture::Aarch64)),
            ("linux/arm64/v8", Some(Architecture::Aarch64)),
            ("linux/aarch64", Some(Architecture::Aarch64)),
            ("linux/", Some(Architecture::HOST)),
            ("linux", Some(Architecture::HOST)),
            ("linux/arm/v7", None),
            ("linux/386", None),
            ("windows/amd64", None),
            ("unknown/unknown", None),
            ("", None),
        ] {
            assert_eq!(Architecture::of_platform(platform), expected, "{platform}");
        }
    }

    #[test]
    fn the_names_are_those_of_rust_and_of_serde() {
        assert_eq!(Architecture::HOST.name(), std::env::consts::ARCH);
        for architecture in Architecture::ALL {
            let json = serde_json::to_string(&architecture).unwrap();
            assert_eq!(json, format!("{:?}", architecture.name()));
            assert_eq!(Architecture::of_platform(&architecture.platform()), Some(architecture));
        }
    }
}
