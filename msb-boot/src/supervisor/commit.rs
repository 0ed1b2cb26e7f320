//! The commit of a block root: what the guest wrote to its disk becomes part of the record's upper.
//!
//! The guest may have damaged the disk on purpose, so the host's kernel never mounts it. A second VM mounts it, with no other disk, and
//! runs only the agent, which sends the files; [`msb::overlay::commit`] receives them. One rename changes the upper when everything has
//! arrived, and the disk is removed after that.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::overlay::reach;
use msb::record::{DiskFormat, Rootfs, Upper};
use msb::store::sandbox::Owner;
use msb::store::staging::{Layers, Staging, Start};
use msb::vm::boot::{self, Boot, MountStep};
use msb::vm::patience::Patience;
use msb::vm::rundir::{self, Committed, LockedRunDir, StopRequest};
use msb::wire::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::block::BlockRoot;
use crate::channel;
use crate::config::Config;
use crate::inherited_fd::InheritedFd;
use crate::initramfs::Initramfs;
use crate::processes::{Processes, describe};
use crate::vm::Drive;

/// The memory of a VM that only reads a disk, in MiB.
const MEMORY_MIB: u32 = 256;
/// How much of its console is kept for an error message, in bytes.
const MAX_CONSOLE: usize = 2000;

/// Whether msb-stop or the caller of msb-boot has asked for a commit.
pub(super) fn is_wanted(config: &Config, held: &LockedRunDir) -> bool {
    config.commit_on_stop || rundir::read::<StopRequest>(held.path(), rundir::STOP).is_some_and(|stop| stop.commit)
}

/// Commits the content of `disk`. If that fails, the disk is kept, so that nothing is lost.
pub(super) fn run(
    config: &Config,
    held: &LockedRunDir,
    block: &BlockRoot,
    disk: OwnedFd,
    initramfs: &Initramfs,
) -> Committed {
    match commit(config, held, block, &disk, initramfs) {
        Ok(upper) => {
            // Its content is in the upper now. A crash before this line is harmless: a second commit changes nothing.
            block.scratch.remove();
            Committed::Into { dir: upper.dir, work: upper.work }
        }
        Err(error) => keep(config, block, &disk, &format!("{error:#}")),
    }
}

/// Keeps the disk because of `why`, and says how to commit it later. The disk of a VM without a name gets the VM's generated name.
pub(super) fn keep(config: &Config, block: &BlockRoot, disk: &OwnedFd, why: &str) -> Committed {
    let name = &config.name;
    Committed::Failed(match block.keep(name, disk, &config.record) {
        Ok(path) => format!(
            "{why}; what it wrote is kept in {path:?} (to commit it: \"msb-boot --name {name}\" with this record, then \
             \"msb-stop -r {name} --commit\")"
        ),
        Err(error) => format!("{why}; its disk cannot be kept either: {error:#}"),
    })
}

fn commit(
    config: &Config,
    held: &LockedRunDir,
    block: &BlockRoot,
    disk: &OwnedFd,
    initramfs: &Initramfs,
) -> anyhow::Result<Upper> {
    let record = &config.record;
    let (Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) = record.rootfs()? else {
        bail!("the record's root has no layers");
    };
    let size = rustix::fs::fstat(disk)?.st_size;
    if let Some(upper) = &record.upper {
        reach::require_private(&upper.dir)?;
    }
    let (staging, layers) = Staging::begin(block.home(), lower, record.upper.as_ref(), None, Start::Continue)?;
    if let Some(draft) = staging.draft() {
        Owner::of(record).create(&draft.dir).inspect_err(|_| staging.discard())?;
    }
    let Layers { root, writer, .. } = layers;
    let received = receive(config, held, disk, initramfs, |guest| {
        Ok(msb::overlay::commit::receive(guest, &root, &writer, u64::try_from(size)?)?)
    });
    match received {
        Ok(()) => Ok(staging.publish(true)?.keep()),
        Err(error) => {
            staging.discard();
            Err(error)
        }
    }
}

