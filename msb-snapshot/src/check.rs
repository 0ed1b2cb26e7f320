//! Whether a VM can be saved, by its record.

use std::path::PathBuf;

use anyhow::{anyhow, bail, ensure};
use msb::record::{Boot, Channel, RootKind, Vm, Vmm, VolumeContent};
use msb::vm::supervisor;

/// The run directory of a VM, which must be this user's.
///
/// # Errors
/// A record with a socket elsewhere; a directory of another user.
pub(crate) fn run_dir(vm: &Vm) -> anyhow::Result<PathBuf> {
    let dir = supervisor::run_dir(vm).ok_or_else(|| {
        anyhow!("record: socket {:?} is not in a run directory of VM {:?}", vm.endpoint.unix, vm.name)
    })?;
    supervisor::check_owner(dir)?;
    Ok(dir.to_owned())
}

/// Checks that all of its devices can be saved.
///
/// # Errors
/// The first one that cannot, and what to do.
pub(crate) fn can_be_saved(vm: &Vm, boot: Option<&Boot>) -> anyhow::Result<()> {
    match vm.root {
        RootKind::Share => bail!("a shared root cannot be saved (boot it from disks: leave msb-mount out)"),
        RootKind::Disk => bail!("a disk root cannot be saved yet (boot an image: msb-pull NAME | msb-boot)"),
        _ => {}
    }
    ensure!(vm.vmm == Vmm::Qemu, "libkrun cannot save a VM (boot it with --vmm qemu --channel serial)");
    let is_of_host = |content: &VolumeContent| !matches!(content, VolumeContent::Tmpfs(_));
    let mut volumes = boot.iter().flat_map(|boot| &boot.volumes);
    if let Some(volume) = volumes.find(|volume| is_of_host(&volume.content)) {
        bail!("volume {:?} cannot be saved (boot it without, and copy files with msb-cp)", volume.target);
    }
    if boot.and_then(|boot| boot.channel) != Some(Channel::Serial) {
        bail!("its agent is reached by vsock, which QEMU cannot save (boot it with --channel serial)");
    }
    ensure!(vm.cards.is_empty(), "network cards on other networks cannot be saved yet (boot it without them)");
    Ok(())
}
