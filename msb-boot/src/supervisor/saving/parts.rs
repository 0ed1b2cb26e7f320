//! What it takes to save a VM or to load its state.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use msb::store::snapshot::Machine;

use super::memory::Memory;
use super::monitor::Monitor;

/// The supervisor's ends of a VM that can be saved.
pub(super) struct Parts {
    pub monitor: Mutex<Monitor>,
    /// The control socket of the multiplexer.
    pub channel: UnixStream,
    pub memory: Memory,
    pub disks: Vec<File>,
    /// The machine, without the VMM's version, which the monitor has.
    pub machine: Machine,
    /// The directory with the EROFS images of the store, which never change.
    pub images: PathBuf,
}

impl Parts {
    /// The monitor, for one save or load at a time. A panic has left it between two commands at worst.
    pub(super) fn monitor(&self) -> MutexGuard<'_, Monitor> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
