//! The VMs that have a run directory, running or dead, and those that are saved, and what of the store their records name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::record::{self, Record, Rootfs, VolumeContent};
use msb::store::layout;
use msb::store::snapshot;
use msb::vm::{name, supervisor};

/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 8 << 20;

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: String,
    /// Whether it is a snapshot in the store. Its name is the digest then.
    pub(crate) is_saved: bool,
    record: Record,
}

/// The VMs of this user, and those that are saved in the store.
///
/// # Errors
/// The directory of snapshots cannot be read. Ignoring that would make what snapshots need look unused.
pub(crate) fn vms(home: &Path) -> anyhow::Result<Vec<Vm>> {
    let mut vms = booted();
    // Layers and uppers that a damaged snapshot names are in use, too.
    let saved = snapshot::records(home).with_context(|| format!("{:?}", layout::snapshots(home)))?;
    vms.extend(saved.into_iter().filter_map(|(path, record)| of_snapshot(&path, record)));
    Ok(vms)
}

/// A saved VM; `None` for one that is not complete.
pub(crate) fn saved(path: &Path) -> Option<Vm> {
    of_snapshot(path, snapshot::record_of(path)?)
}

fn of_snapshot(path: &Path, record: Record) -> Option<Vm> {
    Some(Vm { name: path.file_name()?.to_str()?.to_owned(), is_saved: true, record })
}

/// The VMs with a run directory. The list is empty if the directory for run directories is missing.
fn booted() -> Vec<Vm> {
    let Ok(base) = name::run_base() else { return Vec::new() };
    let entries = fs::read_dir(&base).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|text| name::check(text).is_ok()).filter_map(|name| vm(&base.join(&name), name)).collect()
}

fn vm(dir: &Path, name: String) -> Option<Vm> {
    let path = dir.join(record::FILE_NAME);
    let is_small = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_RECORD);
    let text = if is_small { fs::read(path).ok()? } else { return None };
    Some(Vm { name, is_saved: false, record: Record::parse(text.trim_ascii_end()).ok()? })
}

impl Vm {
    /// What it is, for a person.
    pub(crate) fn label(&self) -> String {
        match self.is_saved {
            true => format!("snapshot {}", self.name.chars().take(12).collect::<String>()),
            false => format!("VM {}", self.name),
        }
    }

    /// The image and the name of its VM, for a person.
    pub(crate) fn origin(&self) -> String {
        let image = self.record.image.as_ref().map_or("its root", |image| &image.reference);
        let vm = self.record.boot.as_ref().and_then(|boot| boot.name.as_deref());
        vm.map_or_else(|| image.to_owned(), |vm| format!("{image}, saved from VM {vm}"))
    }

    /// The lower directories of its root.
    pub(crate) fn lower(&self) -> &[PathBuf] {
        match &self.record.rootfs {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => lower,
            _ => &[],
        }
    }

    /// Whether its upper or its scripts are in this sandbox.
    pub(crate) fn has_sandbox(&self, sandbox: &Path) -> bool {
        self.record.has_sandbox(sandbox)
    }

    /// Whether it uses the volume of this name now.
    pub(crate) fn has_volume(&self, volume: &str) -> bool {
        let volumes = self.record.boot.iter().flat_map(|boot| &boot.volumes);
        let has =
            volumes.into_iter().any(|other| matches!(&other.content, VolumeContent::Volume(name) if name == volume));
        has && self.record.vm.as_ref().is_some_and(|vm| matches!(supervisor::find(vm), Ok(Some(_))))
    }
}
