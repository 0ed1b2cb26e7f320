//! rm: removes things by name.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use msb::lock::{self, Lock};
use msb::record::check_volume_name;
use msb::store::snapshot_name::{self, Named};
use msb::store::{erase, layout, publish, sandbox, snapshot};
use msb::tool::exit;
use msb::vm::name;

use crate::args::{Config, Type};
use crate::collect::{Scope, Settled, gone};
use crate::gc;
use crate::inventory::{Inventory, name_of};
use crate::sandbox::Sandbox;
use crate::size;
use crate::vm;

/// Removes what is named. Returns the exit code: one that cannot be removed does not keep the others.
///
/// # Errors
/// A store that cannot be read.
pub(crate) fn run(config: &Config) -> anyhow::Result<u8> {
    if config.kind.is_none_or(|kind| kind == Type::Image) {
        return images(config);
    }
    let (mut report, mut code) = (gc::Report::new(config), 0);
    for name in &config.names {
        let removed = remove(config, name).and_then(|removed| {
            ensure!(removed.is_some() || config.force, "nothing of that name (\"msb-store ls\" lists all)");
            removed.map_or(Ok(()), |settled| report.add(settled))
        });
        if let Err(error) = removed {
            exit::warn("msb-store", &format!("{name:?}: {error:#}"));
            code = exit::FAILED;
        }
    }
    report.finish()?;
    Ok(code)
}

/// Removes references, and then the documents, layers and EROFS images that only those images needed.
fn images(config: &Config) -> anyhow::Result<u8> {
    let inventory = Inventory::read(&config.home)?;
    let (mut references, mut only, mut code) = (BTreeSet::new(), BTreeSet::new(), 0);
    for name in &config.names {
        let mut is_found = false;
        for image in inventory.images.iter().filter(|image| image.is_named(name)) {
            is_found = true;
            references.insert(image.path.clone());
            only.extend(image.documents.iter().chain(&image.layers).cloned());
        }
        if !is_found && !config.force {
            exit::warn("msb-store", &format!("{name:?}: no image of that name (\"msb-store ls\" lists all)"));
            code = exit::FAILED;
        }
    }
    if !references.is_empty() {
        let scope = Scope { dry_run: config.dry_run, references, only: Some(only), ..Scope::default() };
        gc::put(config, &scope)?;
    }
    Ok(code)
}

/// Removes one thing. `None`: there is none of that name.
fn remove(config: &Config, name: &str) -> anyhow::Result<Option<Settled>> {
    let kind = config.kind.unwrap_or(Type::Image);
    let path = path_of(&config.home, kind, name)?;
    let bytes = size::of(&path)?;
    let is_removed = match kind {
        Type::Layer => layer(config, name, &path)?,
        Type::Erofs => erofs(config, &path)?,
        Type::Sandbox => upper(config, name, &path)?,
        Type::Disk => disk(config, name)?,
        Type::Snapshot => saved(config, &path)?,
        _ => volume(config, name, &path)?,
    };
    let state = gone(config.dry_run);
    Ok(is_removed.then(|| Settled { kind, name: name.to_owned(), path, bytes, state, why: "it was named" }))
}

/// The path of a thing, which need not exist.
fn path_of(home: &Path, kind: Type, name: &str) -> anyhow::Result<PathBuf> {
    Ok(match kind {
        Type::Layer => {
            ensure!(layout::is_id(name), "not the ID of a layer");
            layout::layer(home, name)
        }
        Type::Erofs => {
            let path = layout::images(home).join(name);
            ensure!(name_of(&path) == name && layout::is_image(&path), "not the name of an EROFS image");
            path
        }
        Type::Snapshot if layout::is_id(hex_of(name)) => layout::snapshot(home, hex_of(name)),
        Type::Snapshot => {
            name::check(name).map_err(anyhow::Error::msg)?;
            let named = Named::read(home, name).and_then(|named| named.snapshot(home));
            // A name without a snapshot gets a path that does not exist.
            named.map_or_else(|| layout::snapshot(home, name), |snapshot| snapshot.path)
        }
        Type::Sandbox | Type::Disk => {
            name::check(name).map_err(anyhow::Error::msg)?;
            let sandbox = layout::sandbox(home, name);
            if kind == Type::Disk { sandbox.join(layout::SCRATCH_DISK) } else { sandbox }
        }
        _ => {
            check_volume_name(name).map_err(anyhow::Error::msg)?;
            layout::volume(home, name)
        }
    })
}

