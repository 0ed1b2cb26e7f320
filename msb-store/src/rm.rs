//! rm: removes things by name.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use msb::lock::{self, Lock};
use msb::record::check_volume_name;
use msb::store::{layout, publish, sandbox};
use msb::tool::exit;
use msb::vm::name;

use crate::args::{Config, Type};
use crate::collect::Scope;
use crate::gc;
use crate::inventory::{Inventory, name_of};
use crate::vm;

/// Removes what is named. Returns the exit code: one that cannot be removed does not keep the others.
///
/// # Errors
/// A store that cannot be read.
pub(crate) fn run(config: &Config) -> anyhow::Result<u8> {
    if config.kind.is_none_or(|kind| kind == Type::Image) {
        return images(config);
    }
    let mut code = 0;
    for name in &config.names {
        let removed = remove(config, name).and_then(|is_removed| {
            ensure!(is_removed || config.force, "nothing of that name (\"msb-store ls\" lists all)");
            Ok(())
        });
        if let Err(error) = removed {
            exit::warn("msb-store", &format!("{name:?}: {error:#}"));
            code = exit::FAILED;
        }
    }
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

/// Removes one thing. False: there is none of that name.
fn remove(config: &Config, name: &str) -> anyhow::Result<bool> {
    let home = &config.home;
    match config.kind {
        Some(Type::Layer) => layer(config, name),
        Some(Type::Erofs) => {
            let path = layout::images(home).join(name);
            ensure!(name_of(&path) == name && layout::is_image(&path), "not the name of an EROFS image");
            erofs(config, &path)
        }
        Some(Type::Sandbox | Type::Disk) => {
            name::check(name).map_err(anyhow::Error::msg)?;
            let path = layout::sandbox(home, name);
            let vms = vm::vms();
            let sandboxes = crate::sandbox::sandboxes(home, &vms)?;
            let Some(found) = sandboxes.iter().find(|sandbox| sandbox.path == path) else { return Ok(false) };
            let is_disk = config.kind == Some(Type::Disk);
            ensure!(
                if is_disk { found.has_disk } else { found.has_upper },
                "there is nothing of this type under that name"
            );
            if let Some(vm) = vms.iter().find(|vm| vm.name == name || vm.has_sandbox(&path)) {
                bail!("VM {:?} has it (remove the VM with \"msb-rm {}\")", vm.name, vm.name);
            }
            if config.dry_run { Ok(true) } else { Ok(sandbox::remove(&path)?) }
        }
        _ => volume(config, name),
    }
}

fn layer(config: &Config, id: &str) -> anyhow::Result<bool> {
    ensure!(layout::is_id(id), "not the ID of a layer");
    let path = layout::layer(&config.home, id);
    let lock = match lock::open(&path, Lock::TryExclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("a mount, a VM or another tool uses it (unmount it, or stop the VM)")
        }
        other => other?,
    };
    let inventory = Inventory::read(&config.home)?;
    if let Some(image) = inventory.images.iter().find(|image| image.layers.contains(id)).filter(|_| !config.force) {
        bail!("image {:?} has it (with -f it goes all the same, and the next pull fetches it again)", image.name);
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
        let removed = publish::staging_path(&path);
        std::fs::rename(&path, &removed)?;
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

fn volume(config: &Config, name: &str) -> anyhow::Result<bool> {
    check_volume_name(name).map_err(anyhow::Error::msg)?;
    let path = layout::volume(&config.home, name);
    if !path.is_dir() {
        return Ok(false);
    }
    if let Some(vm) = vm::vms().iter().find(|vm| vm.has_volume(name)) {
        bail!("VM {:?} uses it (stop it first)", vm.name);
    }
    if !config.dry_run {
        // Nobody finds half of it.
        let removed = publish::staging_path(&path);
        std::fs::rename(&path, &removed)?;
        publish::remove_tree(&removed)?;
    }
    Ok(true)
}
