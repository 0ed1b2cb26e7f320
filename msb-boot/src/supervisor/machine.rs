//! What a VM keeps while it is started again: its disks, the files that its agents made in a shared root, the signals that end it, and
//! the connection to the client.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use msb::record::{Record, Rootfs};
use msb::store::layers;
use msb::store::sandbox::Hold;
use msb::vm::rundir::LockedRunDir;
use msb::vm::shared_root::Leftovers;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::connection::{Client, Report};
use crate::block::scratch;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::inherited_fd::InheritedFd;
use crate::initramfs::Initramfs;
use crate::root::Root;
use crate::vm::Vm;
use crate::volume;

/// A VM, running or not.
pub(super) struct Machine<'f> {
    /// The VM, with its disks.
    pub vm: Vm,
    /// INT, TERM and HUP.
    pub signals: SignalFd,
    /// What ends the VM when it is readable or at its end.
    pub end_with: Option<OwnedFd>,
    /// The client, until it has printed the record.
    pub client: &'f mut Option<Client>,
    /// Whether the client has printed the record. From then on the VM does not depend on the client.
    pub is_printed: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// The guest's first root, but for its configuration.
    pub initramfs: Initramfs,
    /// The guest's disks, open and locked, in the order of [`Vm::drives`]. An unlinked disk disappears with this.
    disks: Vec<OwnedFd>,
    leftovers: Option<Leftovers>,
    cgroup: Cgroup,
    /// What of the store the VM uses, so that nobody removes it.
    _held: (Vec<OwnedFd>, Vec<Hold>),
    is_reported: bool,
}

impl<'f> Machine<'f> {
    /// Makes and opens the files that the VM needs.
    ///
    /// # Errors
    /// A file that is missing, or in use.
    pub(super) fn make(config: &Config, held: &LockedRunDir, client: &'f mut Option<Client>) -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let limits = config.record.boot.as_ref().map(|boot| boot.limits.clone()).unwrap_or_default();
        let cgroup = Cgroup::enter(&config.cgroup_parents, &config.name, &limits)?;
        let held_in_store = hold(config)?;
        let mut vm = config.vm.clone();
        let leftovers = match &config.root {
            Root::Share(root) => Some(Leftovers::hold(held.path(), root).with_context(|| format!("root {root:?}"))?),
            _ => None,
        };
        vm.volumes = volume::shared(&config.volumes)?;
        volume::make_mount_points(&vm.volumes_dir(), &config.boot.volumes)
            .context("the mount points of the volumes")?;
        let initramfs = Initramfs::make(&config.agent, &config.agent_part, &config.scripts)?;
        let opened = match &config.saved {
            Some(saved) => saved.open_drives()?,
            None => config.root.open_drives()?,
        };
        note_needs(config)?;
        let (drives, disks) = opened.into_iter().unzip();
        vm.drives = drives;
        Ok(Self {
            vm,
            signals,
            end_with: config.end_with.map(take).transpose().context("--end-with")?,
            client,
            is_printed: false,
            restarts: 0,
            initramfs,
            disks,
            cgroup,
            leftovers,
            _held: held_in_store,
            is_reported: false,
        })
    }

    /// Duplicates the disks for the VMM to inherit, and sets their numbers in [`Vm::drives`].
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(super) fn inherited_disks(&mut self) -> anyhow::Result<Vec<OwnedFd>> {
        let disks: Vec<OwnedFd> = self.disks.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()?;
        for (drive, disk) in self.vm.drives.iter_mut().zip(&disks) {
            drive.fd = InheritedFd::of(disk);
        }
        Ok(disks)
    }

    /// What a commit needs: the writable disk, if there is one, the first root, and the cgroup that it runs in.
    pub(super) fn into_parts(mut self) -> (Option<OwnedFd>, Initramfs, Cgroup) {
        let index = self.vm.drives.iter().position(|drive| drive.writable);
        (index.map(|index| self.disks.swap_remove(index)), self.initramfs, self.cgroup)
    }

    /// The likely reason for a failure, if the VM has reached its limit of memory.
    pub(super) fn lack_of_memory(&self) -> Option<&'static str> {
        let is_reached = self.cgroup.was_out_of_memory();
        is_reached.then_some("the VM reached its limit of memory on the host (raise --memory-max)")
    }

    /// Records the files that the agent made in a shared root, which are removed when the last VM on that root has ended.
    ///
    /// # Errors
    /// Those of writing the list.
    pub(super) fn add_leftovers(&mut self, made: &[PathBuf]) -> anyhow::Result<()> {
        match &mut self.leftovers {
            Some(leftovers) => leftovers.add(made).context("the list of files that the agent made in the root"),
            None => Ok(()),
        }
    }

    /// Sends the record to the client, once. Returns whether the client has yet to print it.
    pub(super) fn report(&mut self, record: Record) -> bool {
        match self.client.as_mut() {
            Some(client) if !self.is_reported => {
                client.send(&Report::Ready(Box::new(record)));
                self.is_reported = true;
                true
            }
            client => client.is_some(),
        }
    }

    /// Reads a signal that asks the VM to end, if there is one.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub(super) fn read_signal(&mut self) -> anyhow::Result<Option<Signal>> {
        match self.signals.read_signal()? {
            Some(info) => Ok(Some(Signal::try_from(info.ssi_signo.cast_signed())?)),
            None => Ok(None),
        }
    }
}

/// Takes a descriptor over: the processes of the VM do not inherit it.
fn take(fd: InheritedFd) -> std::io::Result<OwnedFd> {
    let own = fd.duplicate()?;
    nix::unistd::close(fd.number())?;
    Ok(own)
}

/// Writes the list of the sandboxes that the VM needs for its next boot, if its disk has a name.
fn note_needs(config: &Config) -> anyhow::Result<()> {
    let Root::Block(block) = &config.root else { return Ok(()) };
    match block.scratch.path() {
        Some(disk) => scratch::note_needs(&disk, &config.record),
        None => Ok(()),
    }
}

/// Holds the layers of the root, and the sandboxes of the upper and of the scripts.
fn hold(config: &Config) -> anyhow::Result<(Vec<OwnedFd>, Vec<Hold>)> {
    let record = &config.record;
    let lower = match &record.rootfs {
        Some(Rootfs::Layers { lower, .. }) => layers::hold(lower)?,
        _ => Vec::new(),
    };
    let mut sandboxes = Vec::new();
    let scripts = record.scripts.values().filter_map(|script| script.parent()).collect::<BTreeSet<_>>();
    for dir in record.upper.iter().map(|upper| upper.dir.as_path()).chain(scripts) {
        let held = Hold::take(dir, |owner| owner.vm = Some(config.name.clone()));
        sandboxes.extend(held.with_context(|| format!("{dir:?}"))?);
    }
    Ok((lower, sandboxes))
}