/// The hex digits of a digest, with or without its algorithm.
fn hex_of(name: &str) -> &str {
    name.strip_prefix("sha256:").unwrap_or(name)
}

/// Removes the upper in a sandbox, with everything else in that.
fn upper(config: &Config, name: &str, path: &Path) -> anyhow::Result<bool> {
    let Some(found) = unused_sandbox(config, name)? else { return Ok(false) };
    ensure!(found.has_upper, "there is no upper under that name, but a disk (-t disk)");
    ensure!(!found.has_disk, "a disk that belongs to this upper is beside it (remove it first, with -t disk)");
    if config.dry_run { Ok(true) } else { Ok(sandbox::remove(path)?) }
}

/// Removes the disk in a sandbox.
fn disk(config: &Config, name: &str) -> anyhow::Result<bool> {
    let Some(found) = unused_sandbox(config, name)? else { return Ok(false) };
    ensure!(found.has_disk, "there is no disk under that name, but an upper (-t sandbox)");
    if config.dry_run { Ok(true) } else { Ok(sandbox::remove_disk(&found.path)?) }
}

/// The sandbox of this name, which no VM has. `None`: there is none.
fn unused_sandbox(config: &Config, name: &str) -> anyhow::Result<Option<Sandbox>> {
    let vms = vm::vms(&config.home)?;
    let path = layout::sandbox(&config.home, name);
    let found = crate::sandbox::sandboxes(&config.home, &vms)?.into_iter().find(|sandbox| sandbox.path == path);
    if let Some(vm) = vms.iter().find(|vm| vm.name == name || vm.has_sandbox(&path)).filter(|_| found.is_some()) {
        ensure!(!vm.is_saved, "{} has it (remove that with \"msb-store rm -t snapshot {}\")", vm.label(), vm.name);
        bail!("VM {:?} has it (remove the VM with \"msb-rm {}\")", vm.name, vm.name);
    }
    if let Some(vm) = found.iter().find_map(|sandbox| sandbox.stopped.first()) {
        bail!("the stopped VM {vm:?} needs it (remove the VM with \"msb-rm {vm}\")");
    }
    Ok(found)
}

fn layer(config: &Config, id: &str, path: &Path) -> anyhow::Result<bool> {
    let lock = match lock::open(path, Lock::TryExclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("a mount, a VM or another tool uses it (unmount it, or stop the VM)")
        }
        other => other?,
    };
    let inventory = Inventory::read(&config.home)?;
    if let Some(image) = inventory.images.iter().find(|image| image.layers.contains(id)).filter(|_| !config.force) {
        bail!("image {:?} uses it (-f removes it; the next pull fetches it again)", image.name);
    }
    // What was made of it would otherwise outlive it.
    let made: Vec<PathBuf> = inventory
        .erofs
        .into_iter()
        .filter(|erofs| erofs.layers.iter().any(|layer| layer == id))
        .map(|erofs| erofs.path)
        .collect();
    for path in &made {
        erofs(config, path)?;
    }
    if !config.dry_run {
        let removed = publish::staging_path(path);
        std::fs::rename(path, &removed)?;
        publish::remove_tree(&removed)?;
        publish::remove_tree(&layout::checksums(&config.home, id))?;
    }
    drop(lock);
    Ok(true)
}

