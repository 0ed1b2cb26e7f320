//! libkrun: the VMM in this process, on KVM.

pub(crate) mod ffi;
mod place;

use std::os::fd::OwnedFd;
use std::path::Path;

use msb::vm::rundir;
use msb::wire::{AGENT_PORT, READY_PORT};

use crate::cell::{self, Cell, Powers};
use crate::kernel;
use crate::supervise::crew::Crew;
use crate::vmm::{self, Root, Vm, Vmm, Why, kvm};

/// The room.
pub(crate) struct Krun;

impl Vmm for Krun {
    fn probe(&self) -> Result<&'static str, Why> {
        kvm::probe()?;
        kernel::library()?;
        Ok("KVM works here")
    }

    fn prepare(&self, _: &mut Vm, _: &mut Crew) -> anyhow::Result<Vec<OwnedFd>> {
        Ok(Vec::new())
    }

    fn enter(&self, vm: &Vm) -> anyhow::Error {
        let described = (|| {
            cell(vm).enter()?;
            let door = Path::new(cell::DOOR);
            let context = ffi::Context::new()?;
            context.set_size(vm.cpus, vm.memory_mib)?;
            context.set_kernel(Path::new(cell::KERNEL))?;
            context.add_root_share(Path::new(cell::BOOT))?;
            if let Root::Share(_) = &vm.root {
                context.add_share(c"rootfs", Path::new(cell::ROOT))?;
            }
            for (number, drive) in vm.drives.iter().enumerate() {
                context.add_disk(&format!("drive{number}"), Path::new(&drive.path()), drive.format, !drive.writable)?;
            }
            context.add_plain_vsock()?;
            context.add_port(AGENT_PORT, &door.join(rundir::AGENT_SOCKET), true)?;
            context.add_port(READY_PORT, &vmm::ready_socket(door), false)?;
            context.set_console(Path::new("/proc/self/fd/1"))?;
            anyhow::Ok(context)
        })();
        match described {
            Ok(context) => {
                // Without it everything works, only slower.
                let _ = place::prepare(vm.memory_mib);
                context.enter().into()
            }
            Err(error) => error,
        }
    }
}

/// What libkrun opens while it makes a VM. Its virtiofs would follow a guest to any name in there.
fn cell(vm: &Vm) -> Cell {
    let powers = if matches!(vm.root, Root::Share(_)) { Powers::Serve } else { Powers::None };
    // Its virtiofs opens by descriptors' links, and nothing else of /proc.
    let descriptors = Path::new("/proc/self/fd");
    let cell = vm
        .cell(powers)
        .show(&vm.boot_share(), cell::BOOT, false)
        .show(&vm.door(), cell::DOOR, true)
        .show(&vm.kernel, cell::KERNEL, false)
        .show(descriptors, descriptors, false)
        .show_device(kvm::DEVICE);
    match &vm.root {
        Root::Share(dir) => cell.show(dir, cell::ROOT, true),
        Root::Disk(disk) => cell.show(&disk.base, &disk.base, false),
        Root::Block(_) => cell,
    }
}
