//! What of a VM outlives its processes, so that it can be started again: its disks, what its agents made in a shared root, who has
//! a say in its end, and who waits for its record.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context;
use msb::record::Record;
use msb::vm::rundir::Held;
use msb::vm::shared_root::Leftovers;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::front::Front;
use crate::bootshare;
use crate::config::Config;
use crate::launch::Report;
use crate::vmm::{Root, Vm};

/// A VM, running or not.
pub(super) struct Machine<'f> {
    /// What is started, with its disks.
    pub vm: Vm,
    /// INT, TERM and HUP.
    pub signals: SignalFd,
    /// Who waits for the record, until it is printed.
    pub front: &'f mut Option<Front>,
    /// Whether the caller has printed the record: from then on the VM is there for everybody.
    pub is_printed: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Those of the guest, open and locked. A disk without a name is gone with this.
    disks: Vec<OwnedFd>,
    leftovers: Option<Leftovers>,
    is_told: bool,
}

impl<'f> Machine<'f> {
    /// Makes and opens all that a VM takes.
    ///
    /// # Errors
    /// What is missing, or in use.
    pub(super) fn make(config: &Config, held: &Held, front: &'f mut Option<Front>) -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut vm = config.vm.clone();
        let leftovers = match &vm.root {
            Root::Share(root) => Some(Leftovers::hold(held.path(), root).with_context(|| format!("root {root:?}"))?),
            _ => None,
        };
        bootshare::make(&vm.boot_share(), &config.agent, &config.boot, &config.scripts)?;
        let disks = vm.open_drives()?;
        Ok(Self { vm, signals, front, is_printed: false, restarts: 0, disks, leftovers, is_told: false })
    }

    /// The disks, for the VMM to inherit under the numbers that [`Vm::drives`] has.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub(super) fn drives(&mut self) -> anyhow::Result<Vec<OwnedFd>> {
        let disks: Vec<OwnedFd> = self.disks.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()?;
        for (drive, disk) in self.vm.drives.iter_mut().zip(&disks) {
            drive.fd = disk.as_raw_fd();
        }
        Ok(disks)
    }

    /// The disk that takes what the guest of a block root writes, for a commit.
    pub(super) fn scratch_disk(&mut self) -> Option<OwnedFd> {
        let place = self.vm.drives.iter().position(|drive| drive.writable && matches!(self.vm.root, Root::Block(_)))?;
        Some(self.disks.swap_remove(place))
    }

    /// Remembers what the agent made in a shared root.
    ///
    /// # Errors
    /// What writing that down says.
    pub(super) fn add_leftovers(&mut self, made: &[PathBuf]) -> anyhow::Result<()> {
        match &mut self.leftovers {
            Some(leftovers) => leftovers.add(made).context("what the agent made in the root"),
            None => Ok(()),
        }
    }

    /// Tells the record to who waits for it, the first time. True: it is to be printed yet.
    pub(super) fn report(&mut self, record: Record) -> bool {
        match self.front.as_mut() {
            Some(front) if !self.is_told => {
                front.tell(&Report::Ready(Box::new(record)));
                self.is_told = true;
                true
            }
            front => front.is_some(),
        }
    }

    /// A signal that asks for the end, if there is one.
    ///
    /// # Errors
    /// What reading says.
    pub(super) fn read_signal(&mut self) -> anyhow::Result<Option<Signal>> {
        match self.signals.read_signal()? {
            Some(info) => Ok(Some(Signal::try_from(info.ssi_signo.cast_signed())?)),
            None => Ok(None),
        }
    }
}
