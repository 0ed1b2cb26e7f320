//! libkrun: the VMM is this process, on KVM.

pub(crate) mod ffi;
mod huge_pages;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use msb::architecture::Architecture;
use msb::jail::{Jail, Profile};
use msb::record;
use msb::vm::{boot, rundir};
use msb::wire::{AGENT_PORT, READY_PORT};
use serde::{Deserialize, Serialize};

use crate::jail;
use crate::kernel::{self, BootProtocol};
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::{self, Vm};
use crate::vmm::{Vmm, kvm};

/// The kernel's command line: libkrun's own, but for the file systems of its root. `reboot=k` ends the machine through the keyboard
/// controller, which libkrun emulates for that. The kernel skips `jent_mod_init` for the same reason as under QEMU.
///
/// `noreplace-smp`, which an emulated guest has, saves a tenth of the boot on a KVM host that is emulated itself (1631 ms in place of
/// 1808). It is left out: patching costs a real processor next to nothing, and its atomic operations would stay slower.
const COMMAND_LINE: &CStr = c"reboot=k panic=-1 panic_print=0 nomodule console=hvc0 quiet no-kvmapf \
    initcall_blacklist=jent_mod_init rdinit=/agentd";

/// libkrun. It is linked into this program and needs no other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Krun {}

impl Vmm for Krun {
    fn find(architecture: Architecture) -> Result<Self, Unusable> {
        if architecture != Architecture::HOST {
            return Err(Unusable::new(
                format!(
                    "it runs guests of this machine's own architecture, and this one is for {}",
                    architecture.platform()
                ),
                "use --vmm qemu",
            ));
        }
        kvm::probe()?;
        kernel::library(architecture)?;
        Ok(Self {})
    }

    fn name(&self) -> &'static str {
        "krun"
    }

    fn in_record(&self) -> record::Vmm {
        record::Vmm::Krun
    }

    fn acceleration(&self) -> &'static str {
        "KVM works here"
    }

    fn boot_protocol(&self) -> BootProtocol {
        BootProtocol::LongMode
    }

    fn has_vsock_handshake(&self) -> bool {
        false
    }

    fn copies_initramfs(&self) -> bool {
        true
    }

    /// It has interrupts for eleven devices, and adds a balloon and a source of random numbers by itself.
    fn max_devices(&self) -> usize {
        9
    }

    /// None: libkrun serves all devices itself.
    fn start_helpers(&mut self, _: &Vm, _: &mut Processes) -> anyhow::Result<Vec<OwnedFd>> {
        Ok(Vec::new())
    }

    fn run(&self, vm: &Vm) -> anyhow::Error {
        match configure(vm) {
            Ok(context) => {
                // Without huge pages the VM works, only slower.
                let _ = huge_pages::align_next_mapping(vm.memory_mib);
                context.enter().into()
            }
            Err(error) => error,
        }
    }
}

/// Enters the jail and configures the VM.
fn configure(vm: &Vm) -> anyhow::Result<ffi::Context> {
    jail(vm).enter()?;
    let sockets = Path::new(jail::SOCKET_DIR);
    let context = ffi::Context::new()?;
    context.set_size(vm.cpus, vm.memory_mib)?;
    context.set_kernel(Path::new(jail::KERNEL), vm.architecture.kernel_format(), &vm.initramfs.path(), COMMAND_LINE)?;
    context.disable_implicit_init()?;
    if !vm.volumes.is_empty() {
        // The jail's mounts decide which volumes are writable.
        context.add_share(boot::VOLUMES_DIR, Path::new(jail::VOLUMES), false)?;
    }
    if vm.root_share.is_some() {
        context.add_share("rootfs", Path::new(jail::ROOT), false)?;
    }
    for (number, drive) in vm.drives.iter().enumerate() {
        context.add_disk(&format!("drive{number}"), &drive.fd.path(), drive.format, !drive.writable)?;
    }
    context.add_plain_vsock()?;
    context.add_port(AGENT_PORT, &sockets.join(rundir::AGENT_SOCKET), true)?;
    context.add_port(READY_PORT, &vm::ready_socket(sockets), false)?;
    for card in &vm.cards {
        context.add_card(card.fd.number(), card.mac, card.is_offloaded)?;
    }
    context.set_console(Path::new("/proc/self/fd/1"))?;
    Ok(context)
}

/// A jail with the files that libkrun opens. Its virtiofs follows any name that the guest sends, within the jail.
fn jail(vm: &Vm) -> Jail {
    let serves_files = vm.root_share.is_some() || !vm.volumes.is_empty();
    let profile = match (serves_files, vm.has_private_base()) {
        (true, _) => Profile::KrunShares,
        (false, true) => Profile::KrunPrivateDisk,
        (false, false) => Profile::Krun,
    };
    // Its virtiofs reopens files through /proc/self/fd, and uses nothing else of /proc.
    let descriptors = Path::new("/proc/self/fd");
    let mut jail = vm
        .jail(profile)
        .bind(&vm.socket_dir(), jail::SOCKET_DIR.as_ref())
        .ro_bind(&vm.kernel, jail::KERNEL.as_ref())
        .ro_bind(descriptors, descriptors)
        .dev_bind_try(Path::new(kvm::DEVICE));
    if !vm.volumes.is_empty() {
        jail = vm.bind_volumes(jail, jail::VOLUMES.as_ref());
    }
    jail = vm.bind_root(jail);
    for file in vm.drives.iter().filter_map(|drive| drive.backing_file.as_deref()) {
        jail = jail.ro_bind(file, file);
    }
    jail
}
