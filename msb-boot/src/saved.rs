//! The saved VM that a VM starts from: what must be the same, and its files. Each VM gets copies of the disk and of the state. A copy is
//! checked against the digest of the saved file, so nobody can change it between the check and the start. The memory is too large to copy.
//! It is checked once, and again only if its stamp has changed ([`msb::store::snapshot_stamp`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use msb::lock::{self, Lock};
use msb::overlay::copy_data;
use msb::record::{self, Channel, Record, RestartPolicy, Snapshot};
use msb::store::erase::Use;
use msb::store::snapshot::{self, Description, Machine};
use msb::store::{home, layout, publish};
use msb::vm::boot::Boot;
use rustix::fs::{MemfdFlags, SeekFrom};
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::vm::{Drive, Vm};

/// The remedy if the snapshot does not fit the VM.
const REMEDY: &str = "boot without the snapshot: jq -c 'del(.snapshot)'";

/// A saved VM.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The directory with its files.
    dir: PathBuf,
    description: Description,
    /// Where the copies of its disks are made, without names.
    copies: PathBuf,
    /// Whether the guest gets another machine ID.
    pub new_machine_id: bool,
}

impl Saved {
    /// Reads the description of a snapshot.
    ///
    /// # Errors
    /// A snapshot that is gone, modified, or of another release.
    pub(crate) fn read(snapshot: &Snapshot, new_machine_id: bool) -> anyhow::Result<Self> {
        let description = Description::read(snapshot).with_context(|| subject(&snapshot.path))?;
        let copies = layout::sandboxes(&home::home()?);
        Ok(Self { dir: snapshot.path.clone(), description, copies, new_machine_id })
    }

    /// The saved machine.
    pub(crate) fn machine(&self) -> &Machine {
        &self.description.machine
    }

    /// Checks a request against the saved VM, and sets the channel in it. `is_fresh` asks for a new disk.
    ///
    /// # Errors
    /// A member that must not differ from the saved VM.
    pub(crate) fn check_request(
        &self,
        request: &mut record::Boot,
        record: &Record,
        is_fresh: bool,
    ) -> anyhow::Result<()> {
        let (machine, saved) = (self.machine(), &self.description.record);
        let (cpus, memory_mib) = (machine.cpus, machine.memory_mib);
        if request.cpus != cpus {
            bail!("--cpus {}: a saved VM keeps its number of processors, {cpus} ({REMEDY})", request.cpus);
        }
        if request.memory_mib != memory_mib {
            bail!("--memory {}M: a saved VM keeps its memory of {memory_mib} MiB ({REMEDY})", request.memory_mib);
        }
        let root = |record: &Record| (record.rootfs.clone(), record.upper.clone(), record.mount.clone());
        ensure!(root(record) == root(saved), "a saved VM keeps its root, and that of the record is another ({REMEDY})");
        let init = saved.boot.as_ref().map(|boot| (&boot.init, boot.bare));
        ensure!(init == Some((&request.init, request.bare)), "a saved VM keeps its init ({REMEDY})");
        let volumes = saved.boot.as_ref().map(|boot| &boot.volumes);
        ensure!(volumes == Some(&request.volumes), "a saved VM keeps its volumes ({REMEDY})");
        ensure!(
            request.restart == RestartPolicy::No,
            "--restart: a VM that starts from a snapshot is not started again ({REMEDY})"
        );
        let disk_of = |boot: &record::Boot| (boot.disk.clone(), boot.ephemeral);
        if is_fresh || saved.boot.as_ref().is_some_and(|boot| disk_of(boot) != disk_of(&*request)) {
            bail!("--disk, --fresh, --ephemeral: a saved VM keeps its disk ({REMEDY})");
        }
        ensure!(
            request.channel.is_none_or(|channel| channel == Channel::Serial),
            "--channel: a saved VM keeps the channel to its agent, serial ({REMEDY})"
        );
        request.channel = Some(Channel::Serial);
        Ok(())
    }

