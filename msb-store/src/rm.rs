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
            // Of a name without a snapshot there is nothing to remove.
            named.map_or_else(|| layout::snapshots(home).join(name), |snapshot| snapshot.path)
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
        bail!("VM {vm:?}, which is stopped, has it (remove the VM with \"msb-rm {vm}\")");
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

/// Removes a saved VM. VMs that were started from it have copies, or hold its files open.
fn saved(config: &Config, path: &Path) -> anyhow::Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    if !config.dry_run {
        let digest = snapshot::digest_of(path).unwrap_or_default();
        let names = snapshot_name::of(&config.home, &digest);
        let named = names.first().and_then(|name| Named::read(&config.home, name));
        // Nobody finds half of it.
        let removed = publish::staging_path(path);
        std::fs::rename(path, &removed)?;
        erase::remove_tree(&removed)?;
        if let Some(sandbox) = named.and_then(|named| named.sandbox).filter(|sandbox| name::check(sandbox).is_ok()) {
            sandbox::remove(&layout::sandbox(&config.home, &sandbox))?;
        }
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
