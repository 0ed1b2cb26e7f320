//! The save of a running VM into a directory of msb-snapshot.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, bail};
use msb::overlay::copy_data;
use msb::record::Endpoint;
use msb::store::snapshot::{self, Machine};
use msb::vm::patience::Patience;
use msb::vm::saving::{self, Answer, Saved};
use msb::wire::channel::{FREEZE, FROZEN, THAW};
use msb::wire::dial::{PatientReader, TIMEOUT};
use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, memfd_create};
use rustix::net::RecvFlags;
use serde_json::json;

use super::monitor::Monitor;
use super::parts::Parts;
use crate::inherited_fd::InheritedFd;
use crate::log;
use crate::supervisor::clock;

/// The ID of the fd set with the state's descriptor.
const FD_SET: u32 = 1;
/// The mode of a file that its owner may write.
const READ_AND_WRITE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Saves the VM for a caller, which sends the directory. If the caller wants that, the VM stays paused until the connection is closed, so that
/// the caller can end it first.
pub(super) fn serve(client: &UnixStream, parts: &Parts, endpoint: Endpoint) {
    if let Err(error) = converse(client, parts, &endpoint) {
        log::note(format_args!("not saved: {error:#}"));
        let _ = saving::answer(client, &Answer::Failed(format!("{error:#}")));
    }
    // The guest's clock has stood still.
    clock::send_time(endpoint);
}

fn converse(mut client: &UnixStream, parts: &Parts, endpoint: &Endpoint) -> anyhow::Result<()> {
    client.set_nonblocking(false)?;
    let (request, directory) = saving::receive(client.as_fd())?;
    let mut monitor = parts.monitor();
    let frozen = Frozen::freeze(&parts.channel, endpoint)?;
    let (mut saved, paused) = save(parts, &mut monitor, &directory)?;
    let waiting = if request.wait {
        Some((paused, frozen))
    } else {
        saved.paused_ms = paused.end();
        drop(frozen);
        None
    };
    copy_read_only(parts, &directory)?;
    log::note(format_args!("saved: the guest was paused for {} ms", saved.paused_ms));
    saving::answer(client, &Answer::Saved(Box::new(saved)))?;
    if waiting.is_some() {
        let _ = client.read(&mut [0]);
    }
    Ok(())
}

/// A channel that is frozen, until this is dropped.
struct Frozen<'a>(&'a UnixStream);

impl<'a> Frozen<'a> {
    fn freeze(channel: &'a UnixStream, endpoint: &Endpoint) -> anyhow::Result<Self> {
        // The answer to an earlier request may have come too late.
        while let Ok((1.., _)) = rustix::net::recv(channel, &mut [0; 16], RecvFlags::DONTWAIT) {}
        rustix::io::write(channel, &[FREEZE])?;
        let frozen = Self(channel);
        let patience = Patience::with(endpoint, TIMEOUT);
        let mut answer = [0];
        match (PatientReader { stream: channel, patience }).read_exact(&mut answer) {
            Ok(()) if answer == [FROZEN] => Ok(frozen),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                bail!("the guest's agent did not answer within {} s", TIMEOUT.as_secs())
            }
            _ => bail!("the VM has ended"),
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = rustix::io::write(self.0, &[THAW]);
    }
}

/// A guest that is paused, until this is dropped.
struct Paused<'a> {
    monitor: &'a mut Monitor,
    since: Instant,
}

impl<'a> Paused<'a> {
    fn pause(monitor: &'a mut Monitor) -> anyhow::Result<Self> {
        // If `stop` times out, QEMU may pause the guest later. So this value exists before the command: dropping it sends `cont`.
        let paused = Self { monitor, since: Instant::now() };
        paused.monitor.execute("stop", &json!({}), None)?;
        Ok(paused)
    }

    /// Lets the guest go on. Returns how long it was paused, in milliseconds.
    fn end(self) -> u64 {
        let since = self.since;
        drop(self);
        u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.monitor.execute("cont", &json!({}), None) {
            log::note(format_args!("the guest may still be paused: {error:#}"));
        }
    }
}

