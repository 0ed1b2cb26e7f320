//! Saving a VM, and starting one from what was saved. The supervisor can read the guest's memory, so the VMM writes only the state of the
//! processor and the devices, to a descriptor from the supervisor.
//!
//! The channel to the agent is frozen first, so that nothing is under way in the guest's port while its state is saved. A VM that starts
//! from the state begins the channel anew.

mod load;
mod memory;
mod monitor;
mod parts;
mod save;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use msb::record::Endpoint;
use msb::store::erase::Use;
use msb::store::snapshot::{self, Machine};
use msb::vm::rundir;

use crate::config::Config;
use crate::inherited_fd::InheritedFd;
use crate::saved;
use crate::vm::{Saving, Vm};
use memory::Memory;
use monitor::Monitor;
use parts::Parts;

pub(super) use load::Loaded;

/// The supervisor's ends of what the VMM inherits, before the VMM runs.
pub(super) struct Prepared {
    memory: Source,
    monitor: UnixStream,
    disks: Vec<File>,
    machine: Machine,
}

/// Where the VMM gets the guest's memory from.
enum Source {
    /// Empty memory.
    Empty(File),
    /// The memory of a snapshot, and the state of its devices.
    Saved(Use, InheritedFd),
}

/// A VM that can be saved.
pub(super) struct Saver {
    parts: Arc<Parts>,
    state: Option<InheritedFd>,
    /// Where msb-snapshot connects, once the VM is up.
    listener: Option<UnixListener>,
}

impl Prepared {
    /// Makes what the VMM inherits for a VM that can be saved, and adds it to `fds`. For one that starts from a snapshot, reads the
    /// memory and the state of that.
    ///
    /// # Errors
    /// A snapshot that is not as it was saved.
    pub(super) fn make(config: &Config, vm: &mut Vm, fds: &mut Vec<OwnedFd>) -> anyhow::Result<Option<Self>> {
        vm.saving = None;
        if !vm.has_saved_devices() || config.networks.has_external_cards() || config.vmm.processor().is_none() {
            return Ok(None);
        }
        let (machine, disks) = describe(config, vm)?;
        let (monitor, theirs) = UnixStream::pair()?;
        let mut inherited = None;
        let memory = if let Some(saved) = &config.saved {
            // The saved memory is not inherited: the VMM must not write to it.
            let (memory, state) = (saved.memory()?, saved.state()?);
            let source = Source::Saved(memory, InheritedFd::of(&state));
            fds.push(state);
            source
        } else {
            let memory = saved::memory(vm.memory_mib)?;
            let passed_on = OwnedFd::from(memory.try_clone()?);
            inherited = Some(InheritedFd::of(&passed_on));
            fds.push(passed_on);
            Source::Empty(memory)
        };
        vm.saving = Some(Saving { memory: inherited, monitor: InheritedFd::of(&theirs) });
        fds.push(theirs.into());
        Ok(Some(Self { memory, monitor, disks, machine }))
    }

    /// Completes the parts once the VMM runs. `vmm` is its process ID, and `channel` the control socket of the multiplexer.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(super) fn started(self, config: &Config, vmm: u32, channel: &UnixStream) -> anyhow::Result<Saver> {
        let Self { memory, monitor, disks, machine } = self;
        let (monitor, channel) = (Mutex::new(Monitor::new(monitor)?), channel.try_clone()?);
        let (memory, state) = match memory {
            Source::Empty(memory) => (Memory::Shared(memory), None),
            Source::Saved(saved, state) => (Memory::Private { saved, vmm }, Some(state)),
        };
        let parts = Parts { monitor, channel, memory, disks, machine, images: config.images.clone() };
        Ok(Saver { parts: Arc::new(parts), state, listener: None })
    }
}

/// Describes the machine, and duplicates the descriptors of its disks.
fn describe(config: &Config, vm: &Vm) -> anyhow::Result<(Machine, Vec<File>)> {
    let mut files = Vec::new();
    let mut disks = Vec::new();
    for (number, drive) in vm.drives.iter().enumerate() {
        let file = File::from(drive.fd.duplicate()?);
        let (format, writable, size) = (drive.format, drive.writable, file.metadata()?.len());
        disks.push(snapshot::Disk { file: format!("disk{number}"), format, writable, size });
        files.push(file);
    }
    let machine = Machine {
        vmm: String::new(),
        processor: config.vmm.processor().unwrap_or_default(),
        kernel: saved::kernel_name(&vm.kernel),
        cpus: vm.cpus,
        memory_mib: vm.memory_mib,
        disks,
        network: config.boot.network.clone(),
        init: config.saved.as_ref().and_then(|saved| saved.machine().init.clone()),
    };
    Ok((machine, files))
}

impl Saver {
    /// Starts to load the state that the VMM waits for, if it does. `endpoint` is the agent's socket during a boot.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub(super) fn load(&self, config: &Config, endpoint: Endpoint) -> anyhow::Result<Option<Loaded>> {
        let (Some(saved), Some(state)) = (&config.saved, self.state) else { return Ok(None) };
        let expected = saved.machine().vmm.clone();
        let other = load::other(&config.boot, saved.new_machine_id)?;
        let parts = Arc::clone(&self.parts);
        Ok(Some(Loaded::start(move || load::run(&parts, state, &expected, &endpoint, other))?))
    }

    /// Lets msb-snapshot connect, in the run directory. `init` is what the agent has reported.
    ///
    /// # Errors
    /// Those of bind(2).
    pub(super) fn listen(&mut self, dir: &Path, init: Option<String>) -> anyhow::Result<()> {
        let path = dir.join(rundir::SNAPSHOT_SOCKET);
        let listener = UnixListener::bind(&path).with_context(|| format!("{path:?}"))?;
        listener.set_nonblocking(true)?;
        // If the loading thread still has the parts, they keep the init from the snapshot.
        if let Some(parts) = Arc::get_mut(&mut self.parts) {
            parts.machine.init = init.or(parts.machine.init.take());
        }
        self.listener = Some(listener);
        Ok(())
    }

    /// Readable when msb-snapshot has connected.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Serves a connection of msb-snapshot in a thread. `endpoint` is the agent's.
    pub(super) fn accept(&self, endpoint: Endpoint) {
        let Some(Ok((client, _))) = self.listener.as_ref().map(UnixListener::accept) else { return };
        let parts = Arc::clone(&self.parts);
        std::thread::spawn(move || save::serve(&client, &parts, endpoint));
    }
}
