//! The VMs that have a run directory, running or dead, and what of the store their records name.

use std::fs;
use std::path::{Path, PathBuf};

use msb::record::{self, Record, Rootfs, VolumeContent};
use msb::vm::{name, supervisor};

/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 8 << 20;

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: String,
    record: Record,
}

/// The VMs of this user. The list is empty if the directory for run directories is missing.
pub(crate) fn vms() -> Vec<Vm> {
    let Ok(base) = name::run_base() else { return Vec::new() };
    let entries = fs::read_dir(&base).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|text| name::check(text).is_ok()).filter_map(|name| vm(&base.join(&name), name)).collect()
}

fn vm(dir: &Path, name: String) -> Option<Vm> {
    let path = dir.join(record::FILE_NAME);
    let is_small = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_RECORD);
    let text = if is_small { fs::read(path).ok()? } else { return None };
    Some(Vm { name, record: Record::parse(text.trim_ascii_end()).ok()? })
}

impl Vm {
    /// The lower directories of its root.
    pub(crate) fn lower(&self) -> &[PathBuf] {
        match &self.record.rootfs {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => lower,
            _ => &[],
        }
    }

    /// Whether its upper or its scripts are in this sandbox.
    pub(crate) fn has_sandbox(&self, sandbox: &Path) -> bool {
        let upper = self.record.upper.iter().map(|upper| upper.dir.as_path());
        upper.chain(self.record.scripts.values().map(PathBuf::as_path)).any(|path| path.starts_with(sandbox))
    }

    /// Whether it uses the volume of this name now.
    pub(crate) fn has_volume(&self, volume: &str) -> bool {
        let volumes = self.record.boot.iter().flat_map(|boot| &boot.volumes);
        let has =
            volumes.into_iter().any(|other| matches!(&other.content, VolumeContent::Volume(name) if name == volume));
        has && self.record.vm.as_ref().is_some_and(|vm| matches!(supervisor::find(vm), Ok(Some(_))))
    }
}