/// Writes the state, the memory and the writable disks. The guest is paused from then on.
fn save<'a>(parts: &Parts, monitor: &'a mut Monitor, directory: &OwnedFd) -> anyhow::Result<(Saved, Paused<'a>)> {
    let vmm = monitor.version()?;
    // The file is read-only: it does not change after it is saved.
    let memory = create(directory, snapshot::MEMORY, Mode::RUSR)?;
    parts.memory.begin_copy(&memory).context("the memory")?;
    let paused = Paused::pause(monitor)?;
    save_state(paused.monitor, &create(directory, snapshot::STATE, READ_AND_WRITE)?)
        .context("the state of the devices")?;
    parts.memory.complete_copy(&memory).context("the memory")?;
    for (disk, file) in parts.machine.disks.iter().zip(&parts.disks).filter(|(disk, _)| disk.writable) {
        let copy = create(directory, &disk.file, READ_AND_WRITE)?;
        copy_data(file, &copy, disk.size).with_context(|| disk.file.clone())?;
    }
    let machine = Machine { vmm, ..parts.machine.clone() };
    let paused_ms = u64::try_from(paused.since.elapsed().as_millis())?;
    Ok((Saved { machine, paused_ms }, paused))
}

/// Lets the VMM write the state to a memfd, and copies that to the file. So a hostile VMM never has a descriptor of the file.
///
/// The command was made for Xen's tools. It writes the state of a migration without the guest's memory.
fn save_state(monitor: &mut Monitor, file: &File) -> anyhow::Result<()> {
    let state = File::from(memfd_create("msb-state", MemfdFlags::CLOEXEC)?);
    // QEMU takes a descriptor of the set only if it is open with the access mode that QEMU asks for: write-only.
    let writer = File::options().write(true).open(InheritedFd::of(&state).path())?;
    monitor.execute("add-fd", &json!({"fdset-id": FD_SET}), Some(writer.as_fd()))?;
    let arguments = json!({"filename": format!("/dev/fdset/{FD_SET}"), "live": false});
    let saved = monitor.execute("xen-save-devices-state", &arguments, None);
    let removed = monitor.execute("remove-fd", &json!({"fdset-id": FD_SET}), None);
    saved?;
    removed?;
    match state.metadata()?.len() {
        0 => bail!("QEMU has written nothing"),
        size if size > snapshot::MAX_STATE => bail!("larger than {} bytes", snapshot::MAX_STATE),
        size => Ok(copy_data(&state, file, size)?),
    }
}

/// Gives the snapshot the disks that the guest only reads. Images of the store never change, so they get another name in place of a copy.
fn copy_read_only(parts: &Parts, directory: &OwnedFd) -> anyhow::Result<()> {
    for (disk, file) in parts.machine.disks.iter().zip(&parts.disks).filter(|(disk, _)| !disk.writable) {
        let copy = || -> anyhow::Result<()> {
            let path = InheritedFd::of(file).path();
            let target = std::fs::read_link(&path)?;
            let is_image = target.parent() == Some(&parts.images) && !target.as_os_str().as_bytes().ends_with(b")");
            let is_linked =
                is_image && rustix::fs::linkat(CWD, &path, directory, &disk.file, AtFlags::SYMLINK_FOLLOW).is_ok();
            if !is_linked {
                copy_data(file, &create(directory, &disk.file, READ_AND_WRITE)?, disk.size)?;
            }
            Ok(())
        };
        copy().with_context(|| disk.file.clone())?;
    }
    Ok(())
}

fn create(directory: &OwnedFd, name: &str, mode: Mode) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, mode)?.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_guest_goes_on_although_its_vmm_was_late_to_pause_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        theirs.write_all(b"{\"error\": {\"desc\": \"late\"}, \"id\": 1}\n{\"return\": {}, \"id\": 2}\n").unwrap();
        assert!(Paused::pause(&mut monitor).is_err());
        drop(monitor);
        let mut commands = String::new();
        theirs.read_to_string(&mut commands).unwrap();
        let commands: Vec<&str> = commands.lines().collect();
        assert!(
            commands.len() == 2 && commands[0].contains("\"stop\"") && commands[1].contains("\"cont\""),
            "{commands:?}"
        );
    }
}
