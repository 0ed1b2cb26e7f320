//! What of the host belongs to the user of a VM while it runs: its disks, its sockets and its console. The VMM opens them as that user.

use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, chown};

use anyhow::Context;
use msb::jail::{FIRST_USER, LAST_USER};
use rustix::fs::{Gid, Uid, XattrFlags};

use crate::vm::{Drive, Vm};

/// An xattr of a disk with its owner and group, while a VM's user has it. That user cannot change it.
const OWNER: &str = "trusted.msb.owner";

/// A disk that has another owner once the VM has ended.
#[derive(Debug)]
struct Disk {
    file: OwnedFd,
    uid: u32,
    gid: u32,
}

/// What a VM's user owns until this is dropped.
#[derive(Debug)]
pub(crate) struct Granted(Vec<Disk>);

impl Granted {
    /// Gives a VM's user what the VMM opens. All but the disks disappears with the VM.
    ///
    /// # Errors
    /// The file that cannot be given away.
    pub(crate) fn grant(vm: &Vm, console: &PipeWriter) -> anyhow::Result<Self> {
        let (uid, gid) = (Uid::from_raw(vm.user), Gid::from_raw(vm.user));
        rustix::fs::fchown(console, Some(uid), Some(gid)).context("the console")?;
        if let Some(memory) = vm.saving.and_then(|saving| saving.memory) {
            rustix::fs::fchown(memory.duplicate()?, Some(uid), Some(gid)).context("the guest's memory")?;
        }
        for path in [vm.socket_dir(), vm.ready_socket()] {
            chown(&path, Some(vm.user), Some(vm.user)).with_context(|| format!("{path:?}"))?;
        }
        let disks = vm.drives.iter().map(|drive| grant_disk(drive, vm.user).context("a disk"));
        Ok(Self(disks.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }
}

/// The owner and the group that a disk had before a VM whose supervisor was killed.
fn owner_before(file: &OwnedFd) -> (u32, u32) {
    let mut value = [0; 24];
    let length = rustix::fs::fgetxattr(file, OWNER, &mut value[..]).unwrap_or(0);
    let numbers = std::str::from_utf8(&value[..length]).ok().and_then(|text| text.split_once(':'));
    numbers.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?))).unwrap_or((0, 0))
}

fn grant_disk(drive: &Drive, user: u32) -> io::Result<Option<Disk>> {
    if !drive.writable {
        return Ok(None);
    }
    let path = drive.fd.path();
    let meta = fs::metadata(&path)?;
    let file = drive.fd.duplicate()?;
    // A supervisor that was killed has not given it back. In a user namespace, every VM may have the same user.
    let is_left = meta.uid() == user || (FIRST_USER..=LAST_USER).contains(&meta.uid());
    let (uid, gid) = if is_left { owner_before(&file) } else { (meta.uid(), meta.gid()) };
    // Without the xattr, which takes root of the host and a file system for it, such a file becomes root's.
    let _ = rustix::fs::fsetxattr(&file, OWNER, format!("{uid}:{gid}").as_bytes(), XattrFlags::empty());
    let disk = Disk { file, uid, gid };
    chown(&path, Some(user), Some(user))?;
    Ok(Some(disk))
}

impl Drop for Granted {
    fn drop(&mut self) {
        for Disk { file, uid, gid } in &self.0 {
            let _ = rustix::fs::fchown(file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            let _ = rustix::fs::fremovexattr(file, OWNER);
        }
    }
}
