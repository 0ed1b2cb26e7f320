//! The VMMs that there are, and the choice between them. Nothing outside of this file distinguishes them.

use std::io::PipeWriter;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use msb::architecture::Architecture;
use msb::record::{Channel, VmmChoice};
use serde::{Deserialize, Serialize};

use super::Vmm;
use crate::granted::Granted;
use crate::krun::Krun;
use crate::processes::Processes;
use crate::qemu::Qemu;
use crate::unusable::Unusable;
use crate::vm::Vm;

/// One of the VMMs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AnyVmm {
    Krun(Krun),
    Qemu(Qemu),
}

/// What the VMM's own process is told, as JSON.
#[derive(Serialize, Deserialize)]
struct Description {
    vmm: AnyVmm,
    vm: Vm,
}

impl Deref for AnyVmm {
    type Target = dyn Vmm;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Krun(krun) => krun,
            Self::Qemu(qemu) => qemu,
        }
    }
}

impl DerefMut for AnyVmm {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Krun(krun) => krun,
            Self::Qemu(qemu) => qemu,
        }
    }
}

impl AnyVmm {
    /// Starts the VM: the helper processes, then the VMM, which inherits `fds` and writes the guest's console to `console`.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(crate) fn start(
        &self,
        vm: &Vm,
        mut fds: Vec<OwnedFd>,
        console: PipeWriter,
        processes: &mut Processes,
    ) -> anyhow::Result<()> {
        let mut vmm = self.clone();
        processes.keep(Granted::grant(vm, &console)?);
        fds.extend(vmm.start_helpers(vm, processes)?);
        let description = serde_json::to_string(&Description { vmm, vm: vm.clone() }).context(self.name())?;
        processes.start_vmm(self.name(), &description, console, &fds)
    }
}

/// The main of the VMM's own process.
pub(crate) fn run(description: &str) -> ExitCode {
    let Description { vmm, vm } = match serde_json::from_str(description) {
        Ok(description) => description,
        Err(error) => {
            eprintln!("description of the VM: {error}");
            return ExitCode::FAILURE;
        }
    };
    let error = vmm.run(&vm);
    eprintln!("{}: {error:#}", vmm.name());
    ExitCode::FAILURE
}

/// The VMM that was chosen.
pub(crate) struct Choice {
    /// The VMM.
    pub vmm: AnyVmm,
    /// Which one it is and why, if the caller left the choice open.
    pub message: Option<String>,
    /// Whether it is not the VMM of first choice.
    pub is_fallback: bool,
}

/// Chooses the VMM for a guest of an architecture: the one that the caller names, else krun, else QEMU. Only QEMU emulates other
/// architectures than this machine's.
///
/// # Errors
/// Why the named VMM, or any VMM, cannot be used.
pub(crate) fn choose(choice: VmmChoice, architecture: Architecture, channel: Channel) -> anyhow::Result<Choice> {
    let named = |vmm| Ok(Choice { vmm, message: None, is_fallback: false });
    match choice {
        VmmChoice::Qemu => named(AnyVmm::Qemu(Qemu::find(architecture).context("qemu")?)),
        VmmChoice::Krun if channel == Channel::Serial => {
            bail!("krun: has no port for --channel serial (use --vmm qemu)")
        }
        VmmChoice::Krun => named(AnyVmm::Krun(Krun::find(architecture).context("krun")?)),
        VmmChoice::Auto if architecture != Architecture::HOST => {
            let qemu = Qemu::find(architecture).context("qemu")?;
            let message = Some(format!("{} guest: using qemu ({})", architecture.platform(), qemu.acceleration()));
            Ok(Choice { vmm: AnyVmm::Qemu(qemu), message, is_fallback: false })
        }
        VmmChoice::Auto if channel == Channel::Serial => {
            let qemu = Qemu::find(architecture).context("qemu")?;
            let message = Some(format!("--channel serial: using qemu ({})", qemu.acceleration()));
            Ok(Choice { vmm: AnyVmm::Qemu(qemu), message, is_fallback: false })
        }
        VmmChoice::Auto => {
            let why_not_krun = match Krun::find(architecture) {
                Ok(krun) => {
                    let message = Some(format!("using krun ({})", krun.acceleration()));
                    return Ok(Choice { vmm: AnyVmm::Krun(krun), message, is_fallback: false });
                }
                Err(why) => why,
            };
            match Qemu::find(architecture) {
                Ok(qemu) => {
                    let message = Some(format!("krun: {why_not_krun}; using qemu ({})", qemu.acceleration()));
                    Ok(Choice { vmm: AnyVmm::Qemu(qemu), message, is_fallback: true })
                }
                Err(why_not_qemu) if why_not_qemu == why_not_krun => Err(why_not_krun.into()),
                Err(why_not_qemu) => Err(anyhow!("krun: {why_not_krun}; qemu: {why_not_qemu}")),
            }
        }
    }
}

/// Each VMM by name, with its acceleration or the reason why it cannot be used.
pub(crate) fn survey() -> [(&'static str, Result<&'static str, Unusable>); 2] {
    let host = Architecture::HOST;
    [
        ("krun", Krun::find(host).map(|krun| krun.acceleration())),
        ("qemu", Qemu::find(host).map(|qemu| qemu.acceleration())),
    ]
}

/// The host's memory that an idle VM takes besides the guest's, in MiB, where it was measured.
pub(crate) fn overhead_mib(vmm: &str) -> Option<u32> {
    match vmm {
        // The proportional set sizes of the VMM, the supervisor and the helper processes, without the guest's memory: with QEMU 7.2 in
        // software emulation, of which QEMU's own memory and file are 118 MiB. With KVM it needs less.
        "qemu" => Some(128),
        // The same with libkrun 1.19.7: 10 MiB for the supervisor and the VMM, 29 for passt, 6 for the gate and the resolver; and 2 of the
        // kernel's in the cgroup, most of them for page tables, once a guest of 512 MiB has touched its memory.
        "krun" => Some(48),
        _ => None,
    }
}
