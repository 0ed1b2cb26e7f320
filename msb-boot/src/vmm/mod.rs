//! What a VMM does: the trait that libkrun and QEMU implement. [`any`] chooses between them.
//!
//! # What another VMM would need
//!
//! It takes the guest's kernel with an initramfs and a command line, and has virtio-blk, virtio-vsock, and a console that the kernel
//! knows. That is all that a block root without a network needs. Its file implements [`Vmm`]; `any.rs`, `msb/src/record/boot.rs` and, for
//! its jail, `msb/src/jail/profile.rs` get an entry each. What the two obvious candidates differ in:
//!
//! | | Firecracker | Cloud Hypervisor |
//! | --- | --- | --- |
//! | kernel | ELF, entered as libkrun or QEMU do | ELF, entered as QEMU does (PVH); it has PCI alone, which libkrunfw's kernel lacks |
//! | initramfs | copied | copied |
//! | console | an 8250 alone, for which libkrunfw's kernel has no driver | virtio-console |
//! | vsock | one socket with a handshake; the guest's connections arrive at `SOCKET_PORT` | the same |
//! | disks | raw alone, so no disk roots | raw and qcow2 |
//! | shared roots, volumes of the host | none | vhost-user-fs, with QEMU's helper process |
//! | network cards | TAP, so the relay in the other direction | TAP or vhost-user |
//! | descriptors | opens files by path: `/proc/self/fd` in its jail | the same |
//!
//! [`Vmm::check_shares`] says that a VMM lacks shares. No method says that it lacks qcow2 or stream sockets for cards: both VMMs have them.
//! Such a method belongs beside that one, and is asked where the configuration is checked, before anything is made.

pub(crate) mod any;
pub(crate) mod kvm;

use std::os::fd::OwnedFd;

use msb::architecture::Architecture;
use msb::record;

use crate::kernel::BootProtocol;
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::Vm;

/// A VMM that can run VMs on this machine, with the programs that were found for it.
pub(crate) trait Vmm {
    /// Finds what the VMM needs for all guests of an architecture.
    ///
    /// # Errors
    /// The first thing that is missing.
    fn find(architecture: Architecture) -> Result<Self, Unusable>
    where
        Self: Sized;

    /// The VMM's name in messages.
    fn name(&self) -> &'static str;

    /// The VMM in a record.
    fn in_record(&self) -> record::Vmm;

    /// How fast it would run a VM here, for a message: "on KVM".
    fn acceleration(&self) -> &'static str;

    /// Whether it executes the guest's instructions itself, in software.
    fn is_emulator(&self) -> bool {
        false
    }

    /// The model of the guest's processor, which another VM must have to go on from a saved state. `None`: nothing can be saved.
    fn processor(&self) -> Option<String> {
        None
    }

    /// How it enters a guest's kernel that is an ELF program.
    fn boot_protocol(&self) -> BootProtocol;

    /// Whether one Unix socket leads to all vsock ports of the guest, and a client writes `CONNECT port` first. Else the socket
    /// is that of the agent's port.
    fn has_vsock_handshake(&self) -> bool;

    /// Whether the VMM itself copies the initramfs to the guest's memory. Else the guest's firmware reads it through a device, and the VMM
    /// keeps it mapped.
    fn copies_initramfs(&self) -> bool;

    /// How many devices a VM may have.
    fn max_devices(&self) -> usize;

    /// Checks that the VMM can share directories of the host with a guest: a shared root, or volumes.
    ///
    /// # Errors
    /// What is missing for that.
    fn check_shares(&self) -> Result<(), Unusable> {
        Ok(())
    }

    /// Starts the helper processes that serve the VM's devices. The supervisor calls it before it starts the VMM's own process.
    /// Returns the descriptors that the VMM inherits, and keeps their numbers for [`Vmm::run`].
    ///
    /// # Errors
    /// The helper process that did not start, and why.
    fn start_helpers(&mut self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<Vec<OwnedFd>>;

    /// Enters a jail and runs the VM, in a process of the VMM's own. Its stdout is the guest's console. Returns only on failure.
    fn run(&self, vm: &Vm) -> anyhow::Error;
}
