//! The commit of a block root: what the guest wrote to its disk becomes part of the record's upper.
//!
//! The disk is the guest's work and may be broken on purpose, so no kernel of the host's ever mounts it. A machine of its own
//! does, with nothing but that disk, where only the agent runs; it sends what is there, and [`msb::overlay::commit`] takes it. The
//! upper changes in one rename when all has come, and only then the disk goes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use msb::overlay::reach;
use msb::record::{DiskFormat, Rootfs, Upper};
use msb::store::staging::{Layers, Staging};
use msb::vm::boot::{self, Boot, MountStep};
use msb::vm::rundir::{self, Committed, Held, Stop};
use msb::wire::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::crew::{Crew, describe};
use crate::bootshare;
use crate::config::Config;
use crate::vmm::{Drive, Root};

/// The memory of a machine that only reads a disk, in MiB.
const MEMORY: u32 = 256;
/// How much of what the machine says is kept for an error.
const LAST_WORDS: usize = 2000;

/// Commits, where msb-stop or the caller of msb-boot wants it.
pub(super) fn is_wanted(config: &Config, held: &Held) -> bool {
    config.commit_on_stop || rundir::find::<Stop>(held.path(), rundir::STOP).is_some_and(|stop| stop.commit)
}

/// Commits what is on `disk`. Where it fails, a disk without a name gets one, so that nothing is lost.
pub(super) fn run(config: &Config, held: &Held, disk: OwnedFd) -> Committed {
    let Root::Block(block) = &config.vm.root else { return Committed::Failed("the root is no disk of ours".into()) };
    match bring(config, held, &disk) {
        Ok(upper) => {
            // What was on it is in the upper; applied twice it would only say the same again.
            block.top.forget();
            Committed::Into { dir: upper.dir, work: upper.work }
        }
        Err(error) => keep(config, &disk, &format!("{error:#}")),
    }
}

/// Keeps the disk, for `why`, and says how to go on with it. One without a name gets the VM's.
pub(super) fn keep(config: &Config, disk: &OwnedFd, why: &str) -> Committed {
    let Root::Block(block) = &config.vm.root else { return Committed::Failed(why.into()) };
    let name = &config.name;
    Committed::Failed(match block.keep(name, disk) {
        Ok(path) => format!(
            "{why}; what it wrote is kept in {path:?} (to commit it: \"msb-boot --name {name}\" with this record, then \
             \"msb-stop -r {name} --commit\")"
        ),
        Err(error) => format!("{why}; its disk cannot be kept either: {error:#}"),
    })
}

fn bring(config: &Config, held: &Held, disk: &OwnedFd) -> anyhow::Result<Upper> {
    let record = &config.record;
    let (Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) = record.rootfs()? else {
        bail!("the record's root has no layers");
    };
    let Root::Block(block) = &config.vm.root else { bail!("the root is no disk of ours") };
    let size = rustix::fs::fstat(disk)?.st_size;
    if let Some(upper) = &record.upper {
        reach::require_private(&upper.dir)?;
    }
    let (staging, layers) = Staging::begin(block.home(), lower, record.upper.as_ref(), None, false)?;
    let Layers { root, writer, .. } = layers;
    let received = receive(config, held, disk, |guest| {
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

/// Starts the machine and has `take` read what it sends.
fn receive(
    config: &Config,
    held: &Held,
    disk: &OwnedFd,
    take: impl FnOnce(&mut UnixStream) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut vm = config.vm.clone();
    // The VM's own, and not what another release has put in its place meanwhile.
    let agent = File::open(vm.boot_share().join(boot::INIT_NAME)).context("the VM's agent")?;
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
    vm.memory_mib = MEMORY;
    vm.cpus = 1;
    let drive = disk.try_clone()?;
    vm.drives = vec![Drive { fd: drive.as_raw_fd(), format: DiskFormat::Raw, writable: true }];
    let boot = Boot { commit: true, mounts: vec![mount_step()], ..config.boot.clone() };
    let agent_path = PathBuf::from(format!("/proc/self/fd/{}", agent.as_raw_fd()));
    bootshare::make(&vm.boot_share(), &agent_path, &boot, &Default::default())?;
    msb::store::publish::make_private_dir(&vm.door())?;
    let listener = UnixListener::bind(vm.ready_socket()).with_context(|| format!("{:?}", vm.ready_socket()))?;
    let (mut words, words_in) = std::io::pipe()?;
    let (mut console, console_in) = std::io::pipe()?;
    let mut crew = Crew::new(words_in.try_clone()?, words_in, held.show_life()?)?;
    let mut inherited = vec![drive];
    inherited.extend(vm.vmm.vmm().prepare(&mut vm, &mut crew)?);
    crew.start_vmm(&vm, console_in, &inherited)?;
    drop(inherited);
    let vmm = crew.last_pidfd()?;
    // Both pipes have to be read, or the machine would wait.
    let said = std::thread::spawn(move || last_of(&mut console));
    let complained = std::thread::spawn(move || last_of(&mut words));
    let received = accept(&listener, &vmm, config.timeout).and_then(|mut guest| {
        guest.set_write_timeout(Some(config.timeout))?;
        msb::overlay::commit::send(&mut guest, &Message::hello())?;
        guest.set_read_timeout(Some(config.timeout))?;
        Message::receive_hello(&mut guest).map_err(|error| anyhow!("guest: {error}"))?;
        take(&mut guest)
    });
    let name = vm.vmm.name();
    let lost = if received.is_err() { crew.lost(name) } else { None };
    crew.end();
    drop(crew);
    received.map_err(|error| {
        let mut context = "commit".to_string();
        // What the guest said last; without it, what the VMM and its helpers said.
        let said = said.join().ok().filter(|said| !said.is_empty());
        if let Some(said) = said.or_else(|| complained.join().ok().filter(|said| !said.is_empty())) {
            context.push_str(&format!(" (the machine said last: {said})"));
        }
        match lost {
            Some((name, status)) => error.context(format!("{name} {}", describe(status))).context(context),
            None => error.context(context),
        }
    })
}

fn mount_step() -> MountStep {
    MountStep {
        source: "/dev/vda".into(),
        target: boot::TOP.into(),
        fstype: "ext4".into(),
        // What is in its journal is written all the same.
        options: vec!["ro".into(), "nosuid".into(), "nodev".into(), "noexec".into()],
        directories: Vec::new(),
    }
}

fn accept(listener: &UnixListener, vmm: &OwnedFd, patience: Duration) -> anyhow::Result<UnixStream> {
    let until = Instant::now() + patience;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now()))?;
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN), PollFd::new(vmm, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => bail!("the machine did not answer within {} s", patience.as_secs()),
            other => drop(other?),
        }
        if !fds[0].revents().is_empty() {
            return Ok(listener.accept()?.0);
        }
        bail!("the machine ended before it had sent anything");
    }
}

/// Reads to the end, and keeps the end.
fn last_of(pipe: &mut impl Read) -> String {
    let mut last = Vec::new();
    let mut block = [0u8; 4096];
    while let Ok(got @ 1..) = pipe.read(&mut block) {
        last.extend_from_slice(&block[..got]);
        last.drain(..last.len().saturating_sub(LAST_WORDS));
    }
    let lines = String::from_utf8_lossy(&last)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    msb::tool::exit::printable(&lines)
}
