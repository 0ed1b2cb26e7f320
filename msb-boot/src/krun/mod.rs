//! libkrun: the VMM in this process, on KVM.

pub(crate) mod ffi;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use msb::wire::{AGENT_PORT, READY_PORT};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::supervise::crew::Crew;
use crate::vmm::{Root, Vm, Vmm, Why, kvm};

/// The room.
pub(crate) struct Krun;

impl Vmm for Krun {
    fn probe(&self) -> Result<(), Why> {
        kvm::probe()
    }

    fn prepare(&self, vm: &mut Vm, _: &mut Crew) -> anyhow::Result<Vec<OwnedFd>> {
        match vm.root {
            Root::Share(_) => Ok(Vec::new()),
            Root::Disk { .. } => anyhow::bail!("a disk root under libkrun is not supported (use --vmm qemu)"),
        }
    }

    fn enter(&self, vm: &Vm) -> io::Error {
        let described = (|| {
            raise_open_files()?;
            ffi::keep_loaded(&vm.kernel)?;
            let context = ffi::Context::new()?;
            context.set_size(vm.cpus, vm.memory_mib)?;
            context.set_root(&vm.boot_share())?;
            if let Root::Share(dir) = &vm.root {
                context.add_share(c"rootfs", dir)?;
            }
            context.add_plain_vsock()?;
            context.add_port(AGENT_PORT, &vm.agent_socket(), true)?;
            context.add_port(READY_PORT, &vm.ready_socket(), false)?;
            context.set_console(Path::new("/proc/self/fd/1"))?;
            Ok(context)
        })();
        match described {
            Ok(context) => context.enter(),
            Err(error) => error,
        }
    }
}

/// As many open files as this user may have: libkrun holds one for every inode that the guest knows.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}
