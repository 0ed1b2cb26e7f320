//! What a VMM does: the trait that libkrun and QEMU implement. [`any`] chooses between them.

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
    /// Finds what the VMM needs for guests of an architecture.
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

    /// How it enters a guest's kernel that is an ELF program.
    fn boot_protocol(&self) -> BootProtocol;

    /// Whether one Unix socket leads to all vsock ports of the guest, and a client writes `CONNECT port` first. Else the socket is that
    /// of the agent's port.
    fn has_vsock_handshake(&self) -> bool;

    /// How many devices a VM may have.
    fn max_devices(&self) -> usize;

    /// Starts the helper processes that serve the VM's devices. The supervisor calls it before it starts the VMM's own process. Returns
    /// the descriptors that the VMM inherits, and keeps their numbers for [`Vmm::run`].
    ///
    /// # Errors
    /// The helper process that did not start, and why.
    fn start_helpers(&mut self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<Vec<OwnedFd>>;

    /// Enters a jail and runs the VM, in a process of the VMM's own. Its stdout is the guest's console. Returns only on failure.
    fn run(&self, vm: &Vm) -> anyhow::Error;
}