/// Starts the second VM and calls `receive` with the connection to its agent.
fn receive(
    config: &Config,
    held: &LockedRunDir,
    disk: &OwnedFd,
    initramfs: &Initramfs,
    receive: impl FnOnce(&mut UnixStream) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut vm = config.vm.clone();
    held.clear(&[
        rundir::ALIVE,
        rundir::KERNEL_LOG,
        rundir::OLD_KERNEL_LOG,
        rundir::SUPERVISOR_LOG,
        rundir::OLD_SUPERVISOR_LOG,
        msb::record::FILE_NAME,
        rundir::STOP,
        rundir::READERS,
        rundir::COMMITTED,
    ])?;
    // A limit of the host's memory has room for the memory that the guest had.
    let is_limited = config.record.boot.as_ref().is_some_and(|boot| boot.limits.memory_max_mib.is_some());
    vm.memory_mib = if is_limited { MEMORY_MIB.min(vm.memory_mib) } else { MEMORY_MIB };
    vm.cpus = 1;
    vm.cards = Vec::new();
    vm.volumes = Vec::new();
    let disk = disk.try_clone()?;
    let fd = InheritedFd::of(&disk);
    vm.drives = vec![Drive { fd, format: DiskFormat::Raw, writable: true, backing_file: None }];
    let boot =
        Boot { commit: true, mounts: vec![mount_step()], network: None, volumes: Vec::new(), ..config.boot.clone() };
    let initramfs = initramfs.write(&vm.dir, &boot, vm.user)?;
    vm.initramfs = InheritedFd::of(&initramfs);
    msb::store::publish::make_private_dir(&vm.socket_dir())?;
    let listener = UnixListener::bind(vm.ready_socket()).with_context(|| format!("{:?}", vm.ready_socket()))?;
    let (mut stderr, stderr_in) = std::io::pipe()?;
    let (mut console, console_in) = std::io::pipe()?;
    let patience = Patience::with_new_children(config.timeout);
    let mut processes = Processes::new(stderr_in.try_clone()?, stderr_in, held.lock_alive()?)?;
    let mut fds = vec![disk, initramfs];
    let _channel = channel::start(&mut vm, &mut fds, &mut processes)?;
    config.vmm.start(&vm, fds, console_in, &mut processes)?;
    let vmm = processes.last_pidfd()?;
    // Both pipes must be read, or the VM would block on a full one.
    let console = std::thread::spawn(move || read_end(&mut console));
    let stderr = std::thread::spawn(move || read_end(&mut stderr));
    let received = accept(&listener, &vmm, config.timeout, patience).and_then(|mut guest| {
        guest.set_write_timeout(Some(config.timeout))?;
        msb::overlay::commit::send(&mut guest, &Message::hello())?;
        guest.set_read_timeout(Some(config.timeout))?;
        Message::receive_hello(&mut guest).map_err(|error| anyhow!("guest: {error}"))?;
        receive(&mut guest)
    });
    let lost = if received.is_err() { processes.reap(config.vmm.name()) } else { None };
    processes.kill_all();
    drop(processes);
    received.map_err(|error| {
        let console = console.join().ok().filter(|console| !console.is_empty());
        let stderr = || stderr.join().ok().filter(|stderr| !stderr.is_empty());
        let context = match console.map(|text| ("console", text)).or_else(|| Some(("stderr", stderr()?))) {
            Some((source, text)) => format!("commit (its {source} ends with: {text})"),
            None => "commit".to_owned(),
        };
        match lost {
            Some((name, status)) => error.context(format!("{name} {}", describe(status))).context(context),
            None => error.context(context),
        }
    })
}

fn mount_step() -> MountStep {
    MountStep {
        source: "/dev/vda".into(),
        target: boot::SCRATCH.into(),
        fstype: "ext4".into(),
        // The kernel still replays the journal.
        options: vec!["ro".into(), "nosuid".into(), "nodev".into(), "noexec".into()],
        directories: Vec::new(),
    }
}

/// Accepts the connection of the guest's agent.
fn accept(
    listener: &UnixListener,
    vmm: &OwnedFd,
    timeout: Duration,
    mut patience: Patience,
) -> anyhow::Result<UnixStream> {
    loop {
        let Some(left) = patience.left() else { bail!("the agent did not connect within {} s", timeout.as_secs()) };
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN), PollFd::new(vmm, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Err(rustix::io::Errno::INTR) | Ok(0) => continue,
            other => drop(other?),
        }
        if !fds[0].revents().is_empty() {
            return Ok(listener.accept()?.0);
        }
        bail!("the VM ended before its agent connected");
    }
}

/// Reads a pipe to its end, and returns its last lines.
fn read_end(pipe: &mut impl Read) -> String {
    let mut last = Vec::new();
    let mut block = [0u8; 4096];
    while let Ok(got @ 1..) = pipe.read(&mut block) {
        last.extend_from_slice(&block[..got]);
        last.drain(..last.len().saturating_sub(MAX_CONSOLE));
    }
    let lines = String::from_utf8_lossy(&last)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    msb::tool::exit::printable(&lines)
}