fn erofs(config: &Config, path: &Path) -> anyhow::Result<bool> {
    let _lock = match lock::open(path, Lock::TryExclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("a VM uses {path:?} (stop it first)"),
        other => other?,
    };
    if !config.dry_run {
        publish::remove_tree(path).with_context(|| format!("{path:?}"))?;
    }
    Ok(true)
}

/// Removes a saved VM, with the upper that msb-run --snapshot made for it. VMs that were started from it have copies, or hold its files
/// open.
fn saved(config: &Config, path: &Path) -> anyhow::Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    if !config.dry_run {
        // A run may be starting a VM from it.
        let _lock = match lock::open(path, Lock::Exclusive) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if !path.is_dir() {
            return Ok(false);
        }
        let record = snapshot::readable_record(path);
        let upper = record.and_then(|record| snapshot_name::sandbox_of(&config.home, &record));
        let is_of_another = |sandbox: &Path| {
            let records = snapshot::records(&config.home)?;
            let mut others = records.iter().filter(|(other, _)| other != path);
            anyhow::Ok(others.any(|(_, record)| record.has_sandbox(sandbox)))
        };
        // Without the snapshot nothing would name its upper, so that is removed first.
        if let Some(upper) = upper
            && !is_of_another(&upper)?
        {
            sandbox::remove(&upper).with_context(|| format!("{upper:?}"))?;
        }
        // Nobody finds half of it.
        let removed = publish::staging_path(path);
        std::fs::rename(path, &removed)?;
        erase::remove_tree(&removed)?;
        snapshot_name::prune(&config.home)?;
    }
    Ok(true)
}

fn volume(config: &Config, name: &str, path: &Path) -> anyhow::Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    if let Some(vm) = vm::vms(&config.home)?.iter().find(|vm| vm.has_volume(name)) {
        bail!("VM {:?} uses it (stop it first)", vm.name);
    }
    if !config.dry_run {
        // Nobody finds half of it.
        let removed = publish::staging_path(path);
        std::fs::rename(path, &removed)?;
        publish::remove_tree(&removed)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use msb::record::{Record, Upper};

    use super::*;
    use crate::args::Action;

    #[test]
    fn a_snapshot_is_removed_with_its_upper_or_both_stay() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let sandbox = layout::sandbox(home, "snapshot-0123456789ab");
        let mut record = Record::new();
        record.upper = Some(Upper::new(sandbox.join(layout::UPPER), sandbox.join(layout::WORK)));
        fs::create_dir_all(sandbox.join(layout::WORK)).unwrap();
        let [one, other] = ["1", "2"].map(|digit| digit.repeat(64));
        for hex in [&one, &other] {
            let dir = layout::snapshot(home, hex);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(snapshot::DESCRIPTION), serde_json::json!({ "record": record }).to_string()).unwrap();
            Named { key: "key".into(), digest: format!("sha256:{hex}") }
                .assign(home, &format!("name{hex:.1}"), |_| Ok(()))
                .unwrap();
        }
        let config = Config {
            home: home.into(),
            action: Action::Rm,
            kind: Some(Type::Snapshot),
            names: Vec::new(),
            older_than: std::time::Duration::ZERO,
            all: false,
            dry_run: false,
            force: false,
            json: false,
        };
        let remove = |name: &str| remove(&config, name).map(|removed| removed.is_some());
        let starts = lock::open(&layout::snapshot(home, &one), Lock::Shared).unwrap();
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| remove(&one));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!removal.is_finished(), "a VM starts from it");
            drop(starts);
            assert!(removal.join().unwrap().unwrap());
        });
        assert!(sandbox.exists(), "the other snapshot has it");
        let lock = lock::open(&sandbox.join(layout::WORK), Lock::TryShared).unwrap();
        remove("name2").unwrap_err();
        assert!(layout::snapshot(home, &other).exists());
        drop(lock);
        assert!(remove("name2").unwrap());
        assert!(!remove(&other).unwrap());
        assert!(!sandbox.exists());
        assert_eq!(fs::read_dir(layout::snapshot_names(home)).unwrap().count(), 0);
    }
}