    /// Checks the VM that is to go on from the saved state.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn check_machine(
        &self,
        vm: &Vm,
        boot: &Boot,
        scripts: &BTreeMap<String, PathBuf>,
        processor: Option<String>,
    ) -> anyhow::Result<()> {
        let machine = self.machine();
        let kernel = kernel_name(&vm.kernel);
        ensure!(machine.kernel == kernel, "{}: it was saved with another guest kernel ({REMEDY})", subject(&self.dir));
        let processor = processor.context("krun: cannot load a saved VM (use --vmm qemu)")?;
        if machine.processor != processor {
            let dir = subject(&self.dir);
            bail!(
                "{dir}: its guest has the processor {:?}, and it would be {processor:?} here ({REMEDY})",
                machine.processor
            );
        }
        ensure!(machine.network == boot.network, "a saved VM keeps its network ({REMEDY})");
        ensure!(self.description.record.scripts == *scripts, "a saved VM keeps its scripts ({REMEDY})");
        Ok(())
    }

    /// Opens its disks. The guest gets copies of those that it writes to.
    ///
    /// # Errors
    /// A file that is missing, or not as it was saved.
    pub(crate) fn open_drives(&self) -> anyhow::Result<Vec<(Drive, OwnedFd)>> {
        let disks = self.machine().disks.iter();
        disks.map(|disk| self.open_drive(disk).with_context(|| subject(&self.dir))).collect()
    }

    fn open_drive(&self, disk: &snapshot::Disk) -> anyhow::Result<(Drive, OwnedFd)> {
        let mut file = snapshot::open(&self.dir, &disk.file)?;
        if disk.writable {
            publish::make_private_dir(&self.copies)?;
            let copy = publish::unnamed_file(&self.copies)?;
            self.copy(&disk.file, &file, &copy)?;
            lock::take(&copy, Lock::TryExclusive)?;
            file = copy;
        } else if file.metadata()?.len() != disk.size {
            // Its content is as trusted as that of the store's other images, of which it is one.
            bail!(snapshot::Error::Modified(disk.file.clone()));
        }
        let fd = InheritedFd::of(&file);
        Ok((Drive { fd, format: disk.format, writable: disk.writable, backing_file: None }, file.into()))
    }

    /// Its memory, for reading. Nobody erases it meanwhile.
    ///
    /// # Errors
    /// As [`Self::open_drives`].
    pub(crate) fn memory(&self) -> anyhow::Result<Use> {
        let open = || -> Result<Use, snapshot::Error> {
            let file = snapshot::open_for_use(&self.dir, snapshot::MEMORY)?;
            self.description.check_once(&self.dir, snapshot::MEMORY, &file)?;
            Ok(file)
        };
        open().with_context(|| subject(&self.dir))
    }

    /// A copy of the state of its devices.
    ///
    /// # Errors
    /// As [`Self::open_drives`].
    pub(crate) fn state(&self) -> anyhow::Result<OwnedFd> {
        let state = File::from(rustix::fs::memfd_create("msb-state", MemfdFlags::CLOEXEC)?);
        let copy = || self.copy(snapshot::STATE, &snapshot::open(&self.dir, snapshot::STATE)?, &state);
        copy().with_context(|| subject(&self.dir))?;
        // The VMM reads on from where its digest was read.
        rustix::fs::seek(&state, SeekFrom::Start(0))?;
        Ok(state.into())
    }

    fn copy(&self, name: &str, file: &File, copy: &File) -> anyhow::Result<()> {
        let size = file.metadata()?.len();
        let saved = self.description.files.get(name).map(|content| content.size);
        ensure!(saved == Some(size), snapshot::Error::Modified(name.into()));
        copy_data(file, copy, size)?;
        copy.set_len(size)?;
        Ok(self.description.check(name, copy)?)
    }
}

fn subject(dir: &Path) -> String {
    format!("snapshot {dir:?}")
}

/// The name of a kernel's file. No two kernels have the same.
pub(crate) fn kernel_name(kernel: &Path) -> String {
    kernel.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Empty memory for a guest.
///
/// # Errors
/// Those of memfd_create(2) and ftruncate(2).
pub(crate) fn memory(mib: u32) -> std::io::Result<File> {
    let memory = rustix::fs::memfd_create("msb-memory", MemfdFlags::CLOEXEC)?;
    rustix::fs::fchmod(&memory, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::fs::ftruncate(&memory, u64::from(mib) << 20)?;
    Ok(memory.into())
}
